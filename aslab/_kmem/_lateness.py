"""Whether growth is late: the backend, and not the event loop that has not heard of it yet.

A waiter whose time is up on a busy loop knows little: the thread that brings its slab may have finished long ago.
So the loop first gets what it owes: the time by which it was late to tell the waiter, since all else was as late,
and some turns, in which it delivers what has come. One waiter sees to that, for all whose time is up with it.

Event loop's thread only.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import anyio.lowlevel

from ._clock import Clock
from ._growth import Growth
from ._state import Mark
from ._waiters import Waiter

T = TypeVar("T")

_GROWING = Mark.GROWING.value
TURNS = 10
"""Turns of the loop; a thread takes up to eight to begin and be heard of."""


class Lateness(Generic[T]):
    """The verdict on the growth of one pool."""

    def __init__(self, growth: Growth[T], clock: Clock) -> None:
        self._growth = growth
        self._clock = clock
        self._deciding = False
        self.undecided: dict[Waiter[T], None] = {}  # those whose time is up, while one of them looks
        self._late_from = -math.inf  # when the growth was asked for that was found late

    async def found(self, waiter: Waiter[T], lag: float) -> bool:
        """Suspend for what the loop owes to a waiter whose time is up. Whether growth is late; else look again.

        :param lag: seconds by which the waiter was told late
        """
        if self._late_from == self._growth.due_from:
            return True
        if self._deciding:
            self.undecided[waiter] = None
            await waiter.suspend(math.inf)
            self.undecided.pop(waiter, None)
            return False
        self._deciding = True
        try:
            if lag > 0:
                await waiter.suspend(self._clock() + lag)
            for _ in range(TURNS):
                if self._is_well(waiter):
                    return False
                await anyio.lowlevel.checkpoint()
            if self._is_well(waiter):
                return False
            self._late_from = self._growth.due_from
            return True
        finally:
            self._deciding = False
            told, self.undecided = self.undecided, {}
            for other in told:
                other.wake()

    def _is_well(self, waiter: Waiter[T]) -> bool:
        if waiter.slots is not None or waiter.error is not None or self._growth.arrived:
            return True
        return not self._growth.marks.bits & _GROWING and self._growth.at_limit
