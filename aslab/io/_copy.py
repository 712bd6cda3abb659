"""Copying a file through the buffers of a cache, by direct I/O where both filesystems take it.

    |<------ chunks: whole blocks, several at a time, direct ------>|<- tail, through the page cache ->|

A chunk is as many blocks as a buffer holds. What is left at the end of the file, less than a block, comes last: by
then nothing else is under way, so the descriptors can give up O_DIRECT. Holes of the source are not read, and stay
holes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio

from .._cache import Cache
from .._checks import whole_number
from .._errors import ConfigError
from .._fastpath import Buffer
from ..backends import run_blocking
from ..backends._libc import PAGE_SIZE
from ._direct import REFUSED, is_direct, make_plain, needs_of, open_direct, tell
from ._transfer import Path, read_into, write_from

Chunk = tuple[int, int]
"""Offset and bytes."""
Transfer = Callable[[int, Buffer[Any], int, int], Awaitable[int]]


async def copy_file(src: Path, dst: Path, cache: Cache[Any], *, direct: bool = True, in_flight: int = 4) -> int:
    """Copy the content of a file through buffers of a cache. Returns its size in bytes.

    With direct I/O nothing goes through the page cache, so that a copy of a large file does not push out what
    others keep there. Where a filesystem refuses it, the page cache is used, and the reason logged once. Holes
    stay holes. As with `shutil.copyfile`, mode and times are not copied, and nothing is synced to the disk.

    If it fails or is cancelled, ``dst`` is left incomplete. After a cancellation, a write that was under way in a
    thread may still change it.

    :param dst: created, or overwritten
    :param cache: its buffers must hold at least one block, usually 4096 bytes, and for direct I/O start at a
        multiple of that (``align``)
    :param direct: whether to try direct I/O
    :param in_flight: the most chunks under way, each with a buffer of its own
    :raises ConfigError: if a size or an alignment is not enough for direct I/O
    :raises OSError: from the system; also if both are the same file, or the source shrinks meanwhile
    """
    whole_number("in_flight", in_flight, 1)
    files = await run_blocking(partial(_Files, src, dst, direct), undo=_Files.close)
    try:
        await _copy_chunks(files, cache, in_flight)
        if files.whole < files.size:
            files.use_page_cache()
            await _copy_chunk(files, cache, (files.whole, files.size - files.whole))
    finally:
        await run_blocking(files.close)
    return files.size


class _Files:
    """The source and the destination, open; made in a thread."""

    def __init__(self, src: Path, dst: Path, direct: bool) -> None:
        opener = open_direct if direct else _open_plain
        self.src = opener(src, os.O_RDONLY)
        self.dst = -1
        try:
            self.size = _size_of(self.src, src)
            self.dst = opener(dst, os.O_WRONLY | os.O_CREAT)
            if os.path.sameopenfile(self.src, self.dst):
                raise OSError(errno.EINVAL, f"{src!r} and {dst!r} are the same file")
            if stat.S_ISREG(os.fstat(self.dst).st_mode):
                os.ftruncate(self.dst, 0)
                os.ftruncate(self.dst, self.size)
            self.block = max(_block_of(self.src), _block_of(self.dst))
            self.whole = self.size - self.size % self.block
            self.extents = list(_extents(self.src, self.block, self.whole))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close both. Transfers that are under way have descriptors of their own."""
        for fd in (self.src, self.dst):
            if fd >= 0:
                os.close(fd)

    def use_page_cache(self) -> None:
        """Give up O_DIRECT; nothing may be under way."""
        make_plain(self.src)
        make_plain(self.dst)

    def chunks(self, most: int) -> Iterator[Chunk]:
        """The data of the whole blocks, in pieces of up to ``most`` bytes."""
        for start, stop in self.extents:
            for at in range(start, stop, most):
                yield at, min(most, stop - at)


def _open_plain(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o666)


def _size_of(fd: int, path: Path) -> int:
    told = os.fstat(fd)
    if stat.S_ISBLK(told.st_mode):
        return os.lseek(fd, 0, os.SEEK_END)
    if not stat.S_ISREG(told.st_mode):
        raise OSError(errno.EINVAL, f"{path!r} is neither a regular file nor a block device")
    if not told.st_size and not is_direct(fd) and os.pread(fd, 1, 0):
        raise OSError(errno.EINVAL, f"{path!r} does not tell its size, as is usual in /proc")
    return told.st_size


def _block_of(fd: int) -> int:
    """At least a page, so that no page is written both directly and through the page cache."""
    if not is_direct(fd):
        return 1
    needs = needs_of(fd)
    return PAGE_SIZE if needs is None else max(PAGE_SIZE, needs.offset)


def _extents(fd: int, block: int, end: int) -> Iterator[tuple[int, int]]:
    """Where data begins and ends, in whole blocks; all of it where the filesystem does not tell."""
    at = 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            stop = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no data any more
                return
            start, stop = at, end
        start -= start % block
        at = min(end, stop + -stop % block)
        if start < at:
            yield start, at


async def _copy_chunks(files: _Files, cache: Cache[Any], in_flight: int) -> None:
    most = cache.size - cache.size % files.block
    if not most:
        raise ConfigError("cache", cache, f"its objects must hold at least {files.block} bytes, one block")
    chunks = files.chunks(most)
    failed: list[Exception] = []

    async def work() -> None:
        try:
            for chunk in chunks:
                await _copy_chunk(files, cache, chunk)
                if failed:
                    return
        except Exception as exc:  # the others end their chunk, so that no thread still writes when it is raised
            failed.append(exc)

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(work)
    if failed:
        raise failed[0]


async def _copy_chunk(files: _Files, cache: Cache[Any], chunk: Chunk) -> None:
    offset, nbytes = chunk
    async with cache.lease() as buf:
        got = await _or_plain(read_into, files.src, buf, offset, nbytes)
        if got < nbytes:
            raise OSError(errno.EIO, "the source became shorter while it was copied")
        await _or_plain(write_from, files.dst, buf, offset, nbytes)


async def _or_plain(transfer: Transfer, fd: int, buf: Buffer[Any], offset: int, nbytes: int) -> int:
    """Some filesystems take the flag, and refuse the transfer: then without."""
    direct = is_direct(fd)
    try:
        return await transfer(fd, buf, offset, nbytes)
    except OSError as exc:
        if exc.errno not in REFUSED or not direct:
            raise
        tell(fd, f"a transfer was refused ({exc.strerror})")
    make_plain(fd)
    return await transfer(fd, buf, offset, nbytes)
