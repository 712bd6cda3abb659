"""Cache: allocating and freeing objects of one size.

The file follows an allocation: the hot path, the detour, several at once; then moving, filling and closing.

Always true, between calls:

    1. an open cache is in `_open_caches` under its name; a closed one is not, and its `_closing` is set
    2. the magazine's `detour` is set while an allocation has to do more than pop a slot and wrap it
    3. each slot handed out has exactly one handle, and its `_home` leads back to this cache

Any thread may call ``alloc_nowait`` and free. Methods that suspend are for the event loop's thread, and others
say which threads may call them.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from ._checked import checked
from ._checks import seconds, whole_number
from ._config import CacheConfig
from ._errors import CacheClosedError, ConfigError, CorruptionError, WrongCacheError
from ._fastpath import OPTIONS, Buffer, EmergencyBuffer, Front, ManagedBuffer, Noted, SeenBuffer, Slot, lease_view
from ._flags import KM, LEVEL
from ._holder import Holder
from ._home import CacheHome
from ._kmem._errands import Errand
from ._kmem._frees import admit, give_back, hand_out_all, orphan
from ._kmem._holders import Holders, Member
from ._kmem._invariants import left_behind, validate
from ._kmem._move import defragment
from ._kmem._moving import Move
from ._kmem._pool import Pool
from ._kmem._reclaim import reap
from ._kmem._slowpath import at_hand, fill, get_now, learn, wait
from ._kmem._snapshot import cache_stats, too_late
from ._kmem._waiters import Expired
from ._lease import ManyLease
from ._stats import CacheStats
from .backends._libc import zero

T = TypeVar("T")

_SLEEP, _NOSLEEP, _PUSHPAGE, _MEMALLOC = KM.SLEEP, KM.NOSLEEP, KM.PUSHPAGE, KM.MEMALLOC


class Cache(Front[T]):
    """A pool of objects of one size. Made by `Allocator.create_cache`.

    ``T`` is the type that ``ctor`` builds; memoryview without one.
    """

    __slots__ = (  # without a dict the interpreter finds methods faster
        "__weakref__",
        "_arena",
        "_closing",
        "_config",
        "_counters",
        "_managed",
        "_member",
        "_open_caches",
        "_pool",
    )

    def __init__(self, pool: Pool[T], config: CacheConfig[T], open_caches: dict[str, Cache[Any]]) -> None:
        self._pool = pool
        self._config = config
        self._open_caches = open_caches  # its allocator's, by name; closing removes it
        self._arena = pool.arena
        self._magazine = pool.magazine
        self._member = Member(config.name, Holders(pool.magazine, pool.arena.clock, config), config.reclaim)
        self._arena.holders[self._member.holders] = None
        self._counters = self._member.counters
        self._home: CacheHome[T] = CacheHome(self, pool, self._member, self._wrap)
        self._closing: anyio.Event | None = None
        self._managed = bool(config.init_on_free or config.movable or config.merge or config.debug)
        if pool.arena.config.checkpoints or config.init_on_alloc or self._managed or config.watermark:
            pool.magazine.divert(OPTIONS)
        pool.join(self._member)

    @property
    def name(self) -> str:
        """The name given to `Allocator.create_cache`."""
        return self._config.name

    @property
    def size(self) -> int:
        """The size of one object in bytes."""
        return self._config.shape.size

    @property
    def ctor(self) -> Callable[[memoryview], T] | None:
        """The function that builds the object of a slot, or None."""
        return self._config.ctor

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<Cache {self.name!r}, {self.size} bytes: {stats.obj_held} held, {self._pool.depot.free} free, "
            f"{stats.waiters} waiting, marks {self._pool.marks}>"
        )

    # -- the hot path is that of `Front`; beside it:

    def alloc_blocking(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Buffer[T]:
        """Like `alloc`, for threads that run no event loop: blocks the thread instead of suspending a task.

        Any thread except the event loop's, while the loop runs.

        :param timeout: seconds to wait at most; None waits for as long as it takes
        :raises RuntimeError: if it would have to wait on the event loop's thread, which would never wake
        :raises TimeoutError: after ``timeout`` seconds
        :raises anyio.WouldBlock: with NOSLEEP, like `alloc_nowait`
        :raises CacheClosedError, BackendError, ConstructorError: like `alloc`
        """
        self._check(flags, timeout, _SLEEP, _PUSHPAGE, _MEMALLOC, _NOSLEEP)
        if flags is _NOSLEEP:
            return self._alloc_now(flags)
        slot = at_hand(self._pool, flags, self._counters)
        if slot is None:
            self._pool.growth.check_possible(1, flags)
            late: list[bool] = []
            errand = Errand(partial(self._wait_for_thread, flags, late), partial(give_back, self._pool))
            try:
                (slot,) = errand.run(self._arena, timeout)
            except TimeoutError:
                raise too_late(self._pool, self._member, timeout) from None
            return self._hand_out(slot, late=late[0])
        return self._hand_out(slot)

    async def _wait_for_thread(self, flags: KM, late: list[bool]) -> list[Slot[T]]:
        self._check_open()  # again, as the cache may have been closed before the loop came to this
        slots = await wait(self._pool, flags, 1, self._counters)
        late.append(self._counters.waited_long)  # for the thread, and not for whoever runs before it
        self._counters.waited_long = False
        return slots

    def free(self, buf: Buffer[T]) -> None:
        """Like `Buffer.free`, but first checks that the buffer belongs to this cache. Any thread.

        :raises WrongCacheError: if it does not; the buffer stays allocated
        """
        if buf.cache is not self:
            raise WrongCacheError(f"a buffer of cache {buf.cache.name!r} was given to cache {self.name!r}")
        buf.free()

    # -- the detour

    async def _alloc_slowly(self, flags: KM, timeout: float | None) -> Buffer[T]:
        if flags is not _SLEEP or timeout is not None or self._closing is not None:
            self._check(flags, timeout, _SLEEP, _PUSHPAGE, _MEMALLOC, _NOSLEEP)
        if get_ident() != self._arena.thread and flags is not _NOSLEEP:
            self._arena.check_thread()
        if self._arena.config.checkpoints:
            await anyio.lowlevel.checkpoint()
            self._check_open()
        if flags is _NOSLEEP:
            return self._alloc_now(flags)
        slot = at_hand(self._pool, flags, self._counters, runs=True)
        if slot is None:
            self._pool.growth.check_possible(1, flags)
            try:
                (slot,) = await wait(self._pool, flags, 1, self._counters, timeout)
            except Expired:
                raise too_late(self._pool, self._member, timeout) from None
        return self._hand_out(slot)

    def _alloc_now(self, flags: KM) -> Buffer[T]:
        self._check(flags, None, _NOSLEEP, _PUSHPAGE, _MEMALLOC)
        slot = at_hand(self._pool, flags, self._counters, runs=self._arena.on_its_thread)
        return self._hand_out(slot or get_now(self._pool, flags, self._member))

    def _check(self, flags: KM, timeout: float | None, *allowed: KM) -> None:
        if type(flags) is not KM or flags not in allowed:
            raise ConfigError("flags", flags, f"it must be one of {', '.join(map(str, allowed))}")
        if timeout is not None:
            seconds("timeout", timeout, zero=True)
        self._check_open()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise CacheClosedError(f"cache {self.name!r} is closed")

    def _hand_out(self, slot: Slot[T], *, late: bool = False) -> Buffer[T]:
        site = admit(self._pool, slot) if self._managed and self._pool.debug else None
        magazine, counters = self._magazine, self._counters
        note: Noted | None = None
        magazine.due -= 1
        if late or magazine.due < magazine.hits or counters.waited_long:
            counters.waited_long = False
            if self._config.holders_sample:
                note = self._member.holders.note(site)
        return self._wrap(slot, note)

    def _wrap(self, slot: Slot[T], note: Noted | None) -> Buffer[T]:
        # A lingering slot may have been written to since it was freed.
        if self._config.init_on_alloc or (slot.kept and self._config.init_on_free):
            zero(slot.address, self.size)
        managed = self._managed or slot.slab is None or note is not None
        buf: Buffer[T] = (
            self._counted_handle(slot, note) if managed else SeenBuffer() if self._home.seen else Buffer()
        )
        buf._home = self._home
        # A free with a view checks whether the slot has to linger again; a managed free always checks.
        buf._view = lease_view(slot.exporter) if slot.kept and not managed else None
        buf._slot = slot
        if self._config.watermark:
            self._arena.attend(self._pool, self._pool.ask)
        return buf

    def _counted_handle(self, slot: Slot[T], note: Noted | None) -> Buffer[T]:
        counters = self._counters
        counters.handed_out += 1
        emergency = slot.slab is None
        if emergency:
            counters.emergency += 1
            counters.emergency_max = max(counters.emergency_max, counters.emergency)
            if not (self._managed or note is not None or self._home.seen):
                return EmergencyBuffer()
        debug = self._pool.debug
        buf: ManagedBuffer[T] = ManagedBuffer() if debug is None else checked(slot, debug)
        buf._note = note
        buf.emergency = emergency
        buf.moving = buf.touched = buf.left = False
        if self._pool.moving.able:
            slot.owner = weakref.ref(buf)
            if emergency:
                self._arena.attend(self._pool, self._pool.note_moving)
        return buf

    # -- several at once

    async def alloc_many(self, n: int, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> list[Buffer[T]]:
        """Allocate ``n`` objects, all or none.

        It waits in the same line as `alloc`, in one place, until ``n`` objects are free; nobody behind it is
        served first. So tasks that need several objects cannot deadlock by each holding some of them. When growth
        is late, the missing objects are made as emergency objects. Suspends; if cancelled, nothing is lost. Event
        loop's thread only.

        :param flags: SLEEP, PUSHPAGE or MEMALLOC
        :param timeout: seconds to wait at most for all ``n``; None waits for as long as it takes
        :raises ConfigError: if ``max_objects`` or ``limit`` can never allow ``n`` objects for these ``flags``
        :raises TimeoutError, TooManyWaiting, CacheClosedError, BackendError, ConstructorError: like `alloc`
        """
        whole_number("n", n, 1)
        self._check(flags, timeout, _SLEEP, _PUSHPAGE, _MEMALLOC)
        self._pool.growth.check_possible(n, flags)
        if n == 1:
            return [await self._alloc_slowly(flags, timeout)]
        self._arena.check_thread()
        if self._arena.config.checkpoints:
            await anyio.lowlevel.checkpoint()
            self._check_open()
        learn(self._pool, n, LEVEL[flags])
        try:
            slots = await wait(self._pool, flags, n, self._counters, timeout)
        except Expired:
            raise too_late(self._pool, self._member, timeout) from None
        return hand_out_all(self._pool, slots, self._hand_out)

    def lease_many(self, n: int, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> ManyLease[T]:
        """``async with cache.lease_many(n) as bufs:`` is `alloc_many` and `Buffer.free` of each around a block."""
        return ManyLease(partial(self.alloc_many, n, flags, timeout=timeout))

    # -- moving

    def set_move(self, callback: Move) -> None:
        """Ask a client to move its objects (illumos' kmem_cache_set_move). Event loop's thread only.

        ``callback(old, new, size)`` gets the client's handle and a new handle for another slot, both allocated
        and constructed. It moves the contents and the client's references, frees neither, and returns a
        `KMEM_CBRC`. It runs on the event loop, so keep it short. An exception or any other return value is
        logged and counts as NO. With a callback set, an allocation and its free cost about 2 µs more.

        :raises ConfigError: if ``callback`` is not callable, objects have already been allocated, or the cache
            is ``movable`` or has ``merge``
        :raises CacheClosedError: if the cache is closed
        """
        self._check_open()
        if not callable(callback):
            raise ConfigError("callback", callback, "it must be a function of old, new and size")
        if self._config.movable or self._config.merge:
            raise ConfigError("callback", callback, "it excludes movable and merge")
        if self._magazine.hits or self._counters.hits or self._counters.misses or self._pool.moving.able:
            raise ConfigError("callback", callback, "it must be set once, before the first allocation")
        self._pool.moving.callback, self._pool.moving.able = callback, True
        self._managed = True
        self._magazine.divert(OPTIONS)

    async def defragment(self) -> int:
        """Move emergency objects into slabs, empty sparse slabs into fuller ones, and give back the empty slabs.

        Does nothing unless the cache is ``movable`` or has a move callback. Grows slabs for emergency objects
        where limits allow it and growth is not late. Stops when callers wait for objects. Returns the number of
        bytes given back. Suspends; may be cancelled between two moves. Event loop's thread only.

        :raises CacheClosedError: if the cache is closed
        """
        self._check_open()
        if not self._pool.moving.able:
            return 0
        await defragment(self._pool)
        return await reap(self._pool, drain=False)

    # -- filling, reaping, closing, statistics

    async def prefill(self, n: int) -> None:
        """Grow until ``n`` objects are free. Suspends until they are; if cancelled, slabs already made stay.

        Event loop's thread only.

        :raises ConfigError: if ``max_objects`` or the allocator's ``limit`` can never allow ``n`` objects
        :raises CacheClosedError, BackendError, ConstructorError: like `alloc`
        """
        whole_number("n", n, 0)
        self._arena.check_thread()
        self._check_open()
        self._pool.growth.check_possible(n, _SLEEP)
        await fill(self._pool, n, self._counters)

    async def reap(self) -> int:
        """Drain the magazine and give back every empty slab that nobody waits for. Suspends until they are back.

        Returns the bytes given back, 0 if sealed. Releases go on if cancelled. Loop's thread only.
        """
        self._arena.check_thread()
        return await reap(self._pool)

    async def aclose(self) -> None:
        """Close the cache: waiters get `CacheClosedError`, and free memory goes back. Suspends until it is back.

        Buffers still held cause one ResourceWarning; their memory stays valid until they are freed. Closing
        again only waits for the memory to be back. Event loop's thread only.
        """
        found = shut(self)
        try:
            if self._closing is not None:
                await self._closing.wait()
        finally:
            for warning in found:
                warnings.warn(warning, ResourceWarning, stacklevel=2)

    def validate(self) -> list[CorruptionError]:
        """Check all objects now, as the debug letters say. Returns what was wrong, which is logged and restored.

        Without letters, nothing is. Never suspends; event loop's thread only. Linux has ``slabinfo -v``.
        """
        return validate(self._pool)

    def holders(self) -> tuple[Holder, ...]:
        """As `Allocator.holders`, of this cache alone. Any thread."""
        return tuple(self._member.holders.all())

    def stats(self) -> CacheStats:
        """Return a snapshot of the counters. Any thread."""
        return cache_stats(self._pool, self._member)


def shut(cache: Cache[Any]) -> list[str]:
    """Close a cache unless it is closed already. Returns warnings.

    A shared pool stays open while other caches use it. Allocations from the closed cache are still refused:
    merged caches always take the detour, which checks for that.
    """
    if cache._closing is not None:
        return []
    pool, name = cache._pool, cache.name
    del cache._open_caches[name]
    damaged = validate(pool)
    cache._arena.holders.pop(cache._member.holders, None)
    cache._closing = pool.leave(cache._member, CacheClosedError(f"cache {name!r} was closed"))
    if pool.closed:
        orphan(pool)
    return left_behind(pool, cache._member, damaged)


def pool_of(cache: Cache[Any]) -> Pool[Any]:
    """Return the pool behind a cache, for the lab, benchmarks and tests."""
    return cache._pool
