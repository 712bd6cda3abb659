"""Single objects, aligned. For emergency objects: small next to a slab, quick to get."""

from __future__ import annotations

import ctypes

from .._flags import GFP
from ._mmap import Mmap
from ._protocol import Region
from ._threads import NoThread

INLINE = 256 * 2**10  # bytes that are got and zeroed faster than a thread is asked (about 50 µs)


class Heap:
    """Memory from the process's heap; the default for emergency objects. Usable on any loop, and on several.

    Small objects come from malloc, at once. Larger ones are mappings of their own, as malloc itself would
    make them, but faulted in beforehand, in a thread. The memory goes when the last thing that exports
    it is gone. User space has no say in how the kernel reclaims, so the GFP flags change nothing here.
    """

    def __init__(self) -> None:
        self._large = Mmap()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate zeroed memory; in a thread where that takes time, if there is one to be had.

        :raises MemoryError: if there is none
        """
        if nbytes <= INLINE:
            return _small(nbytes, align)
        try:
            return await self._large.acquire(nbytes, align, gfp)
        except NoThread:  # an object that is not faulted in is better than none
            return self._large.acquire_nowait(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate. Large objects are not faulted in: that would block. The caller meets the page faults.

        :raises MemoryError: if there is none
        """
        if nbytes <= INLINE:
            return _small(nbytes, align)
        return self._large.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Let go; in a thread where that takes time."""
        if isinstance(region.token, ctypes.Array):
            region.token = None
            region.memory = memoryview(b"")
        else:
            await self._large.release(region)


def _small(nbytes: int, align: int) -> Region:
    # The array owns its memory, and every view owns the array, so it cannot be freed too early.
    block = (ctypes.c_ubyte * (nbytes + align))()
    region = Region.over(block, align=align, token=block)
    region.memory = region.memory[:nbytes]
    return region
