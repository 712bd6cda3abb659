"""Waking what sleeps: the event loop from any thread, a task by putting work into its queue, a caller at its time.

Always true:

    1. the work is in place before the wake-up that announces it
    2. a woken task looks for itself what there is to do

So a wake-up may come early, or stand for several, and none is lost.

Who wakes whom:

    the growers    `WorkQueue.put` of a pool that wants a slab; `WorkQueue.wake` when there is room under the limit
    a waiter       `Waiter.wake`, `tell`, `give` and `fail`: by a free (_handover.py), by room for an emergency
                   object (_admission.py), by growth and errors (_pool.py), by the making of its own (_attempts.py)
                   and `Waiter.ring`, by its alarm
    the reaper     `WorkQueue.put` of the bytes wanted, by a pressure source or by the limit
    the mover      `WorkQueue.put` of a pool with objects to move
    a releaser     `Wakeup.wake` after a region was queued, as frees come from any thread
    a pool         `Arena.attend_soon`, after another thread or a finaliser left work
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

from ._clock import Clock, Future

W = TypeVar("W")

AT_ONCE = 32
"""Pools looked after, or callers woken, before other tasks have their turn."""
SWEPT = 8
"""Entries of a heap with many void ones that each sleeper that leaves moves to a new heap."""
HOUSEKEEPING: ContextVar[bool] = ContextVar("aslab_housekeeping", default=False)
"""Set in tasks whose timers only serve others: a simulation in which no other task has a timer left is stuck."""


async def take_turns(number: int) -> None:
    """Let other tasks run now and then: called after each pool in a loop, with its number, counted from 0."""
    if number % AT_ONCE == AT_ONCE - 1:
        await anyio.lowlevel.checkpoint()


class Wakeup:
    """Wakes the event loop from any thread, at any moment. One task waits; several wake-ups before a wait are one.

    A byte through a socket pair is the one way that is safe in threads, signal handlers and finalisers, works on
    every event loop, and never blocks: the loop's own thread may be inside any of its data structures when the
    garbage collector runs a finaliser there.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._woken = False

    def wake(self) -> None:
        """Make `wait` return. The work must be in place before. Any thread, finalisers included."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # closed: there is nothing to wake any more
                self._sender.send(b"!")

    async def wait(self) -> None:
        """Suspend until woken."""
        await anyio.wait_readable(self._receiver)
        self._receiver.recv(64)
        # Cleared after the byte is taken: a wake-up in between needs no byte, since its work is already in place
        # and the task is about to look for it.
        self._woken = False

    def __enter__(self) -> Wakeup:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the sockets: later wake-ups do nothing."""
        self._receiver.close()
        self._sender.close()


class Sleepers:
    """Tasks that are alike, and sleep until there is work for one of them. Event loop's thread only."""

    def __init__(self) -> None:
        self._woken = anyio.Event()
        self.changes: int = 0
        """Counts the calls of `wake`."""

    def wake(self) -> None:
        """Wake them, as there may be work: something was put, or has changed."""
        self.changes += 1
        self._woken.set()

    async def more(self) -> None:
        """Suspend until the next `wake`. It ignores work that is already there, so look for that first."""
        if self._woken.is_set():
            self._woken = anyio.Event()
        await self._woken.wait()


class WorkQueue(Sleepers, Generic[W]):
    """Work for such tasks, in order. Event loop's thread only, except `leave`."""

    def __init__(self) -> None:
        super().__init__()
        self._work: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._work)

    def put(self, work: W) -> None:
        """Add a piece of work, and wake its task."""
        self._work.append(work)
        self.wake()

    def leave(self, work: W) -> None:
        """Add a piece of work and wake nobody: `wake` must follow on the event loop's thread. Any thread."""
        self._work.append(work)

    def return_first(self, work: W) -> None:
        """Put back, as the first, a piece that was taken and not done."""
        self._work.appendleft(work)

    def take_nowait(self) -> W | None:
        """Take the first piece, or None."""
        return self._work.popleft() if self._work else None

    async def take(self) -> W:
        """Take the first piece. Suspends until there is one."""
        while not self._work:
            await self.more()
        return self._work.popleft()


class UrgentWork(Sleepers, Generic[W]):
    """Work taken by level, the smallest first, and in order within a level; each piece is queued once."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[int, int, W]] = []  # an entry that differs from its piece's place is void
        self.places: dict[W, tuple[int, int]] = {}
        """The level and number of each piece."""
        self._numbers = itertools.count()

    def put(self, work: W, level: int = 0) -> None:
        """Add a piece of work at ``level``, and wake its task."""
        if len(self._heap) > 2 * len(self.places) + 64:  # without the void entries, which may hold much alive
            self._heap = [entry for entry in self._heap if self.places.get(entry[2]) == entry[:2]]
            heapq.heapify(self._heap)
        self._enqueue(work, level, next(self._numbers))
        self.wake()

    def note(self, work: W, level: int) -> None:
        """Change the level of a piece, if it is queued; it keeps its number."""
        place = self.places.get(work)
        if place is not None and place[0] != level:
            self._enqueue(work, level, place[1])

    def _enqueue(self, work: W, level: int, number: int) -> None:
        place = self.places[work] = (level, number)
        heapq.heappush(self._heap, (*place, work))

    def look(self) -> W | None:
        """Return the first piece not yet looked at, or None. `take_out` or `put_back` must follow."""
        while self._heap:
            level, number, work = heapq.heappop(self._heap)
            if self.places.get(work) == (level, number):
                return work
        return None

    def take_out(self, work: W) -> None:
        """Remove a piece that is done, or about to be, or that is not to be done any more."""
        del self.places[work]

    def put_back(self, works: list[W]) -> None:
        """Put pieces that were looked at back into their places, but for those taken out meanwhile."""
        for work in works:
            if work in self.places:
                heapq.heappush(self._heap, (*self.places[work], work))


class Timed(Protocol):
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
    """Wakes sleepers at their times, by one timer for all of an allocator, and takes long walks in turns.

    A timer of the loop for each would cost 1 to 2 KB; very many that expire together would all run in one turn of
    the loop; and of very many that are called off asyncio sweeps its own heap at once, 30 ms for 100,000.

    Always true, between calls:

        1. a sleeper with a time has an entry that is no later than that time: too early an entry is put back
        2. the task sleeps no longer than until the first entry, and never while there are turns to take
        3. in one turn of the loop it looks at no more than `AT_ONCE` entries

    An entry whose sleeper has another, or has gone, is void, and no longer refers to it. Void entries leave a few
    at a time. Event loop's thread only.

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

    def set(self, sleeper: Timed, due: float) -> None:
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

    def forget(self, sleeper: Timed) -> None:
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
