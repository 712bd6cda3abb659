"""The second act: growth is stuck for some seconds. Who is served meanwhile, with aslab and without?

Two services with the same requests start with no memory at all; their first grow is stuck. One has its buffers
from aslab. The other has the pool that people write: a list of free buffers, and who finds none makes more, in a
thread, while the others wait.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from ... import GFP, open_allocator
from ...backends import Backend, Mmap, Region
from ...faults import Deadlock
from ._pair import Figure, Pair
from ._resume import GRACE, slab_serves
from ._words import OURS, THEIRS, Told, Words

SIZE = 2**18
"""Bytes of a buffer."""
A_GROW = 8
"""Buffers that the plain pool makes at a time."""
CLIENTS = 16
WORK = 0.005
"""Seconds that a request holds its buffer."""
AFTERWARDS = 0.2
"""Seconds that both go on when memory has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck(Told):
    """What the second act found."""

    seconds: float
    """How long the plain pool's grow was stuck."""
    served: int
    """Requests that the service on aslab served in that time."""
    longest: float
    """The longest that one of them waited for its buffer, in seconds."""
    plain_served: int
    """Requests that the plain service served in that time."""
    plain_afterwards: int
    """Those that it served soon afterwards: it works."""
    resumed: bool
    """Whether aslab's buffers come from slabs again."""

    def words(self) -> Words:
        return [
            (f"Memory stuck for {round(self.seconds, 1):g} s: ", ""),
            (f"{self.served:,} served", OURS),
            (f", longest wait {self.longest:.2f} s; without aslab: ", ""),
            (f"{self.plain_served:,}", THEIRS),
        ]

    def wrong(self) -> list[str]:
        wrong = []
        if not self.served:
            wrong.append("no request was served while growth was stuck")
        if not self.resumed:
            wrong.append("slabs did not come again when growth was no longer stuck")
        return wrong

    def well(self) -> str:
        return "requests were served while memory was stuck"


async def stuck(pair: Pair, seconds: float) -> Stuck:
    """Serve requests while growth is stuck for so long."""
    pool = PlainPool(Deadlock(Mmap(), duration=seconds))
    async with open_allocator(slabs=Deadlock(Mmap(), duration=seconds)) as kmem:
        cache = kmem.create_cache("requests", SIZE)
        ours, theirs = _Service(cache.lease, pair.ours), _Service(pool.lease, pair.theirs)
        began = anyio.current_time()
        async with anyio.create_task_group() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(ours.ask)
                clients.start_soon(theirs.ask)
            await pool.grown.wait()
            took = anyio.current_time() - began
            served, longest, plain_served = ours.served, ours.longest, theirs.served
            await anyio.sleep(AFTERWARDS)
            clients.cancel_scope.cancel()
        await pool.aclose()
        resumed = await slab_serves(cache, GRACE)
    return Stuck(
        seconds=took,
        served=served,
        longest=longest,
        plain_served=plain_served,
        plain_afterwards=theirs.served - plain_served,
        resumed=resumed,
    )


class PlainPool:
    """A pool as people write it: it grows when it is empty, and then all wait for that."""

    def __init__(self, slabs: Backend) -> None:
        self.grown = anyio.Event()
        """Set when it has its first memory."""
        self._slabs = slabs
        self._free: list[memoryview] = []
        self._regions: list[Region] = []
        self._lock = anyio.Lock()

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[memoryview]:
        """A buffer for the time of a block."""
        async with self._lock:
            if not self._free:
                await self._grow()
            buf = self._free.pop()
        try:
            yield buf
        finally:
            self._free.append(buf)

    async def _grow(self) -> None:
        region = await self._slabs.acquire(A_GROW * SIZE, 4096, GFP.KERNEL)
        self._regions.append(region)
        self._free += (region.memory[at * SIZE : (at + 1) * SIZE] for at in range(A_GROW))
        self.grown.set()

    async def aclose(self) -> None:
        """Release all memory; no buffer may be in use."""
        for buf in self._free:
            buf.release()
        for region in self._regions:
            await self._slabs.release(region)


class _Service:
    """Requests, one after another from each client, and what came of them."""

    def __init__(self, lease: Callable[[], AbstractAsyncContextManager[Any]], figure: Figure) -> None:
        self.served = 0
        self.longest = 0.0
        self._lease = lease
        self._figure = figure

    async def ask(self) -> None:
        """One client."""
        while True:
            asked = anyio.current_time()
            async with self._lease():
                self.longest = max(self.longest, anyio.current_time() - asked)
                await anyio.sleep(WORK)
            self.served += 1
            self._figure.value = self.served
