"""Slabs from anonymous private mappings: page-aligned, faulted in beforehand, and unmapped when given back.

The mappings are private, so a forked child writes into copies and never into its parent's slabs.

Huge pages are opt-in. They are faster to use, but take an unpredictable time to get: faulting in 256 MiB of them
took between 30 ms and 1,000 ms on the same machine.
"""

from __future__ import annotations

import contextlib
import mmap
from functools import partial

from .._flags import GFP
from ._libc import PAGE_SIZE, address_of, madvise, prefault
from ._protocol import Region
from ._threads import run_blocking

HUGE_PAGE = 2 * 2**20


class Mmap:
    """Anonymous memory from the kernel; the default for slabs. Usable on any loop, and on several.

    ``huge_pages=True`` asks for transparent huge pages, and uses ordinary ones if the kernel refuses; mappings
    are then aligned to 2 MiB. User space cannot influence how the kernel reclaims, so the GFP flags have no
    effect here.
    """

    def __init__(self, *, huge_pages: bool = False) -> None:
        self.huge_pages = huge_pages

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Map and fault in, in a thread.

        :raises MemoryError: if the kernel has no memory or no address space
        """
        return await run_blocking(partial(self._map, nbytes, align, populate=True), undo=_unmap)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Map without faulting in, because that would block: the caller takes the page faults.

        :raises MemoryError: if the kernel has no address space
        """
        return self._map(nbytes, align, populate=False)

    async def release(self, region: Region) -> None:
        """Give the pages back, in a thread.

        Memory that is still exported (by an object that a ``ctor`` built and the caller kept) stays mapped until
        the last export is gone.
        """
        await run_blocking(partial(_unmap, region))

    def _map(self, nbytes: int, align: int, *, populate: bool) -> Region:
        if self.huge_pages:
            align = max(align, HUGE_PAGE)
        slack = align - PAGE_SIZE if align > PAGE_SIZE else 0
        try:
            mapping = mmap.mmap(-1, nbytes + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as exc:
            raise MemoryError(f"cannot map {nbytes} bytes: {exc}") from exc
        whole = memoryview(mapping)
        start = -address_of(whole) % align
        region = Region(whole[start : start + nbytes], address_of(whole) + start, mapping)
        whole.release()
        if self.huge_pages:
            with contextlib.suppress(OSError):
                madvise(region.address, nbytes, mmap.MADV_HUGEPAGE)
        if populate:
            try:
                prefault(region.address, nbytes)
            except MemoryError:
                _unmap(region)
                raise
        return region


def _unmap(region: Region) -> None:
    mapping, region.token = region.token, None
    # Memory that is still exported keeps its mapping, which goes away with the last export.
    with contextlib.suppress(BufferError):
        region.memory.release()
        if isinstance(mapping, mmap.mmap):
            mapping.close()
