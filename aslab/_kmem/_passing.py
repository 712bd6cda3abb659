"""Passing those who wait: what comes free may be taken by whoever runs, for a moment.

What comes free is not handed over at once. The first in line is told, and has it as soon as it runs, with all
that is free by then; whoever runs before, and is as urgent, may take it. For a caller that frees and allocates
again is served as fast as if nobody waited, where each hand-over costs two turns of the event loop. But once
the first in line has stood `BESIDE` seconds beside what came free, the next that does is handed over. (So do
the locks of WebKit and of Rust's parking_lot.) Nobody passes one that finishes something with it, or one that
needs several; but for a task that has just given an object back, which comes first for what is kept for those
who finish (_claims.py).

Event loop's thread only, but for `take_set_aside`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

from .._flags import FINISHES, ORDINARY, URGENT
from ._claims import Claims
from ._clock import Clock
from ._depot import Depot
from ._emergency import Emergency
from ._reserve import Reserve
from ._slab import Slot
from ._waiters import Line, Waiter

T = TypeVar("T")

BESIDE = 0.001
"""Seconds for which the first in line is passed by others, from when something came free."""


class Passing(Generic[T]):
    """Who may pass whom in one pool."""

    def __init__(
        self,
        line: Line[T],
        depot: Depot[T],
        reserve: Reserve[T],
        emergency: Emergency[T],
        clock: Clock,
        on_taken: Callable[[], None],
    ) -> None:
        self._line = line
        self._depot = depot
        self._reserve = reserve
        self._emergency = emergency
        self._clock = clock
        self._on_taken = on_taken
        self.beside: float = BESIDE
        self.claims: Claims[T] = Claims(reserve, self.now, BESIDE)

    def tell(self) -> bool:
        """Something came free: whether others may have it before the first in line runs, who is told."""
        if self._reserve.short:
            return False
        first = self._line.first
        if first is None or not first.idle or first.need > 1 or first.level == FINISHES:
            return False
        if first.beside is None:
            first.beside = self.now()
        elif self.has_stood(first):
            return False
        first.tell()
        return True

    @property
    def allowed(self) -> bool:
        """Whether a SLEEP caller that runs now may take what is free, though others wait."""
        first = self._line.first
        return first is None or (first.level == ORDINARY and first.need == 1 and not self.has_stood(first))

    def take(self, level: int) -> Slot[T] | None:
        """A free object for a caller that runs now, past those who wait, if it may."""
        first = self._line.first
        if first is None or (level == FINISHES and self.claims.mine) or self._may_be_passed(first, level):
            slot = self._depot.take(lingering=False)
            if slot is None and (slot := self.take_set_aside(level)) is not None:
                self._on_taken()  # from now on frees refill it, and must be heard of
            return slot
        return None

    def take_set_aside(self, level: int) -> Slot[T] | None:
        """One that is set aside or was spared, for such a caller that runs now. Any thread."""
        if level == FINISHES and len(self._reserve) + self._emergency.spare <= self.claims.others:
            return None
        return self._reserve.take(level) or self._emergency.take(level)

    def standing(self, waiter: Waiter[T]) -> int:
        """Its level, but for what is kept for MEMALLOC callers: that is for those of them who run, before.

        Whoever finishes a write with an object gives back two, and may need one of these at once to start the next
        write. Were both handed to others who wait, nobody might be left to give any back.
        """
        runs_first = waiter.level == FINISHES and waiter.need == 1 and not self.has_stood(waiter)
        return URGENT if runs_first else waiter.level

    def has_stood(self, waiter: Waiter[T]) -> bool:
        """Whether it has stood beside what came free for long enough."""
        return waiter.beside is not None and self.now() >= waiter.beside + self.beside

    def now(self) -> float:
        """The loop's time."""
        try:
            return self._clock()
        except RuntimeError:  # the loop is closed: whatever comes free now, nobody runs
            return math.inf

    def _may_be_passed(self, first: Waiter[T], level: int) -> bool:
        if self._reserve.comes_before(level) or first.level < level:
            return False
        return first.level > level or (first.need == 1 and not self.has_stood(first))
