"""Allocator: what a service opens, and creates its caches with."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, Unpack, overload

import anyio

from ._answering import answering
from ._cache import Cache
from ._checks import format_size, seconds, whole_number
from ._config import allocator_config, cache_config
from ._errors import CacheClosedError, ConfigError, SealedError
from ._events import Events
from ._faults import Faults
from ._health import SLOW, STUCK, Health, judge
from ._holder import Holder
from ._keywords import keywords
from ._kmem._holders import oldest
from ._kmem._slowpath import ready
from ._kmem._wakeup import take_turns
from ._options import AllocatorKeywords, AllocatorOptions, CacheKeywords, CacheOptions
from ._reaper import give_everything
from ._requests import answer, no_faults
from ._snapshots import SHOWN, snapshot_json
from ._stats import HEADER, AllocatorStats, row
from ._tasks import Tasks
from .backends import Heap, Mmap

T = TypeVar("T")


class Allocator:
    """The caches of one service. Made by `open_allocator`, never by hand."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._arena = tasks.arena

    def __repr__(self) -> str:
        stats = self.stats()
        limit = "" if stats.limit is None else f" of {format_size(stats.limit)}"
        closed = ", closed" if self._arena.closed else ""
        return (
            f"<Allocator, {len(stats.caches)} caches, {format_size(stats.slab_bytes)}{limit} of slabs: "
            f"{stats.obj_held} held, {stats.waiters} waiting{closed}>"
        )

    @property
    def caches(self) -> tuple[Cache[Any], ...]:
        """The open caches, in order of creation."""
        return tuple(self._tasks.caches.values())

    @overload
    def create_cache(
        self, name: str, size: int, *, ctor: None = None, dtor: None = None, **options: Unpack[CacheKeywords]
    ) -> Cache[memoryview]: ...

    @overload
    def create_cache(
        self,
        name: str,
        size: int,
        *,
        ctor: Callable[[memoryview], T],
        dtor: Callable[[T], None] | None = None,
        **options: Unpack[CacheKeywords],
    ) -> Cache[T]: ...

    @keywords(CacheOptions)
    def create_cache(
        self,
        name: str,
        size: int,
        *,
        ctor: Callable[[memoryview], Any] | None = None,
        dtor: Callable[[Any], None] | None = None,
        **options: Unpack[CacheKeywords],
    ) -> Cache[Any]:
        """Make a cache for objects of ``size`` bytes. Does not suspend; event loop's thread only.

        :param name: shown in tables and warnings; unique among the open caches
        :param size: bytes of one object
        :param options: the fields of `CacheOptions`, where each is described
        :raises ConfigError: if anything is not allowed; nothing is created then
        :raises CacheClosedError: if the allocator is closed
        :raises SealedError: if it is sealed
        """
        given = CacheOptions(ctor=ctor, dtor=dtor, **options)
        if self._arena.closed:
            raise CacheClosedError("the allocator is closed")
        if self._arena.budget.sealed:
            raise SealedError(f"the allocator is sealed: cache {name!r} could never have an object")
        config = cache_config(name, size, given, self._arena.config, self._arena.config.selection)
        if name in self._tasks.caches:
            raise ConfigError("name", name, "it must be unique, and this allocator has a cache of that name")
        room = self._arena.budget.unpromised
        if room is not None and config.guaranteed > room:
            asked = ("min_objects", config.min_objects), ("reserve", config.set_aside)
            field, objects = max(asked, key=lambda option: option[1])
            allowed = f"it must fit into the limit less other guarantees, {room} bytes"
            raise ConfigError(field, objects, allowed)
        return self._tasks.make_cache(config)

    async def ready(self) -> None:
        """Suspend until the reserve of every cache is full. Cancellation keeps what is already there.

        Event loop's thread only.

        :raises CacheClosedError: if one of the caches is closed meanwhile
        :raises BackendError: if a backend broke its contract
        :raises ConstructorError: if the ``ctor`` of a cache with a reserve raises
        """
        for number, pool in enumerate(self._tasks.pools):
            await ready(pool)
            await take_turns(number)

    def seal(self) -> None:
        """From now on no cache grows, and no memory is given back.

        For services that allocate at start-up and never again. Grows in progress still complete. An allocation
        that would have caused growth waits for a free and is counted (`CacheStats.sealed`). Sealing is final.
        Does not suspend; event loop's thread only.
        """
        self._arena.seal()

    async def reap(self, nbytes: int | None = None) -> int:
        """Give memory back, in four steps: empty slabs, magazines, the ``reclaim`` callbacks, defragmentation.

        Suspends; event loop's thread only. Cancellation does not stop what has begun.

        :param nbytes: stop once this many bytes are back; None runs all four steps
        :return: the number of bytes given back; 0 if the allocator is sealed
        """
        if nbytes is not None:
            whole_number("nbytes", nbytes, 1)
        if self._arena.budget.sealed:
            return 0
        return await self._tasks.reaper.steps(math.inf if nbytes is None else nbytes, give_everything)

    def stats(self) -> AllocatorStats:
        """A snapshot of all counters. Any thread."""
        return AllocatorStats(
            slab_bytes=self._arena.budget.used,
            limit=self._arena.config.limit,
            refused=len(self._arena.permits.refused),
            grow_time=self._arena.grow_times.snapshot(),
            emergency_time=self._arena.emergency_times.snapshot(),
            emergency_bytes=self._arena.permits.outstanding,
            emergency_bytes_max=self._arena.permits.highest,
            emergency_limit=self._arena.permits.limit,
            kicked=self._tasks.worker.kicked,
            sealed=self._arena.budget.sealed,
            faults=() if self._tasks.faults is None else tuple(map(str, self._tasks.faults.status())),
            caches=tuple(cache.stats() for cache in self.caches),
        )

    def holders(self) -> tuple[Holder, ...]:
        """Return who holds buffers of the open caches, the oldest first, as far as that was noted. Any thread.

        Noted are each ``holders_sample`` th allocation, each that had to wait for 0.1 s, and with
        ``holders_sample=1`` all. Of a cache that is sampled at most 1000 are kept.
        """
        return tuple(oldest(list(self._arena.holders)))

    def health(self, *, slow: float = SLOW, stuck: float = STUCK) -> Health:
        """Return whether callers are served: ok, degraded or stuck, with the reasons. Any thread.

        For a health check: `Health.ok` for "ready", and not STUCK for "alive".

        :param slow: seconds; a caller that has waited for longer makes it degraded
        :param stuck: seconds; a caller that has waited for longer makes it stuck
        :raises ConfigError: if ``stuck`` is below ``slow``, or one is not a number of seconds
        """
        seconds("slow", slow, zero=True)
        seconds("stuck", stuck, zero=True)
        if stuck < slow:
            raise ConfigError("stuck", stuck, f"it must be at least slow, {slow:g}")
        return judge(self.stats(), slow=slow, stuck=stuck)

    def events(self) -> Events:
        """Return a reader of what happens from now on, such as growth that becomes late.

        ``with kmem.events() as events:`` begins to listen, and ``async for event in events:`` gives each
        `CacheEvent`, until the allocator is closed. Does not suspend; event loop's thread only.
        """
        return Events(self._arena.listeners)

    @property
    def faults(self) -> Faults:
        """Faults to turn on and off while the service runs, for game days. Any thread.

        :raises ConfigError: unless the allocator was opened with ``faults=True``
        """
        if self._tasks.faults is None:
            raise no_faults()
        return self._tasks.faults

    def serve_stats(self, path: str | os.PathLike[str]) -> AbstractAsyncContextManager[None]:
        """``async with kmem.serve_stats(path):`` answers ``aslab top`` at a Unix socket, for the time of a block.

        Whoever connects gets the counters and the health as one JSON object, and then the end. Only this user can
        connect. Nothing can be changed there, but with ``faults=True`` of `open_allocator` by ``aslab fault``. A
        thread of its own answers, so also while the event loop is blocked. Entering does not suspend; leaving
        does, for a moment. Event loop's thread only.

        :raises FileExistsError: if something listens at ``path`` already, or something else is there
        :raises OSError: if the socket cannot be made there
        """
        return answering(path, lambda request: answer(request, self._snapshot, self._tasks.faults))

    def _snapshot(self) -> bytes:
        return snapshot_json(self.stats(), oldest(list(self._arena.holders), SHOWN))

    def table(self) -> str:
        """The text of /proc/spl/kmem/slab. Any thread."""
        return HEADER + "".join(row(cache.stats()) for cache in self.caches)


def tasks_of(allocator: Allocator) -> Tasks:
    """What lies behind an allocator: for the laboratory, benchmarks and tests."""
    return allocator._tasks


@asynccontextmanager
@keywords(AllocatorOptions)
async def open_allocator(**options: Unpack[AllocatorKeywords]) -> AsyncIterator[Allocator]:
    """Open an allocator for the duration of an ``async with`` block.

    Its tasks live in the block. An exception raised inside comes out as it is, not in an exception group.
    Leaving the block suspends while memory is given back, for at most half a second: what is still stuck then is
    abandoned, with a ResourceWarning.

    :param options: the fields of `AllocatorOptions`, where each is described
    :raises ConfigError: if anything is not allowed
    """
    config = allocator_config(AllocatorOptions(**options), slabs=Mmap, emergency=Heap)
    service = Tasks(config)
    raised: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.run)
        try:
            yield Allocator(service)
        except BaseException as exc:  # re-raised below, outside of the task group
            raised = exc
        try:
            with anyio.CancelScope(shield=True):
                found = await service.close()
        finally:  # a second Ctrl-C must not leave the shielded tasks behind
            service.stop()
            service.release_late()
    try:
        for warning in found:
            warnings.warn(warning, ResourceWarning, stacklevel=3)
    finally:
        if raised is not None:
            raise raised
