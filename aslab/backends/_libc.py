"""The few C calls that the backends need, by ctypes, which releases the GIL during each call."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

PAGE_SIZE = mmap.PAGESIZE
MADV_POPULATE_WRITE = 23  # Linux 5.14
STEP = 4 * 2**20  # bytes; about a millisecond, and no slower altogether than a call for everything
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def madvise(address: int, nbytes: int, advice: int) -> None:
    """Tell the kernel how whole pages will be used (madvise).

    :raises OSError: with the kernel's errno
    """
    if _libc.madvise(address, nbytes, advice):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def zero(address: int, nbytes: int) -> None:
    """Overwrite with zeros."""
    ctypes.memset(address, 0, nbytes)


def same(address: int, other: int, nbytes: int) -> bool:
    """Whether two places hold the same bytes."""
    return bool(_libc.memcmp(address, other, nbytes) == 0)


def prefault(address: int, nbytes: int) -> None:
    """Back every page with memory now, so that no page fault comes later.

    The kernel holds the lock of the address space during each call, and whatever another thread maps or unmaps
    meanwhile, such as the event loop's heap, waits. So this is many short calls.

    :raises MemoryError: if the kernel has none
    """
    for offset in range(0, nbytes, STEP):
        try:
            madvise(address + offset, min(STEP, nbytes - offset), MADV_POPULATE_WRITE)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise MemoryError(f"cannot populate {nbytes} bytes: {exc.strerror}") from exc
            zero(address + offset, nbytes - offset)  # a kernel older than the advice
            return
