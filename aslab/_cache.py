"""Cache: allocating and freeing objects of one size.

The order of the file is the way of an allocation: the hot path; what can be had without waiting; the
way back; looking and closing. Waiting is in _waiting.py, growing in _growth.py, giving memory back
in _reclaim.py.

Threads: ``alloc_nowait``, frees and the garbage collector's returns come from any thread. Waiters
and marks belong to the event loop's thread alone; the others ring the allocator's bell for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from ._buffer import Buffer, EmergencyBuffer, ScrubbedBuffer
from ._config import CacheConfig, seconds, whole_number
from ._depot import Depot
from ._emergency import Emergency, EmergencySlot
from ._errors import CacheClosedError, ConfigError, WrongCacheError
from ._flags import KM
from ._growth import Growth
from ._lease import Lease
from ._line import Line
from ._magazine import Magazine
from ._reclaim import Reclaim
from ._slab import Slot
from ._state import Mark, Marks
from ._stats import CacheStats
from ._waiting import WaitingRoom
from .backends._libc import zero

if TYPE_CHECKING:
    from ._engine import Engine

T = TypeVar("T")

_SLEEP, _NOSLEEP, _PUSHPAGE = KM.SLEEP, KM.NOSLEEP, KM.PUSHPAGE
KVMEM = 1 << 7
"""SPL's flag bit for a cache whose slabs are virtually contiguous; all of aslab's are."""


class Cache(Generic[T]):
    """Objects of one size. Made by `Allocator.create_cache`.

    ``T`` is what ``ctor`` builds; memoryview without one.
    """

    def __init__(self, engine: Engine, config: CacheConfig[T]) -> None:
        self._engine = engine
        self._config = config
        self._marks = Marks()
        self._magazine: Magazine[T] = Magazine(config.magazine_size)
        self._depot: Depot[T] = Depot(self._magazine)
        self._emergency = Emergency(config, engine.config.emergency, engine.supply, self._depot.lock)
        self._line: Line[T] = Line()
        self._growth = Growth(
            config,
            self._marks,
            self._depot,
            self._line,
            engine.worker,
            on_begin=lambda: self._room.growth_begins(),
            on_slab=self._attend,
            on_error=lambda error: self._room.send_away(error),
            on_filling=self._note_waiting,
        )
        self._reclaim = Reclaim(config, self._marks, self._depot, engine, self._attend)
        self._room = WaitingRoom(
            self._line,
            self._marks,
            self._depot,
            self._growth,
            self._emergency,
            grow_timeout=engine.config.grow_timeout,
            on_change=self._note_waiting,
            give_back=self._take_back,
            ring=engine.bell.ring,
        )
        self._parked: list[Slot[T]] = []  # lost by their owners while somebody still exports their memory
        self._closing: anyio.Event | None = None
        self._hits = 0
        self._misses = 0
        self._kind: type[Buffer[Any]] = ScrubbedBuffer if config.init_on_free else Buffer
        # What an allocation must always do besides popping from the magazine; whether it must do anything
        # besides now; and whether somebody wants to know of each free. The hot path looks at these alone.
        self._always_slow = engine.config.checkpoints or config.init_on_alloc or config.init_on_free
        self._always_slow = self._always_slow or config.watermark > 0
        self._slow = self._always_slow
        self._waiting = False
        self._growth.ask()

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
            f"<Cache {self.name!r}, {self.size} bytes: {stats.obj_held} held, {self._depot.free} free, "
            f"{stats.waiters} waiting, marks {self._marks}>"
        )

    # -- the hot path

    async def alloc(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Buffer[T]:
        """Allocate one object.

        With SLEEP and PUSHPAGE it never fails for want of memory: it waits for a free, for growth or,
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
        buf._cache = self
        buf._view = None
        buf._slot = slot
        return buf

    def alloc_nowait(self, flags: KM = KM.NOSLEEP) -> Buffer[T]:
        """Allocate one object at once: magazine, slabs, then one emergency attempt that may not wait.

        Callers that wait in `alloc` come first. A miss asks for growth in the background. Never
        suspends; any thread (but not a finaliser).

        :param flags: NOSLEEP or PUSHPAGE
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
        buf._cache = self
        buf._view = None
        buf._slot = slot
        return buf

    def lease(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Lease[T]:
        """``async with cache.lease() as buf:`` is `alloc` and `Buffer.free` around a block."""
        return Lease(self, flags, timeout)

    def free(self, buf: Buffer[T]) -> None:
        """As `Buffer.free`, and checks that the buffer is of this cache. Any thread.

        :raises WrongCacheError: if it is not; it stays allocated
        """
        if buf.cache is not self:
            raise WrongCacheError(f"a buffer of cache {buf.cache.name!r} was given to cache {self.name!r}")
        buf.free()

    # -- what can be had without waiting

    async def _alloc_slowly(self, flags: KM, timeout: float | None) -> Buffer[T]:
        self._check(flags, _SLEEP, _PUSHPAGE, _NOSLEEP)
        if timeout is not None:
            seconds("timeout", timeout, zero=True)
        if self._engine.config.checkpoints:
            await anyio.lowlevel.checkpoint()
            self._check(flags, flags)
        if flags is _NOSLEEP:
            return self._alloc_now(flags)
        slot = self._at_hand()
        if slot is None:
            if timeout is None:
                slot = await self._room.wait(flags)
            else:
                with anyio.fail_after(timeout):
                    slot = await self._room.wait(flags)
        return self._hand_out(slot)

    def _alloc_now(self, flags: KM) -> Buffer[T]:
        self._check(flags, _NOSLEEP, _PUSHPAGE)
        slot = self._at_hand()
        if slot is None:
            self._growth.missed = True
            self._engine.attend(self._growth.ask)
            if self._growth.at_limit or not self._emergency.permit():
                raise anyio.WouldBlock
            try:
                slot = self._emergency.make_nowait(flags)
            except MemoryError:
                raise anyio.WouldBlock from None
        return self._hand_out(slot)

    def _check(self, flags: KM, *allowed: KM) -> None:
        if not any(flags is one for one in allowed):
            raise ConfigError("flags", flags, f"allowed here are {', '.join(map(str, allowed))}")
        if Mark.DESTROY in self._marks:
            raise CacheClosedError(f"cache {self.name!r} is closed")

    def _at_hand(self) -> Slot[T] | None:
        """A free object, unless somebody waits for it already."""
        if not self._line:
            try:
                slot = self._magazine.pop()
            except IndexError:
                pass
            else:
                self._hits += 1
                return slot
        self._misses += 1
        self._unpark()
        return None if self._line else self._depot.take()

    def _hand_out(self, slot: Slot[T]) -> Buffer[T]:
        if self._config.init_on_alloc:
            zero(slot.address, self.size)
        if self._config.watermark:
            self._engine.attend(self._growth.ask)
        kind: type[Buffer[T]] = EmergencyBuffer if slot.slab is None else self._kind
        buf = kind()
        buf._cache = self
        buf._view = None
        buf._slot = slot
        return buf

    # -- the way back

    def _take_back(self, slot: Slot[T]) -> None:
        """A free, from any thread. (`Buffer.free` writes this out.)"""
        magazine = self._magazine
        magazine.append(slot)
        if self._waiting or len(magazine) > magazine.capacity:
            self._settle()

    def _settle(self) -> None:
        """After a free that finds waiters or a full magazine. Waits for no lock."""
        if not self._depot.flush(self._engine.tick):
            self._engine.bell.ring()
        elif Mark.DESTROY in self._marks:
            self._reclaim.empty_out()
        elif self._waiting:
            self._engine.attend(self._serve)

    def _come_back(self, slot: Slot[T]) -> None:
        """What the garbage collector returns, at any moment, in any thread."""
        if slot.slab is None:
            self._free_emergency(cast("EmergencySlot[T]", slot))
            return
        if self._config.init_on_free:
            zero(slot.address, self.size)
        self._magazine.append(slot)
        if Mark.DESTROY in self._marks:
            self._settle()
        elif self._waiting or len(self._magazine) > self._magazine.capacity:
            self._engine.bell.ring()

    def _free_emergency(self, slot: EmergencySlot[T]) -> None:
        if self._config.init_on_free:
            zero(slot.address, self.size)
        self._emergency.free(slot)

    def _park(self, slot: Slot[T]) -> None:
        """Keep a slot whose handle is gone while somebody still exports its memory.

        No finaliser or weak reference can tell when they are gone for good: the garbage collector may run
        theirs later, and bring them back. So now and then the slot is looked at (`_unpark`).
        """
        self._parked.append(slot)

    def _unpark(self) -> None:
        for _ in range(len(self._parked)):
            try:
                slot = self._parked.pop(0)
            except IndexError:  # another thread looks, too
                return
            if slot.in_use():
                self._parked.append(slot)
            else:
                self._come_back(slot)

    def _note_waiting(self) -> None:
        self._waiting = bool(self._line) or self._growth.filling > 0
        self._slow = bool(self._line) or self._always_slow

    def _serve(self) -> None:
        self._room.serve()
        self._growth.tell_fillers()

    def _attend(self) -> None:
        """Look after everything: objects came, or the bell was rung for what another thread did."""
        self._depot.flush(self._engine.tick)
        self._unpark()
        if Mark.DESTROY in self._marks:
            self._reclaim.empty_out()
            return
        self._serve()
        self._room.let_others_try()
        self._growth.ask()

    # -- filling, reaping, ageing, closing

    async def prefill(self, n: int) -> None:
        """Grow until ``n`` objects are free. Suspends until they are; may be cancelled, and keeps what came.

        :raises ConfigError: if ``max_objects`` or the allocator's ``limit`` can never allow as many
        :raises BackendError: if the backend broke its contract
        """
        whole_number("n", n, 0)
        self._check(_SLEEP, _SLEEP)
        shape = self._config.shape
        slabs = -(-n // shape.objects)
        most, limit = self._config.max_objects, self._engine.config.limit
        if most is not None and slabs * shape.objects > most:
            raise ConfigError("n", n, f"allowed are whole slabs within max_objects, {most}")
        if limit is not None and slabs * shape.slab_size > limit:
            raise ConfigError("n", n, f"allowed are whole slabs within the limit, {limit} bytes")
        await self._growth.fill(n)

    async def reap(self) -> int:
        """Drain the magazine and give every empty slab back. Suspends until they are back.

        Answers the bytes given back. If cancelled, what was begun goes on.
        """
        return await self._reclaim.reap()

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
        self._marks.fire("close")
        self._slow = self._always_slow = True
        closed = CacheClosedError(f"cache {self.name!r} was closed")
        self._room.send_away(closed)
        self._growth.send_fillers_away(closed)
        self._magazine.capacity = -1  # so that each later free comes by `_settle`
        self._engine.retire(self)
        self._closing = self._reclaim.empty_out()
        held = self.stats().obj_held
        return f"cache {self.name!r} was closed with {held} buffers still held" if held else ""

    def _age(self, *, expires: bool) -> None:
        used = (self._hits, self._misses, self._depot.slabs.slots_out, len(self._magazine))
        if expires:
            self._reclaim.age(used, self._config.watermark)
        self._attend()

    def stats(self) -> CacheStats:
        """A snapshot of the counters. Any thread."""
        slabs = self._depot.slabs
        cached, handover, emergency = len(self._magazine), self._room.in_handover, len(self._emergency)
        return CacheStats(
            name=self.name,
            flags=self._marks.state.value | self._config.flags.value | KVMEM,
            size=self.size,
            slab_size=self._config.shape.slab_size,
            slab_total=len(slabs),
            slab_alloc=slabs.slabs_used,
            slab_max=slabs.slabs_used_max,
            slab_fail=self._growth.failures,
            slab_create=slabs.created,
            slab_destroy=slabs.destroyed,
            obj_total=slabs.slots_total + emergency,
            obj_alloc=slabs.slots_out,
            obj_max=slabs.slots_out_max,
            obj_deadlock=self._growth.deadlocks,
            obj_emergency=emergency,
            obj_emergency_max=self._emergency.highest,
            obj_held=slabs.slots_out - cached - handover + emergency,
            obj_cached=cached,
            obj_handover=handover,
            waiters=len(self._line),
            hits=self._hits,
            misses=self._misses,
            waits=self._room.waits,
            timeouts=self._room.timeouts,
            growing=Mark.GROWING in self._marks,
            deadlocked=Mark.DEADLOCKED in self._marks,
        )
