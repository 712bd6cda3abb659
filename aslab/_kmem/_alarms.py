"""When sleeping callers are to be woken: one timer for all of an allocator, and a few at a time.

A timer of the loop for each would cost 1 to 2 KB; very many that expire together would all run in one turn of the
loop; and of very many that are called off asyncio sweeps its own heap at once, 30 ms for 100,000.

Always true, between calls:

    1. a sleeper with a time has an entry that is no later than that time: too early an entry is put back
    2. the task sleeps no longer than until the first entry, and never while there are turns to take
    3. in one turn of the loop it looks at no more than `AT_ONCE` entries

An entry whose sleeper has another, or has gone, is void, and no longer refers to it. Void entries leave a few at a
time.

Event loop's thread only.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from ._clock import Clock, Future
from ._wakeup import AT_ONCE, HOUSEKEEPING

SWEPT = 8
"""Entries of a heap with many void ones that each sleeper that leaves moves to a new heap."""


class Sleeper(Protocol):
    """What may be woken at a time."""

    due: float
    """When; infinity for never."""
    alarm: Entry | None
    """Its entry."""

    def ring(self, now: float) -> None:
        """Wake it, as its time has come."""
        ...


Entry = list[Any]
"""A time, a serial number that keeps the order, and who is to be woken; None if it is void."""


class Alarms:
    """Wakes sleepers at their times, and takes long walks in turns.

    :param make_future: makes what a sleeping task awaits
    """

    def __init__(self, clock: Clock, make_future: Callable[[], Future]) -> None:
        self.make_future: Callable[[], Future] = make_future
        self._clock = clock
        self._heap: list[Entry] = []
        self._old: list[Entry] = []  # another heap, being emptied into the first one without its void entries
        self._live = 0
        self._serial = itertools.count()
        self._turns: deque[Iterator[object]] = deque()
        self._until = -math.inf  # until when the task sleeps
        self._sleeps: Future | None = None

    def set(self, sleeper: Sleeper, due: float) -> None:
        """Wake ``sleeper`` at ``due``, by the loop's clock, and not at the time set before."""
        sleeper.due = due
        if sleeper.alarm is not None:
            if sleeper.alarm[0] <= due:
                return
            self._live -= 1
            sleeper.alarm[-1] = None
        entry = sleeper.alarm = [due, next(self._serial), sleeper]
        self._live += 1
        heapq.heappush(self._heap, entry)
        if due < self._until:
            self._wake()

    def forget(self, sleeper: Sleeper) -> None:
        """Wake ``sleeper`` no more."""
        entry, sleeper.alarm = sleeper.alarm, None
        if entry is None:
            return
        entry[-1] = None
        self._live -= 1
        if self._old:
            for _ in range(min(SWEPT, len(self._old))):
                entry = self._old.pop()
                if entry[-1] is not None:
                    heapq.heappush(self._heap, entry)
        elif len(self._heap) > 2 * self._live + 64:
            self._heap, self._old = self._old, self._heap

    def in_turns(self, steps: Iterator[object]) -> None:
        """Take ``steps`` one at a time, and let other tasks run in between."""
        self._turns.append(steps)
        self._wake()

    async def run(self) -> None:
        """Wake whose time has come, until cancelled."""
        while True:
            more = self._ring(self._clock())
            if self._turns and next(self._turns[0], self) is self:
                self._turns.popleft()
            if more or self._turns:
                await anyio.lowlevel.checkpoint()
            else:
                await self._sleep()

    def _ring(self, now: float) -> bool:
        """Look at a few entries. Returns whether there may be more whose time has come."""
        for _ in range(AT_ONCE):
            heap = self._old if self._old and (not self._heap or self._old[0] < self._heap[0]) else self._heap
            if not heap:
                return False
            due, _, sleeper = heap[0]
            if sleeper is not None and due > now:
                return False
            heapq.heappop(heap)
            if sleeper is not None:
                sleeper.alarm = None
                self._live -= 1
                if sleeper.due <= now:
                    sleeper.ring(now)
                elif sleeper.due < math.inf:
                    self.set(sleeper, sleeper.due)
        return True

    async def _sleep(self) -> None:
        HOUSEKEEPING.set(not self._live)
        heaps = (self._heap, self._old) if self._live else ()
        self._until = min((heap[0][0] for heap in heaps if heap), default=math.inf)
        self._sleeps = self.make_future()
        try:
            with anyio.CancelScope(deadline=self._until):
                await self._sleeps
        finally:
            self._until = -math.inf

    def _wake(self) -> None:
        if self._sleeps is not None and not self._sleeps.done():
            self._sleeps.set_result(None)
