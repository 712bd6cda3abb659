"""Physically contiguous memory: it obeys its flags, so it fails rather than getting stuck.

Emergency objects come from here; a fragmented machine refuses large ones.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel

from .._checks import boolean
from .._flags import GFP
from ..backends import Region
from ..faults import Delay
from ..faults._delay import drawing
from ._buddy import MAX_ORDER
from ._memory import Block, PhysicalMemory
from ._real import collect, free_all, give_back, pages_for, region_at_once, region_on


class Kmalloc:
    """A backend like Linux' kmalloc for large sizes: a block of 2**order pages, with the caller's flags.

    With ``vmap=True`` it maps as many single pages as needed instead, honouring the flags throughout, as SPL
    proposed for its order-5 failures.

    If cancelled or refused, it keeps nothing.

    :param per_page: seconds per page, including those added by rounding up to an order
    :param per_call: seconds before anything else
    :param vmap: use single pages, mapped together
    :param seed: the same seed gives the same delays
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        *,
        per_page: Delay = 0.0,
        per_call: Delay = 0.0,
        vmap: bool = False,
        seed: int = 0,
    ) -> None:
        boolean("vmap", vmap)
        self._per_page = drawing("per_page", per_page, seed)
        self._per_call = drawing("per_call", per_call, seed + 1)
        self.memory = memory
        self.vmap = vmap
        self.calls: int = 0
        """Calls to acquire so far."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Get pages, reclaiming as the flags allow, and real memory for them, mapped lazily. Suspends.

        :raises PageAllocationFailure: if there are none; it is logged as in dmesg
        :raises MemoryError: if it needs more than 2**10 pages, or with ``vmap``, more than all memory
        """
        self.calls += 1
        count, order = self._shape(nbytes, align)
        await anyio.sleep(self._per_call())
        blocks: list[Block] = []
        try:
            if self.vmap:
                # Several callers that hold pages and wait for one more would wait for one another.
                await collect(self.memory, blocks, count, gfp | GFP.NORETRY, self._per_page)
            else:
                await anyio.sleep(sum(self._per_page() for _ in range(1 << order)))
                blocks.append(await self.memory.get(order, gfp))
            return region_on(blocks, nbytes, align)
        except BaseException:
            free_all(self.memory, blocks)
            raise

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """As `acquire`, at once, without reclaim. From any thread.

        :raises PageAllocationFailure: if there are none; it is logged as in dmesg
        :raises MemoryError: if it needs more than 2**10 pages, or with ``vmap``, more than all memory
        :raises anyio.WouldBlock: if the delay is not 0
        """
        self.calls += 1
        count, order = self._shape(nbytes, align)
        if self._per_call() + sum(self._per_page() for _ in range(count << order)) > 0:
            raise anyio.WouldBlock
        return region_at_once(self.memory, count, order, gfp, nbytes, align)

    async def release(self, region: Region) -> None:
        """Return the pages at once, followed by a checkpoint. On any loop.

        :raises ValueError: if it was already released
        """
        give_back(self.memory, region)
        await anyio.lowlevel.checkpoint()

    def _shape(self, nbytes: int, align: int) -> tuple[int, int]:
        """The number of blocks, and their order."""
        if self.vmap:
            pages = pages_for(nbytes)
            if pages > self.memory.pages:
                raise MemoryError(f"vmap: {nbytes} bytes are more than all memory, {self.memory.pages} pages")
            return pages, 0
        order = (pages_for(max(nbytes, align)) - 1).bit_length()  # a block is aligned to its size
        if order > MAX_ORDER:
            raise MemoryError(f"kmalloc: {nbytes} bytes are order {order}, over {MAX_ORDER}")
        return 1, order
