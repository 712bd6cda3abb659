"""Cache: allocating and freeing objects of one size.

The order of the file is the way of an allocation: the hot path; what can be had without waiting; several at
once; then moving, filling, looking and closing. What lies behind it is in _pool.py.

Any thread may call ``alloc_nowait`` and free. What suspends, or says so, is for the event loop's thread.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
import anyio.lowlevel

from ._checks import seconds, whole_number
from ._clients import log_failure
from ._config import CacheConfig
from ._errors import CacheClosedError, ConfigError, WrongCacheError
from ._fastpath import Buffer, ManagedBuffer, Slot, lease_view
from ._flags import FINISHES, KM, LEVEL
from ._home import CacheHome
from ._kmem._errands import Errand
from ._lease import Lease, ManyLease
from ._snapshot import cache_stats, situation
from ._stats import CacheStats, Tally
from .backends._libc import zero

if TYPE_CHECKING:
    from ._kmem._move import Move
    from ._kmem._pool import Pool

T = TypeVar("T")

_SLEEP, _NOSLEEP, _PUSHPAGE, _MEMALLOC = KM.SLEEP, KM.NOSLEEP, KM.PUSHPAGE, KM.MEMALLOC


class Cache(Generic[T]):
    """Objects of one size. Made by `Allocator.create_cache`.

    ``T`` is what ``ctor`` builds; memoryview without one.
    """

    def __init__(self, pool: Pool[T], config: CacheConfig[T]) -> None:
        self._pool = pool
        self._config = config
        self._engine = pool.engine
        self._magazine = pool.magazine
        self._tally = Tally()
        self._home: CacheHome[T] = CacheHome(self, pool, config, self._tally)
        self._closing: anyio.Event | None = None
        self._hits = 0
        self._misses = 0
        self._managed = config.init_on_free or config.movable or config.merge
        # What an allocation must always do besides popping from the magazine; whether it must do anything
        # besides now. The hot path looks at these alone.
        self._always_slow = self._engine.config.checkpoints or config.init_on_alloc or self._managed
        self._always_slow = self._always_slow or config.watermark > 0
        self._slow = self._always_slow
        pool.join(self)

    @property
    def name(self) -> str:
        """The name it was created under."""
        return self._config.name

    @property
    def size(self) -> int:
        """Bytes of one object."""
        return self._config.shape.size

    @property
    def ctor(self) -> Callable[[memoryview], T] | None:
        """What builds the object of a slot."""
        return self._config.ctor

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<Cache {self.name!r}, {self.size} bytes: {stats.obj_held} held, {self._pool.depot.free} free, "
            f"{stats.waiters} waiting, marks {self._pool.marks}>"
        )

    # -- the hot path

    async def alloc(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Buffer[T]:
        """Allocate one object.

        With SLEEP, PUSHPAGE and MEMALLOC it never fails for want of memory: it waits for a free, for growth or,
        when growth is late, for an emergency object. NOSLEEP is `alloc_nowait`.

        On a hit it does not suspend (unless the allocator has ``checkpoints``). Every wait may be
        cancelled; an object that was on its way goes to the next waiter. Event loop's thread only.

        :param timeout: the caller's own patience, in seconds
        :raises TimeoutError: if ``timeout`` has passed
        :raises CacheClosedError: if the cache is closed, or is while waiting
        :raises BackendError: if a backend broke its contract
        :raises ConstructorError: if the cache's ``ctor`` raised
        """
        if self._slow or flags is not _SLEEP or timeout is not None:
            return await self._alloc_slowly(flags, timeout)
        try:
            slot = self._magazine.pop()
        except IndexError:
            return await self._alloc_slowly(flags, timeout)
        self._hits += 1
        buf: Buffer[T] = Buffer()
        buf._home = self._home
        buf._view = None
        buf._slot = slot
        return buf

    def alloc_nowait(self, flags: KM = KM.NOSLEEP) -> Buffer[T]:
        """Allocate one object at once: magazine, slabs, then one emergency attempt that may not wait.

        Callers that wait in `alloc` come first, after a millisecond beside free objects. A miss asks for growth in
        the background. Never suspends; any thread (but not a finaliser).

        :param flags: NOSLEEP, PUSHPAGE or MEMALLOC
        :raises anyio.WouldBlock: if there is none
        :raises CacheClosedError: if the cache is closed
        """
        if self._slow or flags is not _NOSLEEP:
            return self._alloc_now(flags)
        try:
            slot = self._magazine.pop()
        except IndexError:
            return self._alloc_now(flags)
        self._hits += 1
        buf: Buffer[T] = Buffer()
        buf._home = self._home
        buf._view = None
        buf._slot = slot
        return buf

    def alloc_blocking(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Buffer[T]:
        """As `alloc`, for threads that run no event loop: blocks the thread instead of suspending a task.

        Any thread but the event loop's, while the loop runs.

        :param timeout: the caller's own patience, in seconds
        :raises RuntimeError: on the event loop's thread, which it would block for ever
        :raises TimeoutError: if ``timeout`` has passed
        :raises anyio.WouldBlock: with NOSLEEP, as `alloc_nowait`
        :raises CacheClosedError, BackendError, ConstructorError: as `alloc`
        """
        self._check(flags, _SLEEP, _PUSHPAGE, _MEMALLOC, _NOSLEEP)
        if flags is _NOSLEEP:
            return self._alloc_now(flags)
        if timeout is not None:
            seconds("timeout", timeout, zero=True)
        slot = self._at_hand(flags)
        if slot is None:
            self._pool.growth.check_possible(1, flags)
            errand = Errand(partial(self._pool.room.wait, flags, 1, self._tally), self._pool.give_back_all)
            try:
                (slot,) = self._engine.run_errand(errand, timeout)
            except TimeoutError:
                raise self._too_late(timeout) from None
        return self._hand_out(slot)

    def lease(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Lease[T]:
        """``async with cache.lease() as buf:`` is `alloc` and `Buffer.free` around a block."""
        return Lease(partial(self.alloc, flags, timeout=timeout))

    def free(self, buf: Buffer[T]) -> None:
        """As `Buffer.free`, and checks that the buffer is of this cache. Any thread.

        :raises WrongCacheError: if it is not; it stays allocated
        """
        if buf.cache is not self:
            raise WrongCacheError(f"a buffer of cache {buf.cache.name!r} was given to cache {self.name!r}")
        buf.free()

    # -- what can be had without waiting

    async def _alloc_slowly(self, flags: KM, timeout: float | None) -> Buffer[T]:
        self._check(flags, _SLEEP, _PUSHPAGE, _MEMALLOC, _NOSLEEP)
        if flags is _NOSLEEP:
            if self._engine.config.checkpoints:
                await anyio.lowlevel.checkpoint()
            return self._alloc_now(flags)
        (slot,) = await self._get(1, flags, timeout)
        return self._hand_out(slot)

    async def _get(self, n: int, flags: KM, timeout: float | None) -> list[Slot[T]]:
        if timeout is not None:
            seconds("timeout", timeout, zero=True)
        self._engine.check_thread()
        if self._engine.config.checkpoints:
            await anyio.lowlevel.checkpoint()
            self._check_open()
        if n > 1:
            self._pool.learn(n, LEVEL[flags])
        elif (slot := self._at_hand(flags, runs=True)) is not None:
            return [slot]
        else:
            self._pool.growth.check_possible(1, flags)
        if timeout is None:
            return await self._pool.room.wait(flags, n, self._tally)
        with anyio.move_on_after(timeout):
            return await self._pool.room.wait(flags, n, self._tally)
        raise self._too_late(timeout)

    def _too_late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{situation(self._pool, self)}: nothing came within {timeout:g} s")

    def _alloc_now(self, flags: KM) -> Buffer[T]:
        self._check(flags, _NOSLEEP, _PUSHPAGE, _MEMALLOC)
        slot = self._at_hand(flags, runs=self._engine.on_its_thread) or self._pool.get_now(flags, self)
        return self._hand_out(slot)

    def _check(self, flags: KM, *allowed: KM) -> None:
        if type(flags) is not KM or flags not in allowed:
            raise ConfigError("flags", flags, f"allowed here are {', '.join(map(str, allowed))}")
        self._check_open()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise self._closed_error()

    def _closed_error(self) -> CacheClosedError:
        return CacheClosedError(f"cache {self.name!r} is closed")

    def _at_hand(self, flags: KM, *, runs: bool = False) -> Slot[T] | None:
        """A free object. Those who wait for one come first, but may be passed by a task that runs now."""
        if flags is _MEMALLOC:
            self._pool.learn(1, FINISHES)
        line = self._pool.line
        if line.first is None:
            try:
                slot = self._magazine.pop()
            except IndexError:
                pass
            else:
                self._hits += 1
                return slot
        elif runs and (passing := self._pool.room.passing.take(LEVEL[flags])):
            self._hits += 1
            return passing
        self._misses += 1
        self._pool.parking.look()
        if line.first is not None:
            return None
        depot = self._pool.depot
        level = LEVEL[flags]
        found = depot.take(lingering=False) or self._pool.take_set_aside(level)
        return found or depot.lingering.take()

    def _hand_out(self, slot: Slot[T]) -> Buffer[T]:
        # What lingers may have been written to since its free.
        if self._config.init_on_alloc or (slot.kept and self._config.init_on_free):
            zero(slot.address, self.size)
        if not self._managed and slot.slab is not None:
            buf: Buffer[T] = Buffer()
        else:
            buf = self._managed_handle(slot)
        buf._home = self._home
        # With a view its free looks, and the slot goes on lingering; a managed one looks anyway.
        buf._view = lease_view(slot.exporter) if slot.kept and not self._managed else None
        buf._slot = slot
        if self._config.watermark:
            self._engine.attend(self._pool, self._pool.growth.ask)
        return buf

    def _managed_handle(self, slot: Slot[T]) -> Buffer[T]:
        buf: ManagedBuffer[T] = ManagedBuffer()
        buf.emergency = slot.slab is None
        buf.moving = buf.touched = buf.left = False
        if self._pool.mover.able:
            slot.owner = weakref.ref(buf)
        tally = self._tally
        tally.handed_out += 1
        if buf.emergency:
            tally.emergency += 1
            tally.emergency_max = max(tally.emergency_max, tally.emergency)
            self._engine.attend(self._pool, self._pool.note_waiting)
        return buf

    # -- several at once

    async def alloc_many(self, n: int, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> list[Buffer[T]]:
        """Allocate ``n`` objects, all or none.

        It waits in the same line as `alloc`, in one place, until there are enough for it; nobody behind it gets
        any before. So tasks that need several cannot lock each other out, as they can by taking one by one. When
        growth is late, what is missing comes as emergency objects. Suspends, may be cancelled, and loses nothing
        then. Event loop's thread only.

        :param flags: SLEEP, PUSHPAGE or MEMALLOC
        :param timeout: the caller's own patience for all of them, in seconds
        :raises ConfigError: if ``max_objects`` or ``limit`` can never allow as many to such a caller
        :raises TimeoutError: if ``timeout`` has passed
        :raises CacheClosedError: if the cache is closed, or is while waiting
        :raises BackendError: if a backend broke its contract
        :raises ConstructorError: if the cache's ``ctor`` raised
        """
        whole_number("n", n, 1)
        self._check(flags, _SLEEP, _PUSHPAGE, _MEMALLOC)
        self._pool.growth.check_possible(n, flags)
        return [self._hand_out(slot) for slot in await self._get(n, flags, timeout)]

    def lease_many(self, n: int, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> ManyLease[T]:
        """``async with cache.lease_many(n) as bufs:`` is `alloc_many` and a free of each around a block."""
        return ManyLease(partial(self.alloc_many, n, flags, timeout=timeout))

    # -- moving

    def set_move(self, callback: Move[T]) -> None:
        """Have a client move its objects when asked (illumos' kmem_cache_set_move). Event loop's thread only.

        ``callback(old, new, size)`` gets the handle that the client has and a new one of another place, both
        allocated and constructed. It moves what it keeps and answers with a `KMEM_CBRC`, and frees neither. It
        is called on the event loop, so keep it short. An exception, and any other answer, counts as NO and is
        logged. Buffers then cost more to allocate and free, by about 2 µs.

        :raises ConfigError: if it is no function, objects have been allocated already, or the cache moves by
            itself or shares its slabs
        :raises CacheClosedError: if the cache is closed
        """
        self._check_open()
        if not callable(callback):
            raise ConfigError("callback", callback, "allowed is a function of old, new and size")
        if self._config.movable or self._config.merge:
            raise ConfigError("callback", callback, "allowed where neither movable nor merge is set")
        if self._hits or self._misses or self._pool.mover.able:
            raise ConfigError("callback", callback, "allowed once, and before the first allocation")
        self._pool.mover.callback = callback
        self._managed = self._always_slow = self._slow = True

    async def defragment(self) -> int:
        """One pass: emergency objects move into slabs; sparse slabs are emptied into fuller ones, and given back.

        Only for caches that are ``movable`` or have a move callback. Slabs are grown for emergency objects as far
        as that is allowed, and not late. Stops where callers wait for objects. Answers the bytes given back.
        Suspends; may be cancelled between two moves. Event loop's thread only.
        """
        self._check_open()
        await self._pool.mover.defragment()
        return await self._pool.reclaim.reap(drain=False) if self._pool.mover.able else 0

    def _ask_client(self, nbytes: float) -> int:
        """Pressure: have the client free objects of so many bytes. Answers how many it says it has freed."""
        objects = self._pool.held(self)
        if not math.isinf(nbytes):
            objects = min(objects, math.ceil(nbytes / self._config.shape.stride))
        if self._config.reclaim is None or objects <= 0:
            return 0
        try:
            freed = self._config.reclaim(objects)
            whole_number("reclaim(n)", freed, 0)
        except BaseException as exc:
            log_failure(exc, "cache %r: its reclaim callback failed", self.name)
            return 0
        self._tally.reclaimed += freed
        return freed

    # -- filling, reaping, closing, looking

    async def prefill(self, n: int) -> None:
        """Grow until ``n`` objects are free. Suspends until they are; may be cancelled, and keeps what came.

        :raises ConfigError: if ``max_objects`` or the allocator's ``limit`` can never allow as many
        :raises BackendError: if the backend broke its contract
        """
        whole_number("n", n, 0)
        self._engine.check_thread()
        self._check_open()
        self._pool.growth.check_possible(n, _SLEEP)
        await self._pool.growth.fill(n, self._tally)

    async def reap(self) -> int:
        """Drain the magazine and give every empty slab back. Suspends until they are back.

        Answers the bytes given back; none where the allocator is sealed. If cancelled, what was begun goes on.
        """
        self._engine.check_thread()
        return await self._pool.reclaim.reap()

    async def aclose(self) -> None:
        """Close: waiters get `CacheClosedError`, free memory goes back. Suspends until it is back.

        Buffers still held give one ResourceWarning; their memory stays valid until they are freed.
        Closing twice does nothing.
        """
        warning = "" if self._closing else self._shut()
        try:
            if self._closing is not None:
                await self._closing.wait()
        finally:
            if warning:
                warnings.warn(warning, ResourceWarning, stacklevel=2)

    def _shut(self) -> str:
        """Close. Answers what there is to warn of."""
        self._slow = self._always_slow = True
        del self._engine.caches[self.name]
        self._closing = self._pool.leave(self, CacheClosedError(f"cache {self.name!r} was closed"))
        held = self.stats().obj_held
        return f"cache {self.name!r} was closed with {held} buffers still held" if held else ""

    def stats(self) -> CacheStats:
        """A snapshot of the counters. Any thread."""
        return cache_stats(self._pool, self)
