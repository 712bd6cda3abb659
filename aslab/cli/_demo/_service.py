"""A checksum service: many tasks read files through a bounded pool of leased buffers.

There are more tasks than buffers on purpose: a task without a buffer waits, so reading never takes more memory
than the limit, however many files there are. The event loop does none of the work: files are opened, read and
hashed in threads, many small ones or much of a large one in each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import anyio
from anyio import to_thread

from ... import Cache, CacheStats, open_allocator
from ...backends import Backend
from ._files import File, Unreadable
from ._hashing import Batch, Done, batches
from ._resume import slab_serves

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
        todo = batches(files, tasks)
        async with anyio.create_task_group() as group:
            for _ in range(min(tasks, len(files))):
                group.start_soon(self._work, todo)

    async def _work(self, todo: Iterator[list[File]]) -> None:
        for files in todo:  # all tasks share one iterator
            with closing(Batch(files)) as batch:
                while not (await self._go_on(batch)).over:
                    pass

    async def _go_on(self, batch: Batch) -> Done:
        asked = anyio.current_time()
        async with self._cache.lease() as buf:
            self.times.append(anyio.current_time() - asked)
            self.emergency_used += buf.emergency
            done = await to_thread.run_sync(batch.go_on, buf.view)
        self.sums |= done.sums
        self.unreadable += done.unreadable
        self.nbytes += done.nbytes
        self._progress(done.nbytes, len(done.sums) + len(done.unreadable))
        return done
