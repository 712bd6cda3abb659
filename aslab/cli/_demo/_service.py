"""A checksum service: many tasks read files through a bounded pool of leased buffers.

There are more tasks than buffers on purpose: a task without a buffer waits, so reading never takes more memory
than the limit, however many files there are. The event loop does none of the work: files are opened, read and
hashed in threads, one call per chunk.
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
"""Buffers per slab; fewer if the limit is too low."""
SLAB_SIZE_MOST = 32 * 2**20

Progress = Callable[[int, int], object]
"""Called with the bytes read and the files finished since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of the service."""

    buffer: int
    """Bytes per buffer."""
    limit: int
    """Most bytes in slabs."""
    tasks: int

    @property
    def stride(self) -> int:
        """Bytes that a buffer takes up in a slab."""
        return -(-self.buffer // ALIGN) * ALIGN

    @property
    def buffers(self) -> int:
        """How many buffers fit within the limit, in whole slabs; at least 1."""
        return max(1, self.limit // self.stride // self.per_slab * self.per_slab)

    @property
    def per_slab(self) -> int:
        """Buffers per slab."""
        return max(1, min(SLAB_MOST, self.limit // self.stride, SLAB_SIZE_MOST // self.stride))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one run."""

    sums: dict[str, str]
    """SHA-256 in hexadecimal, by path."""
    unreadable: list[Unreadable]
    nbytes: int
    """Bytes read, including those of files that turned out to be unreadable."""
    seconds: float
    allocations: int
    waits: list[float]
    """Seconds that each waiting allocation waited, shortest first."""
    emergency_used: int
    resumed: bool
    """Whether, after all files, a buffer came from a slab, and no mark was set then."""
    stats: CacheStats
    """Taken at the same moment as ``resumed`` and ``table``, so that they agree."""
    table: str
    """The text of /proc/spl/kmem/slab."""


async def checksum(
    files: Sequence[File], settings: Settings, slabs: Backend, patience: float, progress: Progress
) -> Outcome:
    """Hash all files with memory from ``slabs``, and check at the end whether all is well.

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
    # An allocation that does not wait takes microseconds. So those that waited, which the cache has
    # counted, are the ones that took longest.
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
        for file in todo:  # all tasks share one iterator
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
    """Fill the view, or reach the end of the file. Releases each slice, which would keep the buffer in use."""
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
