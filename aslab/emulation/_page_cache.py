"""Memory that can be reclaimed: file pages, which are dropped if clean and written back first if dirty.

This is where an allocation that may reclaim spends its time, and one that must not start I/O gets little.
"""

from __future__ import annotations

import anyio

from .._checks import whole_number
from .._flags import GFP
from ..faults import Delay
from ..faults._delay import drawing
from ._memory import Block, PhysicalMemory

SWAP_CLUSTER_MAX = 32  # Linux: pages reclaimed at a time


class PageCache:
    """Holds pages of a memory and gives them up to direct reclaim. For one event loop.

    Registers itself as the ``reclaimer`` of the memory. A reclaim drops up to 32 clean pages, or as many as
    requested if that is more. If there are none, and the caller may do IO and FS, it writes back that many dirty
    pages instead, one after another, and frees each. A caller that may not gets nothing, at once. If cancelled,
    it keeps what it has not freed yet.

    :param clean: pages that can be dropped
    :param dirty: pages that must be written first
    :param scan: seconds per clean page
    :param writeback: seconds per dirty page
    :param seed: the same seed gives the same delays
    :raises PageAllocationFailure: if the memory does not have that many pages above ``min``; none are kept
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        *,
        clean: int = 0,
        dirty: int = 0,
        scan: Delay = 0.0,
        writeback: Delay = 0.0,
        seed: int = 0,
    ) -> None:
        whole_number("clean", clean, 0)
        whole_number("dirty", dirty, 0)
        self._scan = drawing("scan", scan, seed)
        self._writeback = drawing("writeback", writeback, seed + 1)
        self.memory = memory
        self.clean: int = clean
        """Clean pages held, including those being dropped."""
        self.dirty: int = dirty
        """Dirty pages held, including those being written."""
        self.reclaims: int = 0
        """Times it was asked to free memory."""
        self.written: int = 0
        """Dirty pages written back."""
        pages: list[Block] = []
        try:
            for _ in range(clean + dirty):
                pages.append(memory.allocate(0, GFP.KERNEL))  # noqa: PERF401 - on failure, some are there
        except MemoryError:
            for page in pages:
                memory.free(page)
            raise
        self._clean, self._dirty = pages[:clean], pages[clean:]
        memory.reclaimer = self.reclaim

    async def reclaim(self, pages: int, gfp: GFP) -> int:
        """Free about that many pages, as far as ``gfp`` allows. Returns how many. Suspends if it frees any."""
        self.reclaims += 1
        wanted = max(pages, SWAP_CLUSTER_MAX)
        freed = 0
        while freed < wanted and self._clean:
            freed += await self._drop(min(wanted - freed, SWAP_CLUSTER_MAX))
        if freed or GFP.IO | GFP.FS not in gfp:
            return freed
        while freed < wanted and self._dirty:
            freed += await self._write()
        return freed

    async def _drop(self, most: int) -> int:
        isolated = self._clean[-most:]
        del self._clean[-most:]  # a concurrent reclaim finds others, or none
        try:
            await anyio.sleep(sum(self._scan() for _ in isolated))
        except BaseException:
            self._clean += isolated
            raise
        self.clean -= len(isolated)
        for page in isolated:
            self.memory.free(page)
        return len(isolated)

    async def _write(self) -> int:
        page = self._dirty.pop()
        try:
            await anyio.sleep(self._writeback())
        except BaseException:
            self._dirty.append(page)
            raise
        self.dirty -= 1
        self.written += 1
        self.memory.free(page)
        return 1
