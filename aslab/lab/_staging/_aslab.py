"""The pools that are a cache of aslab's: one asked as any pool is, and one told what can be known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ... import Buffer, Cache, open_allocator
from ._desk import Desk, OneByOne, Staged
from ._driver import Driver, Pageable, PinnedPieces
from ._machines import FINISHING, Machine, Server


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
