"""The pools of the machines: how a request gets a staging buffer, and how it comes back.

A request says what it needs, and to each pool it says the same: so many buffers to begin with, or one more, to
finish what it has begun. What a pool makes of that is its own affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from .. import Buffer, Cache, open_allocator
from ..emulation._waits import WaitGraph
from ._run import current
from ._staging_driver import Driver, Pageable, PinnedPieces
from ._staging_machines import FINISHING, Machine, Server

PAUSE = 0.1
"""Seconds that a busy retry sleeps: what LMCache waits before it tries again."""
POOL = "staging pool"
"""What a request waits on, and whoever has a buffer is waited on for."""


@dataclass(slots=True, eq=False)
class Staged:
    """A buffer in somebody's hands."""

    hold: AbstractContextManager[None]
    buffer: Buffer[Any] | None = None
    """Where aslab gave it."""

    @property
    def pinned(self) -> bool:
        """Whether the GPU can copy from it at full speed."""
        return self.buffer is None or not self.buffer.emergency


class Pool(Protocol):
    """What a request sees."""

    async def begin(self, count: int) -> list[Staged]:
        """So many buffers for somebody who begins, and has none."""
        ...

    async def finish(self) -> Staged:
        """One buffer for somebody who has something that comes back once this is served."""
        ...

    def give(self, staged: Staged) -> None:
        """Take a buffer back."""
        ...


class Desk:
    """What all pools note of those who come: who waits on whom, and how often somebody looked for a buffer."""

    def __init__(self, waits: WaitGraph) -> None:
        self.waits = waits
        self.looks: Counter[int] = Counter()
        """By the second in which they were."""

    def look(self) -> None:
        """Somebody looks whether a buffer is free."""
        self.looks[int(current().time())] += 1

    def waiting(self) -> AbstractContextManager[None]:
        """While this lasts, the task waits on whoever has a buffer."""
        self.look()
        return self.waits.on(POOL)

    def hand_out(self, buffer: Buffer[Any] | None = None) -> Staged:
        """From here on who waits on the pool waits on this task."""
        staged = Staged(self.waits.held(POOL), buffer)
        staged.hold.__enter__()
        return staged

    def take_back(self, staged: Staged) -> None:
        """It does not any more."""
        staged.hold.__exit__(None, None, None)


class OneByOne(ABC):
    """A pool that knows single buffers: two are had one after the other, and all who ask are alike."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def begin(self, count: int) -> list[Staged]:
        """One after the other."""
        return [await self.finish() for _ in range(count)]

    @abstractmethod
    async def finish(self) -> Staged:
        """The next buffer for whoever asks."""

    @abstractmethod
    def give(self, staged: Staged) -> None:
        """Take a buffer back."""


class Daemon:
    """Pins a piece more, in the background, whenever over half of what is pinned is in use, up to the limit."""

    def __init__(self, server: Server, driver: Driver, add: Callable[[int], None]) -> None:
        self.buffers: int = server.started
        """Pinned so far."""
        self._server = server
        self._driver = driver
        self._add = add
        self._wanted = anyio.Event()
        driver.had(server.started * server.buffer)

    def in_use(self, buffers: int) -> None:
        """So many are."""
        if 2 * buffers > self.buffers:
            self._wanted.set()

    async def run(self) -> None:
        """Until the limit is reached."""
        while self.buffers < self._server.limit:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            count = min(self._server.piece, self._server.limit - self.buffers)
            await self._driver.pin(count * self._server.buffer)
            self.buffers += count
            self._add(count)


class BusyRetry(OneByOne):
    """Try; sleep; try again. Who comes at the right moment has it."""

    def __init__(self, desk: Desk, server: Server, driver: Driver) -> None:
        super().__init__(desk)
        self._free = server.started
        self.daemon: Daemon = Daemon(server, driver, self._add)

    async def finish(self) -> Staged:
        """As soon as a try succeeds."""
        with self._desk.waiting():
            while not self._free:
                await anyio.sleep(PAUSE)
                self._desk.look()
        self._free -= 1
        self.daemon.in_use(self.daemon.buffers - self._free)
        return self._desk.hand_out()

    def give(self, staged: Staged) -> None:
        """It is free, and nobody is told."""
        self._desk.take_back(staged)
        self._free += 1

    def _add(self, count: int) -> None:
        self._free += count


class Counted(OneByOne):
    """A counting semaphore: first come, first served."""

    def __init__(self, desk: Desk, server: Server, driver: Driver) -> None:
        super().__init__(desk)
        self._free = anyio.Semaphore(server.started)
        self._out = 0
        self.daemon: Daemon = Daemon(server, driver, self._add)

    async def finish(self) -> Staged:
        """In turn."""
        with self._desk.waiting():
            await self._free.acquire()
        self._out += 1
        self.daemon.in_use(self._out)
        return self._desk.hand_out()

    def give(self, staged: Staged) -> None:
        """The first in line has it."""
        self._desk.take_back(staged)
        self._out -= 1
        self._free.release()

    def _add(self, count: int) -> None:
        for _ in range(count):
            self._free.release()


class PinInCaller(OneByOne):
    """Who finds none free pins one, and waits for the driver itself; at the limit, if there is one, for a free."""

    def __init__(self, desk: Desk, server: Server, driver: Driver, *, bounded: bool) -> None:
        super().__init__(desk)
        self._server = server
        self._driver = driver
        self._free = anyio.Semaphore(server.started)
        self._more = server.limit - server.started if bounded else None
        driver.had(server.started * server.buffer)

    async def finish(self) -> Staged:
        """A free one, or one of its own making."""
        with self._desk.waiting():
            if self._free.value or self._more == 0:
                await self._free.acquire()
            else:
                if self._more is not None:
                    self._more -= 1
                await self._driver.pin(self._server.buffer)
        return self._desk.hand_out()

    def give(self, staged: Staged) -> None:
        """It stays pinned, for the next."""
        self._desk.take_back(staged)
        self._free.release()


class OfAslab(OneByOne):
    """A cache of aslab's, asked as the others are: one by one, with no word about anybody."""

    def __init__(self, desk: Desk, cache: Cache[Any]) -> None:
        super().__init__(desk)
        self.cache = cache
        self._out: dict[Staged, None] = {}

    async def finish(self) -> Staged:
        """In turn."""
        with self._desk.waiting():
            buffer = await self.cache.alloc()
        return self.hand_out(buffer)

    def give(self, staged: Staged) -> None:
        """To the first in line, by aslab's order."""
        self._desk.take_back(staged)
        del self._out[staged]
        assert staged.buffer is not None
        staged.buffer.free()

    def give_all(self) -> None:
        """What is still out where a run is cut off."""
        for staged in tuple(self._out):
            self.give(staged)

    def hand_out(self, buffer: Buffer[Any]) -> Staged:
        """Note that it is out."""
        staged = self._desk.hand_out(buffer)
        self._out[staged] = None
        return staged


class OfAslabCareful(OfAslab):
    """The same, told what can be known: who needs two, and who gives memory back."""

    async def begin(self, count: int) -> list[Staged]:
        """All or none, in one turn."""
        with self._desk.waiting():
            buffers = await self.cache.alloc_many(count)
        return [self.hand_out(buffer) for buffer in buffers]

    async def finish(self) -> Staged:
        """Before those who begin, if need be of what is set aside."""
        with self._desk.waiting():
            buffer = await self.cache.alloc(FINISHING)
        return self.hand_out(buffer)


@asynccontextmanager
async def open_pool(machine: Machine, server: Server, driver: Driver, desk: Desk) -> AsyncIterator[Pool]:
    """The pool of a machine, with what works for it in the background."""
    if machine.pool == "aslab":
        async with _open_aslab(machine, server, driver, desk) as pool:
            yield pool
    elif machine.pool == "caller":
        yield PinInCaller(desk, server, driver, bounded=machine.bounded)
    else:
        counted = (BusyRetry if machine.pool == "retry" else Counted)(desk, server, driver)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(counted.daemon.run, name="pin daemon")
            yield counted
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _open_aslab(machine: Machine, server: Server, driver: Driver, desk: Desk) -> AsyncIterator[Pool]:
    limit = server.limit * server.buffer
    async with open_allocator(slabs=PinnedPieces(driver), emergency=Pageable(), limit=limit) as kmem:
        cache = kmem.create_cache(
            "staging",
            server.buffer,
            objects_per_slab=server.piece,
            max_slab_size=server.piece * server.buffer,
            reserve=server.reserve if machine.careful else 0,
        )
        await cache.prefill(server.started - (server.reserve if machine.careful else 0))
        await kmem.ready()
        pool = (OfAslabCareful if machine.careful else OfAslab)(desk, cache)
        try:
            yield pool
        finally:
            pool.give_all()
