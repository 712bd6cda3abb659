"""Allocator: what a service opens, and makes its caches with."""

from __future__ import annotations

import math
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio

from ._cache import Cache
from ._checks import format_size, whole_number
from ._config import AllocatorConfig, cache_config
from ._errors import CacheClosedError, ConfigError, SealedError
from ._flags import CacheFlags
from ._kmem._slowpath import ready
from ._reaper import give_everything
from ._stats import HEADER, AllocatorStats, row
from ._tasks import Tasks
from .backends import Heap, Mmap
from .backends._protocol import Backend

if TYPE_CHECKING:
    from .pressure import Source

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
        """The open caches, in the order of creation."""
        return tuple(self._tasks.caches.values())

    @overload
    def create_cache(
        self,
        name: str,
        size: int,
        *,
        align: int = ...,
        objects_per_slab: int | None = ...,
        max_slab_size: int | None = ...,
        magazine_size: int | None = ...,
        ctor: None = ...,
        dtor: None = ...,
        reclaim: Callable[[int], int] | None = ...,
        reserve: int = ...,
        memalloc_reserve: int | None = ...,
        min_objects: int = ...,
        max_objects: int | None = ...,
        max_emergency: int | None = ...,
        watermark: int = ...,
        movable: bool = ...,
        merge: bool = ...,
        init_on_alloc: bool | None = ...,
        init_on_free: bool | None = ...,
        flags: CacheFlags = ...,
    ) -> Cache[memoryview]: ...

    @overload
    def create_cache(
        self,
        name: str,
        size: int,
        *,
        align: int = ...,
        objects_per_slab: int | None = ...,
        max_slab_size: int | None = ...,
        magazine_size: int | None = ...,
        ctor: Callable[[memoryview], T],
        dtor: Callable[[T], None] | None = ...,
        reclaim: Callable[[int], int] | None = ...,
        reserve: int = ...,
        memalloc_reserve: int | None = ...,
        min_objects: int = ...,
        max_objects: int | None = ...,
        max_emergency: int | None = ...,
        watermark: int = ...,
        movable: bool = ...,
        merge: bool = ...,
        init_on_alloc: bool | None = ...,
        init_on_free: bool | None = ...,
        flags: CacheFlags = ...,
    ) -> Cache[T]: ...

    def create_cache(
        self,
        name: str,
        size: int,
        *,
        align: int = 64,
        objects_per_slab: int | None = None,
        max_slab_size: int | None = None,
        magazine_size: int | None = None,
        ctor: Callable[[memoryview], Any] | None = None,
        dtor: Callable[[Any], None] | None = None,
        reclaim: Callable[[int], int] | None = None,
        reserve: int = 0,
        memalloc_reserve: int | None = None,
        min_objects: int = 0,
        max_objects: int | None = None,
        max_emergency: int | None = None,
        watermark: int = 0,
        movable: bool = False,
        merge: bool = False,
        init_on_alloc: bool | None = None,
        init_on_free: bool | None = None,
        flags: CacheFlags = CacheFlags(0),  # noqa: B008  (an immutable flag)
    ) -> Cache[Any]:
        """Make a cache for objects of ``size`` bytes. Does not suspend; event loop's thread only.

        :param name: shown in tables and warnings; one cache of a name at a time
        :param align: a power of two, 8 to the page size
        :param objects_per_slab: 8 by default, fewer where a slab would pass ``max_slab_size`` or leave more than a
            16th of ``limit`` or ``max_objects`` unused. More make growth rarer and longer.
        :param max_slab_size: bytes; by default 32 MiB, or one object where that is larger
        :param magazine_size: free objects kept at hand, 2..256; by default from the object's size, as SPL does
        :param ctor: builds the object of a slot when its slab is made, not at each allocation (Bonwick
            1994). Gets the memory; called on the event loop, once an object: keep it short. An emergency
            object is built as it is made, in the thread of the caller. If it raises, the frames it ran in are
            cleared of their variables, which hold on to the memory.
        :param dtor: undoes ``ctor``, before the slab is given back; for an emergency object, in the thread
            that frees it. What it raises is logged.
        :param reclaim: asked under pressure to free so many of its objects; answers how many it freed. Called on
            the event loop, outside of any allocation: keep it short. What it raises is logged.
        :param reserve: objects set aside for PUSHPAGE callers (Linux' mempool), and room for them under ``limit``;
            filled from here on, see `Allocator.ready`, and refilled first by what is freed
        :param memalloc_reserve: objects set aside, besides, for MEMALLOC callers alone: what one of them may still
            need to finish. With so many, some caller can always finish. A number is set aside from the start, and
            guaranteed; None takes what such callers have asked for from ``reserve``, all but one.
        :param min_objects: room for so many, in whole slabs, is set aside for this cache under ``limit``
        :param max_objects: in slabs, which come whole. At the limit callers wait for a free.
        :param max_emergency: emergency objects outstanding; None is no bound
        :param watermark: growth starts in the background when fewer objects are free
        :param movable: buffers may be moved, so that sparse slabs can go: reach their memory by `Buffer.pin`
        :param merge: share slabs with other such caches that are the same in everything but name and ``reclaim``
            (as SLUB does); bounds then are those of the slabs they share
        :param init_on_alloc: zero each object when it is allocated; None is as the allocator has it. Refused with
            a ``ctor``, and the allocator's does not count there: what was built must outlive a free. Each owner
            then sees what the last one left.
        :param init_on_free: zero each object when it is freed; the same holds
        :param flags: `CacheFlags.NOEMERGENCY`
        :raises ConfigError: for anything that is not allowed; nothing is created then
        :raises CacheClosedError: if the allocator is closed
        :raises SealedError: if it is sealed
        """
        if self._arena.closed:
            raise CacheClosedError("the allocator is closed")
        if self._arena.budget.sealed:
            raise SealedError(f"the allocator is sealed: cache {name!r} could never have an object")
        defaults = self._arena.config
        config = cache_config(
            limit=defaults.limit,
            emergency_limit=defaults.emergency_limit,
            name=name,
            size=size,
            align=align,
            objects_per_slab=objects_per_slab,
            max_slab_size=max_slab_size,
            magazine_size=magazine_size,
            ctor=ctor,
            dtor=dtor,
            reclaim=reclaim,
            reserve=reserve,
            memalloc_reserve=memalloc_reserve,
            min_objects=min_objects,
            max_objects=max_objects,
            max_emergency=max_emergency,
            watermark=watermark,
            movable=movable,
            merge=merge,
            init_on_alloc=defaults.init_on_alloc and ctor is None if init_on_alloc is None else init_on_alloc,
            init_on_free=defaults.init_on_free and ctor is None if init_on_free is None else init_on_free,
            flags=flags,
        )
        if name in self._tasks.caches:
            raise ConfigError("name", name, "allowed is a name that no other cache of this allocator has")
        room = self._arena.budget.unpromised
        if room is not None and config.guaranteed > room:
            asked = ("min_objects", min_objects), ("reserve", config.set_aside)
            field, objects = max(asked, key=lambda given: given[1])
            allowed = f"allowed is what {room} bytes hold: the limit less other guarantees"
            raise ConfigError(field, objects, allowed)
        return self._tasks.make_cache(config)

    async def ready(self) -> None:
        """Suspend until the reserve of every cache is full. May be cancelled, and keeps what came.

        :raises CacheClosedError: if one of them is closed meanwhile
        :raises BackendError: if a backend broke its contract
        :raises ConstructorError: if the ``ctor`` of a cache with a reserve raised
        """
        for pool in self._tasks.pools:
            await ready(pool)

    def seal(self) -> None:
        """Nothing grows from here on, and nothing goes back.

        For services that allocate at start-up and never again. Grows under way still end. What would have grown
        waits for a free, and is counted (`CacheStats.sealed`).
        There is no way back. Does not suspend; event loop's thread only.
        """
        self._arena.budget.seal()

    async def reap(self, nbytes: int | None = None) -> int:
        """Give memory back, in steps: empty slabs, magazines, what clients free when asked, defragmentation.

        :param nbytes: stop as soon as so many bytes are back; None is all four steps
        :return: the bytes given back; none where the allocator is sealed. Suspends; if cancelled, what was begun
            goes on. Event loop's thread only.
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
            emergency_bytes=self._arena.permits.outstanding,
            emergency_bytes_max=self._arena.permits.highest,
            emergency_limit=self._arena.permits.limit,
            kicked=self._tasks.worker.kicked,
            sealed=self._arena.budget.sealed,
            caches=tuple(cache.stats() for cache in self.caches),
        )

    def table(self) -> str:
        """The text of /proc/spl/kmem/slab. Any thread."""
        return HEADER + "".join(row(cache.stats()) for cache in self.caches)


def tasks_of(allocator: Allocator) -> Tasks:
    """What lies behind an allocator: for the laboratory, benchmarks and tests."""
    return allocator._tasks


@asynccontextmanager
async def open_allocator(
    *,
    slabs: Backend | None = None,
    emergency: Backend | None = None,
    grow_timeout: float | None = None,
    limit: int | None = None,
    emergency_limit: int | EllipsisType | None = ...,
    expire: float | None = 15.0,
    growth_workers: int = 1,
    kick_after: float | None = 5.0,
    pressure: Sequence[Source] = (),
    init_on_alloc: bool = False,
    init_on_free: bool = False,
    checkpoints: bool = False,
) -> AsyncIterator[Allocator]:
    """Open an allocator for the time of an ``async with`` block.

    Its tasks live in the block. What is raised inside comes out as it is, not in an exception group.
    Leaving suspends for as long as memory takes to go back, half a second at most: what is stuck then is
    abandoned, with a ResourceWarning.

    :param slabs: where slabs come from; `aslab.backends.Mmap` by default
    :param emergency: where single emergency objects come from; `aslab.backends.Heap` by default
    :param grow_timeout: seconds that a caller waits for growth before the emergency path (SPL: HZ/10). None
        is learned for each cache, from what its grows take: 10 ms to 1 s, half of that for PUSHPAGE and MEMALLOC.
        What it is now is in `CacheStats.grow_timeout`.
    :param limit: most bytes of slabs over all caches; at the limit callers wait for a free
    :param emergency_limit: most bytes of emergency objects over all caches, the last quarter for PUSHPAGE and
        MEMALLOC, and the last object for MEMALLOC alone once there was such a caller; by default a quarter of
        ``limit``, but at least the largest object of a cache, and no bound without ``limit``. None is no bound, 0
        is none of them. Backends never have more than ``limit`` + ``emergency_limit`` outstanding.
    :param expire: seconds after which idle magazines drain and idle empty slabs go back, 0.01 at least; None is
        never
    :param growth_workers: more than the single serialized worker only for experiments
    :param kick_after: seconds after which a stuck grow is set aside, so that other caches grow, 0.01 at least;
        None is never
    :param pressure: what tells that memory is short, such as `aslab.pressure.Cgroup`; idle memory goes back then
    :param init_on_alloc: zero each object when it is allocated, in the caller's thread (about 0.1 ms a MiB);
        not in caches with a ``ctor``
    :param init_on_free: zero each object when it is freed; not in caches with a ``ctor``
    :param checkpoints: every `Cache.alloc` is a full checkpoint, even on a hit (trio's rule)
    :raises ConfigError: for anything that is not allowed
    """
    config = AllocatorConfig(
        slabs=Mmap() if slabs is None else slabs,
        emergency=Heap() if emergency is None else emergency,
        grow_timeout=grow_timeout,
        limit=limit,
        emergency_limit=emergency_limit,
        expire=expire,
        growth_workers=growth_workers,
        kick_after=kick_after,
        pressure=tuple(pressure),
        init_on_alloc=init_on_alloc,
        init_on_free=init_on_free,
        checkpoints=checkpoints,
    )
    service = Tasks(config)
    raised: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.run)
        try:
            yield Allocator(service)
        except BaseException as exc:  # raised again below, outside of the task group
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
