"""A checksum service: many tasks read files through a bounded pool of leased buffers.

There are more tasks than buffers on purpose: a task without a buffer waits, so reading never takes more memory
than the limit, however many files there are. The event loop does none of the work: files are opened, read and
hashed in threads, many small ones or much of a large one in each call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio import to_thread

from ... import Allocator, Cache, CacheStats, ConfigError, open_allocator
from ..._checks import parse_size
from ...backends import Backend
from ._files import Unreadable
from ._hashing import Done, Hasher
from ._processes import FileQueue
from ._resume import slab_serves

ALIGN = 4096
SLAB_MOST = 8
"""Buffers per slab; fewer if the limit is too low."""
SLAB_SIZE_MOST = 32 * 2**20
BUFFER_MOST = 2**30
LIMIT_MOST = 2**40
BUFFER, LIMIT, TASKS = "256KiB", "8MiB", 64
"""The settings if nothing else is given."""
THREADS = 16
"""Threads at once, where several are worth it: more than processors, as they also wait for the disk."""

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

    @classmethod
    def parse(cls, buffer: str = BUFFER, limit: str = LIMIT, tasks: int = TASKS) -> Settings:
        """Settings from the command line, with sizes such as 64KiB.

        :raises ConfigError: if a size is not valid, or the limit is below one buffer
        """
        settings = cls(
            buffer=parse_size("buffer", buffer, BUFFER_MOST),
            limit=parse_size("limit", limit, LIMIT_MOST),
            tasks=tasks,
        )
        if settings.limit < settings.stride:
            raise ConfigError("limit", settings.limit, f"it must be at least {settings.stride}, for one buffer")
        return settings

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

    sums: dict[str, str] = field(repr=False)  # asyncio.Runner makes a repr of what it returns
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
    files: Sequence[str] | FileQueue, settings: Settings, slabs: Backend, patience: float, progress: Progress
) -> Outcome:
    """Hash all files with memory from ``slabs``, and check at the end whether all is well.

    :param patience: seconds to wait at the end for a grow that is still stuck
    :raises ConfigError: if a buffer does not fit the limit
    """
    async with open_service(settings, slabs, progress) as service:
        await service.hash(files)
        return await service.outcome(patience)


@asynccontextmanager
async def open_service(settings: Settings, slabs: Backend, progress: Progress) -> AsyncIterator[Service]:
    """A service with memory from ``slabs``.

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
        yield Service(kmem, cache, settings.tasks, progress)


class Service:
    """The service; what it has done adds up. Made by `open_service`."""

    def __init__(self, kmem: Allocator, cache: Cache[memoryview], tasks: int, progress: Progress) -> None:
        self.sums: dict[str, str] = {}
        """SHA-256 in hexadecimal, by path."""
        self.unreadable: list[Unreadable] = []
        self.seconds: float = 0.0
        """How long it has hashed."""
        self.cache: Cache[memoryview] = cache
        self._kmem = kmem
        self._tasks = tasks
        self._progress = progress
        self._nbytes = 0
        self._times: list[float] = []
        self._emergency_used = 0
        self._at_work = anyio.CapacityLimiter(1)

    async def hash(self, files: Sequence[str] | FileQueue) -> None:
        """Hash these files."""
        began = anyio.current_time()
        paths = files if isinstance(files, FileQueue) else deque(files)
        async with anyio.create_task_group() as group:
            for _ in range(min(self._tasks, len(files))):
                group.start_soon(self._work, paths)
        self.seconds += anyio.current_time() - began

    async def outcome(self, patience: float) -> Outcome:
        """See whether slabs serve now, and tell what was done.

        :param patience: seconds to wait for a grow that is still stuck
        """
        waits = _longest(self._times, self.cache.stats().waits)
        served = await slab_serves(self.cache, patience)
        stats, table = self.cache.stats(), self._kmem.table()  # nothing happens between the two
        return Outcome(
            sums=self.sums,
            unreadable=self.unreadable,
            nbytes=self._nbytes,
            seconds=self.seconds,
            allocations=len(self._times),
            waits=waits,
            emergency_used=self._emergency_used,
            resumed=served and not (stats.growing or stats.deadlocked),
            stats=stats,
            table=table,
        )

    async def _work(self, paths: deque[str] | FileQueue) -> None:
        with closing(Hasher(paths)) as hasher:
            while not hasher.finished:
                await self._go_on(hasher)

    async def _go_on(self, hasher: Hasher) -> None:
        asked = anyio.current_time()
        async with self.cache.lease() as buf:
            self._times.append(anyio.current_time() - asked)
            self._emergency_used += buf.emergency
            done = await self._call(hasher, buf.view)
        self.sums |= done.sums
        self.unreadable += done.unreadable
        self._nbytes += done.nbytes
        self._progress(done.nbytes, len(done.sums) + len(done.unreadable))

    async def _call(self, hasher: Hasher, view: memoryview) -> Done:
        async with self._at_work:
            if hasher.finished:  # others were faster
                return Done()
            alone = self._at_work.total_tokens == 1
            done = await to_thread.run_sync(partial(hasher.go_on, view, alone=alone))
            if done.several is not None:
                self._at_work.total_tokens = THREADS if done.several else 1
            return done


def _longest(times: list[float], number: int) -> list[float]:
    # An allocation that does not wait takes microseconds. So those that waited, which the cache has
    # counted, are the ones that took longest.
    return sorted(times)[len(times) - number :]
