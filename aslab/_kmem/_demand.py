"""How far ahead of its callers a pool grows: not at all, but while they empty it about as fast as it can grow.

Callers that find a pool empty soon after a slab has come would wait for each slab. So the pool then goes on growing
until one slab is free, the next time two, up to `MOST`: a task that fills its objects with I/O finds the next ones
ready. Each slab is a grow of its own, asked for once the last one has come, so no caller's slab comes later for it.

Memory that is slow is short: nothing is then taken ahead of need. Nor is it where memory comes at once, or for a
while after slabs were given back.

Event loop's thread only.
"""

from __future__ import annotations

import math

MOST, MOST_BYTES = 4, 32 * 2**20
"""Slabs ahead, and bytes of them."""
SOON = 4
"""Callers that come within this many times the duration of a grow come soon after it."""
INSTANT, SLOW = 20e-6, 10e-3
"""Seconds: the next slab is not waited for if the last one took less, and is not taken ahead if it took more."""
CALM = 15.0
"""Seconds after slabs were given back in which none is taken ahead."""


class Demand:
    """Whether the callers of one pool want objects as fast as they come."""

    def __init__(self, slab_size: int) -> None:
        self._most = min(MOST, MOST_BYTES // slab_size)
        self._slabs = 0
        self._took = 0.0
        self._until = -math.inf
        self._not_before = -math.inf

    def found_empty(self, now: float) -> None:
        """Note that callers have found no object, and a slab is asked for."""
        again = self._not_before <= now < self._until
        self._slabs = min(max(1, 2 * self._slabs), self._most) if again else 0

    def delivered(self, seconds: float) -> None:
        """Note how long the backend took for a slab."""
        self._took = seconds

    def grown(self, now: float) -> None:
        """Note that the slab has come."""
        self._until = now + SOON * self._took if INSTANT < self._took < SLOW else -math.inf

    def subsides(self, now: float) -> None:
        """Note that slabs cannot be had, or are given back."""
        self._slabs, self._not_before = 0, now + CALM

    def slabs_ahead(self, now: float) -> int:
        """How many slabs should be free."""
        return self._slabs if self._slabs and now < self._until else 0
