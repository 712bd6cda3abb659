"""Single objects from malloc, aligned. For emergency objects: small next to a slab, quick to get."""

from __future__ import annotations

import ctypes
import weakref
from functools import partial

from .._flags import GFP
from ._libc import free, memalign, zero
from ._protocol import Region
from ._threads import run_blocking

INLINE = 256 * 2**10  # bytes that are touched faster than a thread is asked (about 50 µs)


class Heap:
    """Memory from malloc; the default for emergency objects. Usable on any loop, and on several.

    The memory goes back to malloc when the last thing that exports it is gone. User space has no say
    in how the kernel reclaims, so the GFP flags change nothing here.
    """

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate and touch; in a thread where that takes time.

        :raises MemoryError: if malloc has no memory
        """
        if nbytes <= INLINE:
            return _allocate(nbytes, align, touch=True)
        return await run_blocking(partial(_allocate, nbytes, align, touch=True), undo=_drop)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate without touching: that would block where it is large. The caller meets the page faults.

        :raises MemoryError: if malloc has no memory
        """
        return _allocate(nbytes, align, touch=nbytes <= INLINE)

    async def release(self, region: Region) -> None:
        """Let go; in a thread where that takes time."""
        if region.memory.nbytes <= INLINE:
            _drop(region)
        else:
            await run_blocking(partial(_drop, region))


def _allocate(nbytes: int, align: int, *, touch: bool) -> Region:
    address = memalign(nbytes, align)
    block = (ctypes.c_ubyte * nbytes).from_address(address)
    # The block itself is what every view keeps alive, so free() can never come too early.
    weakref.finalize(block, free, address).atexit = False
    if touch:
        zero(address, nbytes)
    return Region(memoryview(block).cast("B"), address, block)


def _drop(region: Region) -> None:
    region.token = None
    region.memory = memoryview(b"")
