"""The pools that are aslab caches: one used like any other pool, and one told what is known of each request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ... import Buffer, Cache, open_allocator
from ._desk import Desk, OneByOne, Staged
from ._driver import Driver, Pageable, PinnedPieces
from ._machines import FINISHING, Machine, Server


class OfAslab(OneByOne):
    """An aslab cache, used like the other pools: one buffer at a time, with no hints."""

    def __init__(self, desk: Desk, cache: Cache[Any]) -> None:
        super().__init__(desk)
        self.cache = cache
        self._out: dict[Staged, None] = {}

    async def finish(self) -> Staged:
        """The next buffer in turn."""
        with self._desk.waiting():
            buffer = await self.cache.alloc()
        return self.hand_out(buffer)

    def give(self, staged: Staged) -> None:
        """Free a buffer; aslab decides who is next."""
        self._desk.take_back(staged)
        del self._out[staged]
        assert staged.buffer is not None
        staged.buffer.free()

    def give_all(self) -> None:
        """Free what is still in use when a run is cut off."""
        for staged in tuple(self._out):
            self.give(staged)

    def hand_out(self, buffer: Buffer[Any]) -> Staged:
        """Record that a buffer is in use."""
        staged = self._desk.hand_out(buffer)
        self._out[staged] = None
        return staged


class OfAslabCareful(OfAslab):
    """The same, with hints: who needs two buffers, and who will free memory."""

    async def begin(self, count: int) -> list[Staged]:
        """All or none, in one allocation."""
        with self._desk.waiting():
            buffers = await self.cache.alloc_many(count)
        return [self.hand_out(buffer) for buffer in buffers]

    async def finish(self) -> Staged:
        """Served before requests that begin, from the reserve if necessary."""
        with self._desk.waiting():
            buffer = await self.cache.alloc(FINISHING)
        return self.hand_out(buffer)


@asynccontextmanager
async def open_cache(machine: Machine, server: Server, driver: Driver, desk: Desk) -> AsyncIterator[OfAslab]:
    """A cache over pinned pieces, with pageable emergency objects."""
    limit = server.limit * server.buffer
    async with open_allocator(slabs=PinnedPieces(driver), emergency=Pageable(), limit=limit) as kmem:
        cache = kmem.create_cache(
            "staging",
            server.buffer,
            objects_per_slab=server.piece,
            max_slab_size=server.piece * server.buffer,
            memalloc_reserve=server.reserve if machine.careful else 0,
        )
        await cache.prefill(server.started - (server.reserve if machine.careful else 0))
        await kmem.ready()
        pool = (OfAslabCareful if machine.careful else OfAslab)(desk, cache)
        try:
            yield pool
        finally:
            pool.give_all()
