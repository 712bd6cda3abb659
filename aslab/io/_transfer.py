"""One read or one write between a file and the memory of a buffer.

Always true: while a system call may still touch the memory, the thread that made it holds an export of it, and
the descriptor that it uses is the thread's own.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

from .._checks import whole_number
from .._errors import ConfigError, clear_frames
from .._fastpath import Buffer
from ..backends._protocol import address_of
from ._direct import PLAIN, explained, is_direct, needs_of

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Memory = Buffer[Any] | memoryview
Call = Callable[[int, list[memoryview], int], int]

MOST = 64 * 2**20
"""Bytes of one system call, so that an abandoned transfer ends soon."""
SMALLEST_BLOCK = 512
MAX_THREADS = 64
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("aslab_io_threads")
"""Not the limiter of the backends: pools must grow even while every transfer hangs."""


async def read_into(file: int | Path, buf: Memory, offset: int = 0, nbytes: int | None = None) -> int:
    """Read from a file into a buffer, in a thread. Returns the bytes read: fewer than asked only at its end.

    If cancelled, the thread is abandoned: ``buf.free()`` raises BufferError until the kernel is done with the
    memory, and a lease gives it back then. Whatever it reads until then is in the memory. Any event loop.

    :param file: a descriptor that can seek, or a path, which is opened for this call. If the descriptor was opened
        with O_DIRECT, address, offset and nbytes must be multiples of what the filesystem needs: 512 or 4096
    :param buf: a buffer, or a memoryview of one
    :param offset: where in the file to begin
    :param nbytes: by default, as much as the buffer holds
    :raises ConfigError: if it is not allowed, or not aligned as direct I/O needs it
    :raises BufferFreedError: if the buffer was freed
    :raises OSError: from the system
    """
    return await _in_thread(file, os.O_RDONLY, partial(_move, _preadv, buf, offset, nbytes))


async def write_from(file: int | Path, buf: Memory, offset: int = 0, nbytes: int | None = None) -> int:
    """Write a buffer to a file, in a thread. Returns the bytes written: all that were asked for.

    As `read_into`. A file given by its path is created if it is not there, and not truncated. If cancelled,
    nobody knows how much was written.
    """
    return await _in_thread(file, os.O_WRONLY | os.O_CREAT, partial(_move, _pwritev, buf, offset, nbytes))


def _preadv(fd: int, views: list[memoryview], offset: int) -> int:
    return os.preadv(fd, views, offset)


def _pwritev(fd: int, views: list[memoryview], offset: int) -> int:
    written = os.pwritev(fd, views, offset)
    if not written:
        raise OSError(errno.EIO, "the file takes no more bytes")
    return written


class _Thread:
    """A call with a descriptor of its own, which whoever is last closes."""

    def __init__(self, file: int | Path, flags: int, call: Callable[[int, _Thread], int]) -> None:
        self._open = partial(os.dup, file) if isinstance(file, int) else partial(_open, file, flags)
        self._fd = self._open() if isinstance(file, int) else None
        self._call = call
        self._lock = threading.Lock()
        self._begun = False
        self.abandoned = False

    def run(self) -> int:
        with self._lock:
            if self.abandoned:
                return 0
            self._begun = True
        fd = self._open() if self._fd is None else self._fd
        try:
            return self._call(fd, self)
        except BaseException as exc:
            clear_frames(exc)  # they would keep the memory from being used again as long as the error is kept
            raise
        finally:
            os.close(fd)

    def leave(self) -> None:
        """The caller is gone, or has its result."""
        with self._lock:
            self.abandoned = True
            if not self._begun and self._fd is not None:
                os.close(self._fd)


async def _in_thread(file: int | Path, flags: int, call: Callable[[int, _Thread], int]) -> int:
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(MAX_THREADS)
        _limiter.set(limiter)
    thread = _Thread(file, flags, call)
    try:
        return await to_thread.run_sync(thread.run, abandon_on_cancel=True, limiter=limiter)
    finally:
        thread.leave()


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o666)


@contextmanager
def _exported(buf: Memory) -> Iterator[memoryview]:
    """The memory as bytes, in use until the end of the block."""
    if isinstance(buf, Buffer):
        with buf.pin() as view:
            yield view
        return
    with memoryview(buf) as copy, copy.cast("B") as view:
        yield view


def _move(call: Call, buf: Memory, offset: int, nbytes: int | None, fd: int, thread: _Thread) -> int:
    """Repeat the call until everything is there, the file ends, or the caller is gone. In the thread."""
    whole_number("offset", offset, 0)
    with _exported(buf) as whole:
        if nbytes is None:
            nbytes = len(whole)
        whole_number("nbytes", nbytes, 0, len(whole))
        with whole[:nbytes] as view:
            if call is _preadv and view.readonly:
                raise ConfigError("buf", buf, "it must be writable")
            address = 0 if view.readonly else address_of(view)
            direct = is_direct(fd)
            needs = (needs_of(fd) or PLAIN) if direct else PLAIN
            needs.check(address, offset, nbytes)
            # Only the end of a file leaves part of a block: where the next call would be refused.
            block = max(needs.offset, SMALLEST_BLOCK) if direct and call is _preadv else 1
            try:
                return _repeat(partial(call, fd), view, offset, block, thread)
            except OSError as exc:
                if direct and exc.errno == errno.EINVAL:
                    raise explained(exc, address, offset, nbytes) from exc
                raise


def _repeat(
    call: Callable[[list[memoryview], int], int], view: memoryview, offset: int, block: int, thread: _Thread
) -> int:
    done = 0
    while done < len(view) and not thread.abandoned:
        with view[done : done + MOST] as part:
            moved = call([part], offset + done)
        done += moved
        if not moved or moved % block:
            break
    return done
