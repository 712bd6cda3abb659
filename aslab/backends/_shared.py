"""Slabs that other processes can map: `aslab.share` sends them the descriptor, once for each slab."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from bisect import bisect_right, insort
from collections.abc import Iterator
from functools import partial
from operator import attrgetter

import anyio

from .._flags import GFP
from .._reach import self_contained
from ._libc import prefault
from ._memfd import create, map_shared, whole_pages
from ._protocol import Region
from ._threads import run_blocking

AT_ONCE = 256 * 2**10
"""Bytes up to which `acquire_nowait` allocates: about 0.1 ms."""


class Segment:
    """A file of shared memory that this process allocated: its descriptor, size in bytes, and address here.

    It is the ``token`` of a region. The descriptor belongs to the backend, which closes it on release; a mapping
    of it, in any process, outlives that.
    """

    __slots__ = ("__weakref__", "_fd", "_lock", "_mapping", "address", "size")

    def __init__(self, fd: int, size: int, mapping: mmap.mmap, address: int) -> None:
        self._fd: int | None = fd
        self._mapping: mmap.mmap | None = mapping
        self._lock = threading.Lock()
        self.size: int = size
        self.address: int = address

    @property
    def closed(self) -> bool:
        """Whether the backend has it back."""
        return self._fd is None

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        """The file's descriptor, which is not closed during the block.

        :raises ValueError: if it is closed already
        """
        with self._lock:
            if self._fd is None:
                raise ValueError("this segment was given back")
            yield self._fd

    def close(self) -> None:
        """Close the descriptor, and unmap the memory as soon as nothing exports it. Only for its backend."""
        with self._lock:
            fd, self._fd = self._fd, None
            mapping, self._mapping = self._mapping, None
        if fd is not None:
            _live.remove(self)
            with contextlib.suppress(BufferError):
                if mapping is not None:
                    mapping.close()
            os.close(fd)

    def forget(self) -> None:
        """In a child by fork: the memory is the parent's affair."""
        self._lock = threading.Lock()
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class _Live:
    """The segments of this process, by address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segments: list[Segment] = []

    def add(self, segment: Segment) -> None:
        with self._lock:
            insort(self._segments, segment, key=attrgetter("address"))

    def remove(self, segment: Segment) -> None:
        with self._lock:
            self._segments.remove(segment)

    def at(self, address: int) -> Segment | None:
        with self._lock:
            place = bisect_right(self._segments, address, key=attrgetter("address"))
            segment = self._segments[place - 1] if place else None
        return segment if segment is not None and address < segment.address + segment.size else None

    def forget(self) -> None:
        segments, self._segments, self._lock = self._segments, [], threading.Lock()
        for segment in segments:
            segment.forget()


_live = _Live()
os.register_at_fork(after_in_child=_live.forget)


def segment_at(address: int) -> Segment | None:
    """The segment of this process that an address lies in."""
    return _live.at(address)


@self_contained()
class SharedMemory:
    """Memory that other processes can map, for slabs and emergency objects alike. Usable on any loop, and several.

    On Linux each slab is a memfd: it has no name, so nothing is left behind whoever is killed. Its pages are
    allocated before it is handed out (where there are none left, that is a MemoryError, never a SIGBUS later),
    faulted in off the event loop, and sealed: nobody can shrink the file under a process that has it mapped.
    Elsewhere it is a POSIX segment whose name is removed at once; the system may then not reserve its pages.

    One slab takes one file descriptor. A child by fork does not share it: there the same addresses are private
    memory of zeros. It connects, as any other process does; see `aslab.share`. The GFP flags have no effect.
    """

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate, map and fault in, in a thread.

        :raises MemoryError: if there is no memory, no address space, or no file descriptor
        """
        return await run_blocking(partial(_allocate, nbytes, align), undo=_release)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Allocate up to 256 KiB at once; more would block.

        :raises MemoryError: if there is no memory, no address space, or no file descriptor
        :raises anyio.WouldBlock: if it is more
        """
        if nbytes > AT_ONCE:
            raise anyio.WouldBlock
        return _allocate(nbytes, align)

    async def release(self, region: Region) -> None:
        """Unmap and close, in a thread.

        The memory itself goes when no process has it mapped any more. What is still exported here (by an object
        that a ``ctor`` built and the caller kept) stays mapped until the last export is gone.
        """
        await run_blocking(partial(_release, region))


def _allocate(nbytes: int, align: int) -> Region:
    size = whole_pages(nbytes)
    try:
        fd = create(size)
    except (OSError, OverflowError) as exc:
        raise MemoryError(f"cannot allocate {nbytes} shared bytes: {exc}") from exc
    try:
        mapping, offset = map_shared(fd, size, align=align)
    except (OSError, OverflowError) as exc:
        os.close(fd)
        raise MemoryError(f"cannot map {nbytes} shared bytes: {exc}") from exc
    whole = memoryview(mapping)
    region = Region.over(whole[offset : offset + size])
    region.memory = region.memory[:nbytes]
    whole.release()
    region.token = segment = Segment(fd, size, mapping, region.address)
    _live.add(segment)
    try:
        prefault(region.address, size)
    except MemoryError:
        _release(region)
        raise
    return region


def _release(region: Region) -> None:
    segment, region.token = region.token, None
    with contextlib.suppress(BufferError):  # memory that is still exported keeps its mapping
        region.memory.release()
    if isinstance(segment, Segment):
        segment.close()
