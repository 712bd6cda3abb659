"""Files that are memory, without a name, and their mappings.

A memfd lives as long as something refers to it: a descriptor or a mapping, in whichever process. There is nothing
to unlink, so nothing is left behind by a process that is killed, and Python's resource tracker has no part in it.

A mapping here is an `mmap.mmap` of plain address space with the file's pages mapped over it. So the object counts
its exports and unmaps itself, as ever, but holds no descriptor of its own, and the kernel's protection can differ
from what Python believes.

A child by fork inherits no shared pages: what its parent had mapped is private memory of zeros in the child, so
nothing that a forgotten object does there reaches the parent. The address range stays taken, and unmapping it
there does no harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import weakref
from pathlib import Path

from ._libc import PAGE_SIZE
from ._protocol import address_of

PIECE = 16 * 2**20
"""Bytes allocated in one system call: one that a signal interrupts begins again."""
_F_ADD_SEALS, _SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW = 1033, 1, 2, 4
_MAP_FIXED, _MAP_NORESERVE = 0x10, (0x4000 if hasattr(os, "memfd_create") else 0)
_FAILED = ctypes.c_void_p(-1).value
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_READ, _WRITE = mmap.PROT_READ, mmap.PROT_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_mapped: weakref.WeakValueDictionary[int, mmap.mmap] = weakref.WeakValueDictionary()
"""All mappings of shared pages in this process, by address."""


def whole_pages(nbytes: int) -> int:
    """Round up."""
    return -(-nbytes // PAGE_SIZE) * PAGE_SIZE


def create(nbytes: int) -> int:
    """A descriptor of a new file of so many bytes, all of them allocated, that can neither shrink nor grow.

    :raises OSError: if there is no memory, or no descriptor
    """
    if not hasattr(os, "memfd_create"):
        return _create_and_unlink(nbytes)
    if nbytes > _available():  # the kernel would kill somebody rather than refuse
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    fd = os.memfd_create("aslab", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for start in range(0, nbytes, PIECE):
            os.posix_fallocate(fd, start, min(PIECE, nbytes - start))
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _available() -> int:
    """Bytes that can be allocated without swapping, by the kernel's own estimate."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE


def _create_and_unlink(nbytes: int) -> int:
    """The same where memfd is missing: a POSIX segment, whose name is gone at once. It cannot be sealed."""
    import _posixshmem  # type: ignore[import-not-found]

    name = f"/aslab-{secrets.token_hex(8)}"
    fd: int = _posixshmem.shm_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600)
    try:
        _posixshmem.shm_unlink(name)
        os.ftruncate(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_shared(fd: int, nbytes: int, *, align: int = PAGE_SIZE, writable: bool = True) -> tuple[mmap.mmap, int]:
    """Map a whole file. Returns the mapping, and where in it the file begins.

    Python takes the mapping for writable in any case, so that ctypes can export parts of it; without ``writable``
    the kernel refuses writes all the same.

    :raises OSError: if there is no address space
    """
    slack = align - PAGE_SIZE if align > PAGE_SIZE else 0
    mapping = mmap.mmap(-1, nbytes + slack, flags=_PRIVATE)
    whole = memoryview(mapping)
    address = address_of(whole)
    whole.release()
    offset = -address % align
    _map_over(address + offset, nbytes, _READ | _WRITE if writable else _READ, mmap.MAP_SHARED, fd)
    _mapped[address] = mapping
    return mapping, offset


def make_writable(address: int, nbytes: int) -> None:
    """Allow writes to pages that were mapped without."""
    if _libc.mprotect(address, nbytes, _READ | _WRITE):
        raise _error()


def _map_over(address: int, nbytes: int, protection: int, flags: int, fd: int) -> None:
    if _libc.mmap(address, nbytes, protection, flags | _MAP_FIXED, fd, 0) == _FAILED:
        raise _error()


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _forget_in_child() -> None:
    for address, mapping in list(_mapped.items()):
        if not mapping.closed:
            _map_over(address, len(mapping), _READ | _WRITE, _PRIVATE, -1)
    _mapped.clear()


os.register_at_fork(after_in_child=_forget_in_child)
