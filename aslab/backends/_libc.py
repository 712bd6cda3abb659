"""The few C calls that the backends need, by ctypes, which releases the GIL during each call."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

PAGE_SIZE = mmap.PAGESIZE
MADV_POPULATE_WRITE = 23  # Linux 5.14
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def address_of(view: memoryview) -> int:
    """The address of the first byte of a writable, contiguous view."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) if view.nbytes else 0


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


def prefault(address: int, nbytes: int) -> None:
    """Back every page with memory now, so that no page fault comes later.

    :raises MemoryError: if the kernel has none
    """
    try:
        madvise(address, nbytes, MADV_POPULATE_WRITE)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise MemoryError(f"cannot populate {nbytes} bytes: {exc.strerror}") from exc
        zero(address, nbytes)  # a kernel older than the advice
