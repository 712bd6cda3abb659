"""Waking what sleeps: the event loop from anywhere, and a task by the work that is put before it.

Always true: what a wake-up is for is in place before it is given, and whoever is woken looks for itself. So a
wake-up may be early, or one for several, and is never lost.

Who wakes whom:

    the growers    `WorkQueue.put` of a pool that wants a slab; `WorkQueue.wake` when room was made under the limit
    a waiter       `Waiter.wake`, `tell`, `give` and `fail`, called by its pool alone (_waiters.py)
    the reaper     `WorkQueue.put` of the bytes that are wanted, by a pressure source or by the limit
    the mover      `WorkQueue.put` of a pool with objects to move
    a releaser     `Wakeup.wake`, after a region was queued: frees come from any thread
    a pool         `Arena.attend_soon`, for what another thread or a finaliser did
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import socket
from collections import deque
from contextvars import ContextVar
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

W = TypeVar("W")

AT_ONCE = 32
"""Caches looked after before other tasks have their turn."""
HOUSEKEEPING: ContextVar[bool] = ContextVar("aslab_housekeeping", default=False)
"""Set in tasks that only look after others: a simulation in which no other has a timer left is stuck."""


async def take_turns(number: int) -> None:
    """In a loop over all caches, after each, counted from 0: let other tasks have their turn now and then."""
    if number % AT_ONCE == AT_ONCE - 1:
        await anyio.lowlevel.checkpoint()


class Wakeup:
    """Wakes the event loop from any thread, at any moment. One task waits; wake-ups before a wait are one.

    A byte through a socket pair is the one way that is safe in threads, signal handlers and finalisers, on every
    event loop, and that never waits: the loop's own thread may be inside any of its data structures when the
    garbage collector runs a finaliser there.
    """

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        self._woken = False

    def wake(self) -> None:
        """Make `wait` return. What is to be found then must be in place before."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # closed: nothing is woken any more
                self._sender.send(b"!")

    async def wait(self) -> None:
        """Suspend until woken."""
        await anyio.wait_readable(self._receiver)
        self._receiver.recv(64)
        # Cleared after the byte is taken: a wake-up in between needs no byte, since its work is in place already
        # and is about to be looked for.
        self._woken = False

    def __enter__(self) -> Wakeup:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Later wake-ups do nothing."""
        self._receiver.close()
        self._sender.close()


class Sleepers:
    """Tasks that are alike, and sleep until there is work for one of them. Event loop's thread."""

    def __init__(self) -> None:
        self._woken = anyio.Event()

    def wake(self) -> None:
        """There may be work: something was put, or has changed."""
        self._woken.set()

    async def more(self) -> None:
        """Suspend until woken from now on. Looks at nothing: look before."""
        if self._woken.is_set():
            self._woken = anyio.Event()
        await self._woken.wait()


class WorkQueue(Sleepers, Generic[W]):
    """Work for them, in order. Event loop's thread, but for `leave`."""

    def __init__(self) -> None:
        super().__init__()
        self._work: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._work)

    def put(self, work: W) -> None:
        """Add a piece of work, and wake who does it."""
        self._work.append(work)
        self.wake()

    def leave(self, work: W) -> None:
        """Add a piece of work, and wake nobody: `wake` must follow on the event loop's thread. Any thread."""
        self._work.append(work)

    def return_first(self, work: W) -> None:
        """Put a piece back that was taken and not done."""
        self._work.appendleft(work)

    def take_nowait(self) -> W | None:
        """The first piece, or None."""
        return self._work.popleft() if self._work else None

    async def take(self) -> W:
        """The first piece. Suspends until there is one."""
        while not self._work:
            await self.more()
        return self._work.popleft()


class UrgentWork(Sleepers, Generic[W]):
    """Work that is taken by its level, the smaller first, and within one in order; each piece is here once."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[int, int, W]] = []  # entries that are no place are void
        self.places: dict[W, tuple[int, int]] = {}
        """Each piece, its level and its number."""
        self._numbers = itertools.count()

    def put(self, work: W, level: int = 0) -> None:
        """Add a piece of work, and wake who does it."""
        self._enqueue(work, level, next(self._numbers))
        self.wake()

    def note(self, work: W, level: int) -> None:
        """A piece, if it is here, may be more urgent now, or less; it keeps its age."""
        place = self.places.get(work)
        if place is not None and place[0] != level:
            self._enqueue(work, level, place[1])

    def _enqueue(self, work: W, level: int, number: int) -> None:
        place = self.places[work] = (level, number)
        heapq.heappush(self._heap, (*place, work))

    def look(self) -> W | None:
        """The first piece that was not looked at yet, or None. `take_out` or `put_back` must follow."""
        while self._heap:
            level, number, work = heapq.heappop(self._heap)
            if self.places.get(work) == (level, number):
                return work
        return None

    def take_out(self, work: W) -> None:
        """It is done, or about to be."""
        del self.places[work]

    def put_back(self, works: list[W]) -> None:
        """They stay, where they were."""
        for work in works:
            heapq.heappush(self._heap, (*self.places[work], work))
