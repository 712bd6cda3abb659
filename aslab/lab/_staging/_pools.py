"""The pools that are not aslab's: how a request gets a staging buffer, and how it frees it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from ._aslab import open_cache
from ._desk import Desk, OneByOne, Pool, Staged
from ._driver import Driver
from ._machines import Machine, Server

PAUSE = 0.1
"""Seconds between retries, as in LMCache."""


class Daemon:
    """Pins another piece in the background whenever more than half of the buffers are in use, up to the limit."""

    def __init__(self, server: Server, driver: Driver, add: Callable[[int], None]) -> None:
        self.buffers: int = server.started
        """Buffers pinned so far."""
        self._server = server
        self._driver = driver
        self._add = add
        self._wanted = anyio.Event()
        driver.had(server.started * server.buffer)

    def in_use(self, buffers: int) -> None:
        """Note how many buffers are in use."""
        if 2 * buffers > self.buffers:
            self._wanted.set()

    async def run(self) -> None:
        """Pin pieces until the limit is reached."""
        while self.buffers < self._server.limit:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            count = min(self._server.piece, self._server.limit - self.buffers)
            await self._driver.pin(count * self._server.buffer)
            self.buffers += count
            self._add(count)


class BusyRetry(OneByOne):
    """Try, sleep, try again. Whoever comes at the right moment wins."""

    def __init__(self, desk: Desk, server: Server, driver: Driver) -> None:
        super().__init__(desk)
        self._free = server.started
        self.daemon: Daemon = Daemon(server, driver, self._add)

    async def finish(self) -> Staged:
        """Retry until a buffer is free."""
        with self._desk.waiting():
            while not self._free:
                await anyio.sleep(PAUSE)
                self._desk.look()
        self._free -= 1
        self.daemon.in_use(self.daemon.buffers - self._free)
        return self._desk.hand_out()

    def give(self, staged: Staged) -> None:
        """Free a buffer without waking anybody."""
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
        """Wait in line for a buffer."""
        with self._desk.waiting():
            await self._free.acquire()
        self._out += 1
        self.daemon.in_use(self._out)
        return self._desk.hand_out()

    def give(self, staged: Staged) -> None:
        """Free a buffer for the first in line."""
        self._desk.take_back(staged)
        self._out -= 1
        self._free.release()

    def _add(self, count: int) -> None:
        for _ in range(count):
            self._free.release()


class TwoLines(OneByOne):
    """Two queues: requests that finish come before those that begin, and some buffers are reserved for them."""

    def __init__(self, desk: Desk, server: Server, driver: Driver) -> None:
        super().__init__(desk)
        self._free = server.started
        self._kept = server.reserve
        self._finishing: deque[anyio.Event] = deque()
        self._beginning: deque[anyio.Event] = deque()
        self.daemon: Daemon = Daemon(server, driver, self._add)

    async def begin(self, count: int) -> list[Staged]:
        """Allocate one after the other, in the second queue."""
        return [await self._stand(self._beginning) for _ in range(count)]

    async def finish(self) -> Staged:
        """Wait in the first queue."""
        return await self._stand(self._finishing)

    def give(self, staged: Staged) -> None:
        """Free a buffer for the first request that may have it."""
        self._desk.take_back(staged)
        self._add(1)

    async def _stand(self, line: deque[anyio.Event]) -> Staged:
        turn = anyio.Event()
        line.append(turn)
        with self._desk.waiting():
            self._add(0)
            await turn.wait()
        self.daemon.in_use(self.daemon.buffers - self._free)
        return self._desk.hand_out()

    def _add(self, count: int) -> None:
        self._free += count
        while self._free and self._finishing:
            self._free -= 1
            self._finishing.popleft().set()
        while self._free > self._kept and self._beginning:
            self._free -= 1
            self._beginning.popleft().set()


class PinInCaller(OneByOne):
    """Pins a buffer in the calling task if none is free; at the limit, if any, waits for a free buffer."""

    def __init__(self, desk: Desk, server: Server, driver: Driver, *, bounded: bool) -> None:
        super().__init__(desk)
        self._server = server
        self._driver = driver
        self._free = anyio.Semaphore(server.started)
        self._more = server.limit - server.started if bounded else None
        driver.had(server.started * server.buffer)

    async def finish(self) -> Staged:
        """Take a free buffer, or pin one."""
        with self._desk.waiting():
            if self._free.value or self._more == 0:
                await self._free.acquire()
            else:
                if self._more is not None:
                    self._more -= 1
                await self._driver.pin(self._server.buffer)
        return self._desk.hand_out()

    def give(self, staged: Staged) -> None:
        """Free a buffer, which stays pinned."""
        self._desk.take_back(staged)
        self._free.release()


FED: dict[str, type[BusyRetry | Counted | TwoLines]] = {
    "retry": BusyRetry,
    "semaphore": Counted,
    "lines": TwoLines,
}
"""The pools that a daemon refills."""


@asynccontextmanager
async def open_pool(machine: Machine, server: Server, driver: Driver, desk: Desk) -> AsyncIterator[Pool]:
    """The pool of a machine, with its background task."""
    if machine.pool == "aslab":
        async with open_cache(machine, server, driver, desk) as cache:
            yield cache
    elif machine.pool == "caller":
        yield PinInCaller(desk, server, driver, bounded=machine.bounded)
    else:
        pool = FED[machine.pool](desk, server, driver)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.daemon.run, name="pin daemon")
            yield pool
            tasks.cancel_scope.cancel()
