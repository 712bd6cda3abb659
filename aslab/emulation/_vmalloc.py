"""Virtually contiguous memory: any free pages will do, but one lock guards the address space.

Its page tables are allocated with flags that the caller did not choose: the reason for emergency objects.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel

from .._checks import boolean
from .._flags import GFP
from ..backends import Region
from ..faults import Delay
from ..faults._delay import drawing
from ._address_space import AddressSpace
from ._memory import Block, PhysicalMemory
from ._real import collect, free_all, give_back, pages_for, region_at_once, region_on

PAGES_PER_TABLE = 512  # x86-64: one page with 8 bytes for each page


class Vmalloc:
    """A backend like Linux' vmalloc: slabs come from here.

    An acquire waits for its delay, searches the address space under the lock, allocates single pages with the
    caller's flags, 64 at a time, and then one page table page per 512 of them. Page tables are allocated with
    `GFP.KERNEL` regardless of the caller's flags, as the kernel did at the time (OpenZFS SPL, the change
    "Emergency slab objects", 2012), so a caller that must not start I/O may end up waiting for writeback. With
    ``honour_gfp`` they are allocated with the caller's flags.

    If cancelled or refused, it keeps nothing. A release takes no lock: vfree returns address space lazily.

    :param per_page: seconds per page
    :param per_call: seconds before anything else
    :param lock: seconds to search the address space, under its lock
    :param honour_gfp: allocate page tables with the caller's flags
    :param seed: the same seed gives the same delays
    :param space: an address space to share with other Vmallocs
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        *,
        per_page: Delay = 0.0,
        per_call: Delay = 0.0,
        lock: Delay = 0.0,
        honour_gfp: bool = False,
        seed: int = 0,
        space: AddressSpace | None = None,
    ) -> None:
        boolean("honour_gfp", honour_gfp)
        self._per_page = drawing("per_page", per_page, seed)
        self._per_call = drawing("per_call", per_call, seed + 1)
        self._lock = drawing("lock", lock, seed + 2)
        self.memory = memory
        self.space: AddressSpace = AddressSpace() if space is None else space
        """The address space: its lock, and how long callers waited for and held it."""
        self.honour_gfp = honour_gfp
        self.calls: int = 0
        """Calls to acquire so far."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Get pages, and real memory for them, mapped lazily. Suspends; may be cancelled at any time.

        :raises PageAllocationFailure: if there are not enough pages, or page tables
        :raises MemoryError: if it is more than all memory, which Linux refuses up front
        """
        self.calls += 1
        pages = self._pages_for(nbytes)
        await anyio.sleep(self._per_call())
        await self.space.search(self._lock())
        blocks: list[Block] = []
        try:
            await collect(self.memory, blocks, pages, gfp, self._per_page)
            for _ in range(_tables_for(pages)):
                blocks.append(await self.memory.get(0, gfp if self.honour_gfp else GFP.KERNEL))  # noqa: PERF401
            return region_on(blocks, nbytes, align)
        except BaseException:
            free_all(self.memory, blocks)
            raise

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """As `acquire`, at once, and with the caller's flags throughout. From any thread.

        :raises PageAllocationFailure: if there are not enough pages, or page tables
        :raises MemoryError: if it is more than all memory
        :raises anyio.WouldBlock: if the delay is not 0, or the address space is locked
        """
        self.calls += 1
        pages = self._pages_for(nbytes)
        delay = self._per_call() + self._lock() + sum(self._per_page() for _ in range(pages))
        if delay > 0 or self.space.held:
            raise anyio.WouldBlock
        return region_at_once(self.memory, pages + _tables_for(pages), 0, gfp, nbytes, align)

    async def release(self, region: Region) -> None:
        """Return the pages at once, followed by a checkpoint. On any loop.

        :raises ValueError: if it was already released
        """
        give_back(self.memory, region)
        await anyio.lowlevel.checkpoint()

    def _pages_for(self, nbytes: int) -> int:
        pages = pages_for(nbytes)
        if pages > self.memory.pages:
            raise MemoryError(f"vmalloc: {nbytes} bytes are more than all memory, {self.memory.pages} pages")
        return pages


def _tables_for(pages: int) -> int:
    return -(-pages // PAGES_PER_TABLE)
