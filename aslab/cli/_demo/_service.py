"""A checksum service: many tasks read files through a bounded pool of leased buffers.

More tasks than buffers is the point: a task without one waits, so reading never takes more memory
than the limit, however many files there are. The event loop does none of the work: files are
opened, read and hashed in threads, one hop for each chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio
from anyio import to_thread

from ... import Cache, CacheStats, open_allocator
from ...backends import Backend
from .._errors import why
from ._files import File, Unreadable
from ._resume import slab_serves

if TYPE_CHECKING:
    from hashlib import _Hash

ALIGN = 4096
SLAB_MOST = 8
"""Buffers in one slab; fewer where the limit has no room for as many."""
SLAB_SIZE_MOST = 32 * 2**20

Progress = Callable[[int, int], object]
"""Told of bytes read, and of files done, since it was last told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the service is to run."""

    buffer: int
    """Bytes of one buffer."""
    limit: int
    """Most bytes of slabs."""
    tasks: int

    @property
    def stride(self) -> int:
        """Bytes that one buffer takes in a slab."""
        return -(-self.buffer // ALIGN) * ALIGN

    @property
    def buffers(self) -> int:
        """Buffers that the limit allows, in whole slabs; at least 1."""
        return max(1, self.limit // self.stride // self.per_slab * self.per_slab)

    @property
    def per_slab(self) -> int:
        """Buffers in one slab."""
        return max(1, min(SLAB_MOST, self.limit // self.stride, SLAB_SIZE_MOST // self.stride))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run."""

    sums: dict[str, str]
    """Path to SHA-256, in hexadecimal."""
    unreadable: list[Unreadable]
    nbytes: int
    """Bytes read, of files that turned out unreadable too."""
    seconds: float
    allocations: int
    waits: list[float]
    """Seconds, shortest first: one for each allocation that had to wait."""
    emergency_used: int
    resumed: bool
    """After the files: a buffer came from a slab, and then no mark was set."""
    stats: CacheStats
    """When that was known: ``resumed``, these and ``table`` are of one moment, and say the same."""
    table: str
    """The text of /proc/spl/kmem/slab."""


async def checksum(
    files: Sequence[File], settings: Settings, slabs: Backend, patience: float, progress: Progress
) -> Outcome:
    """Hash all files, with memory from ``slabs``, and look whether all is well at the end.

    :param patience: seconds to wait at the end for a grow that is still stuck
    :raises ConfigError: if a buffer does not fit the limit
    """
    async with open_allocator(slabs=slabs, limit=settings.limit) as kmem:
        cache = kmem.create_cache(
            "chunks",
            settings.buffer,
            align=ALIGN,
            objects_per_slab=settings.per_slab,
            max_slab_size=max(SLAB_SIZE_MOST, settings.stride),
        )
        service = _Service(cache, progress)
        began = anyio.current_time()
        await service.run(files, settings.tasks)
        seconds = anyio.current_time() - began
        waits = _longest(service.times, cache.stats().waits)
        served = await slab_serves(cache, patience)
        stats, table = cache.stats(), kmem.table()  # nothing happens between the two
        return Outcome(
            sums=service.sums,
            unreadable=service.unreadable,
            nbytes=service.nbytes,
            seconds=seconds,
            allocations=len(service.times),
            waits=waits,
            emergency_used=service.emergency_used,
            resumed=served and not (stats.growing or stats.deadlocked),
            stats=stats,
            table=table,
        )


def _longest(times: list[float], number: int) -> list[float]:
    # An allocation that does not wait does not suspend, and takes microseconds: those that waited, and
    # the cache has counted them, are the ones that took longest.
    return sorted(times)[len(times) - number :]


class _Service:
    def __init__(self, cache: Cache[memoryview], progress: Progress) -> None:
        self.sums: dict[str, str] = {}
        self.unreadable: list[Unreadable] = []
        self.nbytes = 0
        self.times: list[float] = []
        self.emergency_used = 0
        self._cache = cache
        self._progress = progress

    async def run(self, files: Sequence[File], tasks: int) -> None:
        todo = iter(files)
        async with anyio.create_task_group() as group:
            for _ in range(min(tasks, len(files))):
                group.start_soon(self._work, todo)

    async def _work(self, todo: Iterator[File]) -> None:
        for file in todo:  # all tasks draw from the one iterator
            try:
                self.sums[file.path] = await self._hash(file.path)
            except OSError as exc:
                self.unreadable.append(Unreadable(file.path, why(exc)))
            self._progress(0, 1)

    async def _hash(self, path: str) -> str:
        digest = hashlib.sha256()
        with await to_thread.run_sync(_open, path) as file:
            while await self._hash_chunk(file, digest) == self._cache.size:
                pass
        return digest.hexdigest()

    async def _hash_chunk(self, file: BinaryIO, digest: _Hash) -> int:
        asked = anyio.current_time()
        async with self._cache.lease() as buf:
            self.times.append(anyio.current_time() - asked)
            self.emergency_used += buf.emergency
            nbytes = await to_thread.run_sync(_read_and_hash, file, buf.view, digest)
        self.nbytes += nbytes
        self._progress(nbytes, 0)
        return nbytes


def _open(path: str) -> Any:
    return Path(path).open("rb", buffering=0)


def _read_and_hash(file: BinaryIO, view: memoryview, digest: _Hash) -> int:
    """Fill the view, or reach the end of the file. Each slice is released: one left over would hold the buffer."""
    filled = 0
    while filled < len(view):
        with view[filled:] as rest:
            nbytes = file.readinto(rest)  # type: ignore[attr-defined]
        if not nbytes:
            break
        filled += nbytes
    with view[:filled] as part:
        digest.update(part)
    return filled
