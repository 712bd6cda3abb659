"""Direct I/O: what the kernel asks for, and files opened with O_DIRECT where the filesystem takes it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from .._clients import log
from .._errors import ConfigError
from ..backends._libc import PAGE_SIZE

O_DIRECT: int = getattr(os, "O_DIRECT", 0)
"""Zero where the system has none, as macOS."""
REFUSED = (errno.EINVAL, errno.ENOTSUP)

_AT_EMPTY_PATH, _STATX_DIOALIGN = 0x1000, 0x2000
_SIZE_OF_STATX, _MASK_AT, _ATTRIBUTES_AT = 256, 0, 152
_statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
_told: set[int] = set()
"""Devices whose refusal was logged."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What each transfer must be a multiple of, in bytes."""

    memory: int
    offset: int

    def check(self, address: int, offset: int, nbytes: int) -> None:
        """Refuse what the kernel would answer with a bare EINVAL.

        :raises ConfigError: naming what is needed
        """
        if address % self.memory:
            raise ConfigError(
                "buf",
                hex(address),
                f"direct I/O needs memory at a multiple of {self.memory} bytes: create the cache with "
                f"align={max(self.memory, 64)}",
            )
        for field, given in (("offset", offset), ("nbytes", nbytes)):
            if given % self.offset:
                allowed = f"direct I/O on this file needs a multiple of {self.offset} bytes"
                raise ConfigError(field, given, allowed)


PLAIN = Needs(1, 1)


def is_direct(fd: int) -> bool:
    """Whether a descriptor was opened with O_DIRECT."""
    return bool(O_DIRECT and fcntl.fcntl(fd, fcntl.F_GETFL) & O_DIRECT)


def make_plain(fd: int) -> None:
    """Use the page cache from now on."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~O_DIRECT)


def needs_of(fd: int) -> Needs | None:
    """What the filesystem says it needs (Linux 6.1); None if it does not say."""
    if _statx is None:
        return None
    answer = (ctypes.c_ubyte * _SIZE_OF_STATX)()
    if _statx(ctypes.c_int(fd), b"", ctypes.c_int(_AT_EMPTY_PATH), ctypes.c_uint(_STATX_DIOALIGN), answer):
        return None
    if not ctypes.c_uint32.from_buffer(answer, _MASK_AT).value & _STATX_DIOALIGN:
        return None
    memory, offset = (ctypes.c_uint32 * 2).from_buffer(answer, _ATTRIBUTES_AT)
    return Needs(memory, offset) if memory and offset else None


def open_direct(path: str | bytes | os.PathLike[str] | os.PathLike[bytes], flags: int = os.O_RDONLY) -> int:
    """As `os.open`, with O_DIRECT, or without it where that is refused. Returns the descriptor.

    Blocks; any thread. Why it was refused is logged, once for all files of a device.
    """
    if not O_DIRECT:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
        tell(fd, "this system has no O_DIRECT")
        return fd
    try:
        return os.open(path, flags | os.O_CLOEXEC | O_DIRECT, 0o666)
    except OSError as exc:
        if exc.errno not in REFUSED:
            raise
        reason = f"its filesystem refuses O_DIRECT ({exc.strerror})"
    fd = os.open(path, flags & ~os.O_EXCL | os.O_CLOEXEC, 0o666)  # a file to be made was made before the refusal
    tell(fd, reason)
    return fd


def tell(fd: int, reason: str) -> None:
    """Log why the page cache is used, once for all files of a device."""
    device = os.fstat(fd).st_dev
    if device not in _told:
        _told.add(device)
        log.warning("no direct I/O for %s: %s; the page cache is used", _name_of(fd), reason)


def _name_of(fd: int) -> str:
    try:
        return repr(os.fspath(Path(f"/proc/self/fd/{fd}").readlink()))
    except OSError:
        return f"descriptor {fd}"


def explained(exc: OSError, address: int, offset: int, nbytes: int) -> OSError:
    """The same error, with what direct I/O needs where the filesystem had not said it."""
    return OSError(
        exc.errno,
        f"{exc.strerror}: direct I/O of {nbytes} bytes at offset {offset} to memory at {address:#x}; multiples of "
        f"{PAGE_SIZE} for all three are enough for most filesystems",
    )
