"""Single aligned objects, for emergency objects: small compared with a slab, and quick to allocate."""

from __future__ import annotations

from .._flags import GFP
from .._reach import self_contained
from ._mmap import Mmap
from ._protocol import Region, address_of
from ._threads import NoThread

INLINE = 256 * 2**10  # bytes; up to here allocating and zeroing is faster than a hop to a thread (about 50 µs)


@self_contained()
class Heap:
    """Memory from the process's heap; the default for emergency objects. Usable on any loop, and on several.

    Small objects come from malloc, at once. Larger ones are mappings of their own, as malloc would make them,
    but their pages are faulted in beforehand, in a thread. The memory is freed when its last export is gone.
    User space cannot influence how the kernel reclaims, so the GFP flags have no effect here.
    """

    def __init__(self) -> None:
        self._large = Mmap(
            huge_pages="never"
        )  # memory is short when these are made: nothing is to be moved for them

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate zeroed memory; large objects in a thread, if one can be started.

        :raises MemoryError: if there is no memory
        """
        if nbytes <= INLINE:
            return _small(nbytes, align)
        try:
            return await self._large.acquire(nbytes, align, gfp)
        except NoThread:  # an object without its pages is better than none
            return self._large.acquire_nowait(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate. Large objects are not faulted in, because that would block: the caller takes the page faults.

        :raises MemoryError: if there is no memory
        """
        if nbytes <= INLINE:
            return _small(nbytes, align)
        return self._large.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Free the memory; large objects in a thread."""
        if isinstance(region.token, bytearray):
            region.token = None
            region.memory = memoryview(b"")
        else:
            await self._large.release(region)

    def region_owner(self, region: Region) -> object | None:
        """What frees the memory of a small object as soon as nothing refers to it; None for a large one."""
        return region.token if isinstance(region.token, bytearray) else None


def _small(nbytes: int, align: int) -> Region:
    # Each view keeps the block alive, and as it is, so the memory cannot be freed too early.
    block = bytearray(nbytes + align)
    whole = memoryview(block)
    address = address_of(whole)
    start = -address % align
    return Region(whole[start : start + nbytes], address + start, block)
