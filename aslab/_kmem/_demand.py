"""How many slabs a pool grows: one, but more while its callers empty it about as fast as it can grow.

Callers that find a pool empty soon after slabs have come would wait for each slab. So the pool then goes on
growing until one slab is free, the next time two, up to `MOST`: a task that fills its objects with I/O finds the
next ones ready. And one grow may bring several slabs by one call of the backend, unless that was slow the last
time: as many as it can begin within `BATCH_SECONDS`, by which the first of them comes later, less than makes a
grow late. A call that gets stuck keeps what it has, as if it had got stuck that much earlier.

Memory that is slow is short: nothing is then taken ahead of need. Nor is it where memory comes at once, or for a
while after slabs were given back.

Event loop's thread only.
"""

from __future__ import annotations

import math

from ._clock import Clock

MOST, MOST_BYTES = 4, 32 * 2**20
"""Slabs ahead, and bytes of them."""
BATCH, BATCH_SECONDS = 16, 0.004
"""The most slabs in one grow, and the seconds after which none is begun."""
SOON = 4
"""Callers that find it empty within this many times the duration of the last grow find it empty soon."""
INSTANT, SLOW = 20e-6, 10e-3
"""Seconds: no slab is taken ahead if the last one took less, or more."""
QUICK = 2**30
"""Bytes per second with which a large slab is not slow, however long it takes."""
CALM = 15.0
"""Seconds after slabs were given back in which none is taken ahead."""


class Demand:
    """Whether the callers of one pool want objects as fast as they come."""

    def __init__(self, slab_size: int, clock: Clock) -> None:
        self._clock = clock
        self._most = min(MOST, MOST_BYTES // slab_size)
        self._slow = max(SLOW, slab_size / QUICK)
        self._slabs = 0
        self._took, self._came = 0.0, 1
        self._until = -math.inf
        self._not_before = -math.inf

    @property
    def quick(self) -> bool:
        """Whether the backend was not slow when last asked."""
        return 0 < self._took < self._slow

    @property
    def slabs_ahead(self) -> int:
        """How many slabs should be free."""
        return self._slabs if self._slabs and self._clock() < self._until else 0

    def found_empty(self, now: float) -> None:
        """Note that callers have found no object, and a slab is asked for."""
        again = self._not_before <= now < self._until
        self._slabs = min(max(1, 2 * self._slabs), self._most) if again else 0

    def delivered(self, seconds: float, slabs: int) -> None:
        """Note how many slabs a grow brings, and how long the backend took for each."""
        self._took, self._came = seconds, slabs

    def grown(self) -> None:
        """Note that they can be used from now on."""
        soon = SOON * self._took * self._came
        self._until = self._clock() + soon if INSTANT < self._took < self._slow else -math.inf

    def subsides(self) -> None:
        """Note that slabs cannot be had, or are given back."""
        self._slabs, self._not_before = 0, self._clock() + CALM
        self._took = 0.0
