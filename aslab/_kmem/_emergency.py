"""Emergency objects: single objects from another backend, for when slabs do not come.

Always true, between calls: an object that the backend has outstanding, or that room was set aside for, is charged
to its pool and to the allocator's `Permits`, once, and both are within their bounds. It belongs to a caller
(`objects`), is spare, lingers, or is on its way to or from the backend.

They live in a hash by address, so that freeing one costs the same whether 10 are outstanding or
100,000 (the 2012 change of SPL walked a list, today's SPL a tree), and a free of any other object
does not look here at all: the handle knows what it is.

One that is freed while slabs are still late would have to be made again at once. So it is kept as a spare,
constructed as it is, for the next caller. It goes once growth is well again, or nobody has wanted it for a moment:
others may depend on the same memory to get on.

In the counters they are part of the objects' total, never of the slabs' (SPL's rule). Spares belong to nobody,
and are counted apart.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from types import EllipsisType
from typing import Any, Generic, TypeVar

from .._clients import keep_interrupt
from .._config import CacheConfig
from .._errors import ConstructorError, clear_frames
from .._fastpath import Slot
from .._flags import FINISHES, GFP, GFP_FOR_EMERGENCY, KM, ORDINARY, CacheFlags
from ..backends._protocol import Region
from ._budget import Tenant
from ._lingering import Lingering
from ._reserve import Reserve
from ._slab import construct, destroy
from ._supply import Supply
from ._waiters import WaitQueue

T = TypeVar("T")

SHARE = 4
"""Of ``limit``, emergency objects may have one part in so many; and of that, urgent callers keep one."""
PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between tries in vain: doubled from the first, a timer tick of 2012, to the most; urgent callers wait no
longer than the first."""


class EmergencySlot(Slot[T]):
    """The place of one emergency object: a region of its own."""

    __slots__ = ("region",)

    region: Region

    def __init__(self, region: Region, size: int) -> None:
        super().__init__(None, region.memory, region.address, 0, size)
        self.region = region


class Permits:
    """How many bytes of emergency objects there may be, over all caches of an allocator.

    They make progress certain while growth is late, so they never count against ``limit``; but a service could
    fill its memory with them meanwhile, so they have a bound of their own. The last quarter is for PUSHPAGE and
    MEMALLOC callers, whose progress frees memory for the others; and once there was a MEMALLOC caller, the last
    object is for such callers alone, so that somebody can always finish. So the allocator never has more than
    ``limit`` + ``emergency_limit`` bytes outstanding at its backends.

    :param limit: bytes; None is no bound, ``...`` a quarter of ``slab_limit``, if there is one
    :param slab_limit: the allocator's ``limit``
    """

    def __init__(self, limit: int | EllipsisType | None, slab_limit: int | None) -> None:
        self._limit = limit
        self._slab_limit = slab_limit
        self._largest = 0
        self._lock = threading.Lock()
        self.finishing: bool = False
        """There was a MEMALLOC caller."""
        self.outstanding: int = 0
        self.highest: int = 0
        """The most ``outstanding`` has been."""
        self.refused: WaitQueue[Any] = WaitQueue()
        """Waiters of all caches that found no room; event loop's thread only."""
        self.spares: dict[Callable[[], object], None] = {}
        """How to have each cache that keeps objects for its next caller give them back."""

    def open(self, size: int) -> None:
        """A cache may make emergency objects of so many bytes: the default allows at least one."""
        self._largest = max(self._largest, size)

    @property
    def limit(self) -> int | None:
        """The most bytes; None is no bound."""
        if not isinstance(self._limit, EllipsisType):
            return self._limit
        return None if self._slab_limit is None else max(self._slab_limit // SHARE, self._largest)

    def most(self, level: int) -> int | None:
        """The most bytes after an object for such a caller. One object is for anybody."""
        limit = self.limit
        if limit is None or level == FINISHES:
            return limit
        kept = max(self._largest * self.finishing, limit // SHARE * (level == ORDINARY))
        return max(limit - kept, min(self._largest, limit))

    def room(self, nbytes: int, level: int) -> bool:
        """Whether so many more bytes would be within bounds now. Any thread."""
        most = self.most(level)
        return most is None or self.outstanding + nbytes <= most

    def try_charge(self, nbytes: int, level: int) -> bool:
        """Charge so many bytes, if there is room. Any thread, but no finaliser."""
        with self._lock:
            if not self.room(nbytes, level):
                return False
            self.outstanding += nbytes
            self.highest = max(self.highest, self.outstanding)
            return True

    def uncharge(self, nbytes: int) -> None:
        """So many bytes are back, or were never had. Any thread, but no finaliser."""
        with self._lock:
            self.outstanding -= nbytes

    def clear_spares(self) -> None:
        """Somebody found no room: what is kept for callers that may come goes back. Event loop's thread."""
        for give_back in tuple(self.spares):
            give_back()

    def grant(self) -> None:
        """There may be room again: permit those who were refused, in order. Event loop's thread."""
        while (waiter := self.refused.first) is not None:
            if waiter.refused_by is not None and waiter.refused_by.hopeless(waiter):
                waiter.wake()
            elif waiter.refused_by is not None and not waiter.refused_by.grant(waiter):
                if not waiter.refused_by.bound_here(waiter):
                    break
                waiter.wake()  # it is the bound of its cache now: let it wait for that
            self.refused.leave(waiter)


class Backoff:
    """When the backend is asked again, once it had none. Event loop's thread only."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._failed_at = -math.inf
        self.failing: bool = False
        """The backend had none when it was asked last."""

    def retry_at(self, level: int) -> float:
        """When the backend may be asked again for such a caller."""
        return self._failed_at + (self._pause if level == ORDINARY else min(self._pause, PAUSE_FIRST))

    def failed(self, level: int, now: float) -> None:
        """It had none for such a caller."""
        if now >= self.retry_at(level):  # else several asked at the same moment
            self._failed_at = now
            self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MOST)
            self.failing = True

    def succeeded(self) -> None:
        """It had some."""
        self._pause, self.failing = 0.0, False


class Emergency(Generic[T]):
    """The emergency objects of a pool. Any thread.

    :param lock: the pool's one lock
    :param tenant: the pool itself, told when fewer are outstanding
    """

    def __init__(
        self,
        config: CacheConfig[T],
        supply: Supply,
        permits: Permits,
        lock: threading.Lock,
        reserve: Reserve[T],
        tenant: Tenant,
    ) -> None:
        self._config = config
        self._supply = supply
        self._permits = permits
        self._lock = lock
        self._reserve = reserve
        self._tenant = tenant
        self._objects: dict[int, EmergencySlot[T]] = {}
        self.lingering: Lingering[EmergencySlot[T]] = Lingering()
        """Freed, but counted still, since their regions are not back."""
        self.spares: list[EmergencySlot[T]] = []
        """Freed, and kept for the next caller: the newest last."""
        self._spares_least = 0  # that lay idle since the last tick
        self.refused: WaitQueue[T] = WaitQueue()
        """Waiters of this pool that found ``max_emergency`` reached; event loop's thread only."""
        self.in_hand: int = 0
        """Objects made for waiters that have not taken them yet; event loop's thread only."""
        self.backoff: Backoff = Backoff()
        self._outstanding = 0
        self.highest: int = 0
        if self.most:
            permits.open(config.shape.size)

    def __len__(self) -> int:
        """Objects that callers have."""
        return len(self._objects)

    @property
    def wanted(self) -> bool:
        """Whether there are waiters that found no room for another. Event loop's thread only."""
        return self.refused.first is not None or self._permits.refused.first is not None

    @property
    def most(self) -> float:
        """How many there may be at the backend; infinite without a bound of this cache."""
        most = self._config.max_emergency
        if CacheFlags.NOEMERGENCY in self._config.flags:
            return 0
        return math.inf if most is None else most

    def most_for(self, level: int) -> float:
        """The same for such a caller: the last one of several is kept for those who finish."""
        kept = level > FINISHES and self._permits.finishing and self.most > 1
        return self.most - kept

    def possible(self, objects: int, level: int) -> bool:
        """Whether a caller can ever have so many."""
        most = self._permits.most(level)
        return objects <= self.most_for(level) and (most is None or objects * self._config.shape.size <= most)

    def try_charge(self, objects: int, level: int = ORDINARY) -> bool:
        """Set room aside for so many more; for each `make`, `make_nowait` or `uncharge` must follow."""
        with self._lock:
            if self.full(objects, level):
                return False
            if not self._permits.try_charge(objects * self._config.shape.size, level):
                return False
            self._outstanding += objects
            return True

    def full(self, objects: int, level: int) -> bool:
        """Whether the bound of this cache is what stands against so many more."""
        return self._outstanding + objects > self.most_for(level)

    def uncharge(self, objects: int) -> None:
        """So many are not outstanding any more, or were never made."""
        if objects:
            with self._lock:
                self._outstanding -= objects
            self._permits.uncharge(objects * self._config.shape.size)
            self._tenant.room_for_emergency()

    def objects(self) -> list[EmergencySlot[T]]:
        """Those that callers have, oldest first."""
        return list(self._objects.values())

    async def make(self, flags: KM) -> EmergencySlot[T]:
        """Make one that room was set aside for, for such a caller.

        :raises MemoryError: if the backend has none
        """
        shape = self._config.shape
        region = await self._supply.acquire(shape.size, shape.align, GFP_FOR_EMERGENCY[flags], self._gone)
        return self._add(region)

    def make_nowait(self, flags: KM) -> EmergencySlot[T]:
        """Make one that room was set aside for, without waiting.

        :raises MemoryError: if the backend has none
        :raises anyio.WouldBlock: if it would have to wait
        """
        shape = self._config.shape
        gfp = GFP_FOR_EMERGENCY[flags] & ~GFP.RECLAIM
        return self._add(self._supply.acquire_nowait(shape.size, shape.align, gfp, self._gone))

    def at_hand(self, level: int) -> int:
        """How many there are for such a caller: the last of the bytes there may be are for the urgent.

        What is missing in the reserve for MEMALLOC callers is kept for them here. Those that linger only where
        another may not be made.
        """
        if not (self.spares or self.lingering) or self.full(0, level) or not self._permits.room(0, level):
            return 0
        more = not self.full(1, level) and self._permits.room(self._config.shape.size, level)
        found = len(self.spares) + (0 if more else len(self.lingering))
        return max(0, found - (self._reserve.missing if level > FINISHES else 0))

    def take(self, level: int) -> EmergencySlot[T] | None:
        """One of those, or None."""
        if not ((self.spares or self.lingering) and self.at_hand(level)):
            return None
        try:
            slot = self.spares.pop()
        except IndexError:
            return self.lingering.take()
        self._spares_least = min(self._spares_least, len(self.spares))
        self._hold(slot)
        return slot

    def free(self, slot: EmergencySlot[T], *, keep: bool = False) -> None:
        """Keep one for the next caller, give it back, or have it linger. Safe in a finaliser: no lock."""
        if slot.kept and self.lingering.admit(slot):
            return
        del self._objects[slot.address]
        if keep and not self._permits.refused and self._permits.room(0, ORDINARY):
            self._permits.spares[self.clear] = None
            self.spares.append(slot)
        else:
            self._give_up(slot)

    def clear(self, most: int | None = None) -> None:
        """Give back what was kept; at most so many, those that have lain there longest."""
        left = len(self.spares) if most is None else most
        while left > 0 and self.spares:
            left -= 1
            try:
                self._give_up(self.spares.pop(0))
            except IndexError:
                return
        if not self.spares:
            self._permits.spares.pop(self.clear, None)

    def check(self) -> None:
        """Assert what is always true between calls.

        :raises AssertionError: naming what is not
        """
        known = len(self._objects) + len(self.spares)
        assert self._outstanding >= known, f"charged for {self._outstanding}, there are {known}"
        assert not {id(slot) for slot in self.spares} & {id(slot) for slot in self.objects()}, "spare and held"

    def age(self) -> None:
        """What nobody has wanted since this was called last goes."""
        self.clear(self._spares_least)
        self._spares_least = len(self.spares)

    def _gone(self) -> None:
        self.uncharge(1)

    def _give_up(self, slot: EmergencySlot[T]) -> None:
        if self._config.ctor is not None:
            destroy(slot, self._config.dtor)
        region = slot.region
        del slot.exporter
        self._supply.release(region, self._gone)

    def _add(self, region: Region) -> EmergencySlot[T]:
        slot: EmergencySlot[T] = EmergencySlot(region, self._config.shape.size)
        ctor = self._config.ctor
        if ctor is not None:
            handled = sys.exc_info()[1]
            try:
                construct(slot, ctor, region)
            except BaseException as exc:
                del slot
                clear_frames(exc, handled)
                self._supply.release(region, self._gone)
                keep_interrupt(exc)
                raise ConstructorError(f"cache {self._config.name!r}: ctor raised {exc!r}") from exc
        self._hold(slot)
        return slot

    def _hold(self, slot: EmergencySlot[T]) -> None:
        with self._lock:
            self._objects[slot.address] = slot
            self.highest = max(self.highest, len(self._objects))
