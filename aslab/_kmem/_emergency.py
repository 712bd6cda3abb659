"""Emergency objects: single objects from another backend, for when slabs are late; and the bound on their bytes.

Always true, between calls:

    1. each object that is outstanding at the backend, or that room was set aside for, is charged once to its pool
       and once to the allocator's `Permits`, and both are within their bounds
    2. each object belongs to a caller (`objects`), is spare, lingers, or is on its way to or from the backend

Objects are in a hash table, so a free costs the same whether 10 or 100,000 are outstanding (SPL's
change of 2012 walked a list, today's SPL walks a tree). A free of any other object does not look here at all: its
handle knows what it is.

An object freed while slabs are still late would have to be made again at once. So it is kept as a spare, still
constructed, for the next caller. It is released once growth has recovered, or after it has been idle briefly:
other callers may need the same memory to make progress.

In the counters, emergency objects are part of the objects' total, never of the slabs' (SPL's rule). Spares belong
to no caller and are counted separately.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any, Generic, TypeVar

from .._clients import keep_interrupt
from .._config import CacheConfig
from .._errors import ConstructorError, clear_frames
from .._fastpath import EmergencySlot
from .._flags import FINISHES, GFP, GFP_FOR_EMERGENCY, KM, ORDINARY, CacheFlags
from ..backends._protocol import Region
from ._account import Tenant
from ._held import Held
from ._line import WaitQueue
from ._lingering import Lingering
from ._reserve import Reserve
from ._slab import AT_ONCE, construct, destroy
from ._supply import Supply
from ._waiters import Waiter

T = TypeVar("T")

_DONE = object()
SHARE = 4
"""``emergency_limit`` defaults to ``limit`` / SHARE, and 1 / SHARE of it is for urgent callers alone."""
PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between failed tries: doubled from the first (a timer tick of 2012) to the most. Urgent callers wait no
longer than the first."""


class Permits:
    """The bytes of emergency objects that all caches of an allocator may have together.

    They guarantee progress while growth is late, so they never count against ``limit``; but a service could fill
    its memory with them, so they have a bound of their own. The last quarter is for PUSHPAGE and MEMALLOC callers,
    whose progress frees memory for the others; and once a MEMALLOC caller has been seen, the last object is for
    MEMALLOC alone, so that some caller can always finish. So the allocator never has more than ``limit`` +
    ``emergency_limit`` bytes outstanding at its backends.

    :param limit: bytes; None is no bound, ``...`` a quarter of ``slab_limit``, or no bound if that is None
    :param slab_limit: the allocator's ``limit``
    """

    def __init__(self, limit: int | EllipsisType | None, slab_limit: int | None) -> None:
        self._limit = limit
        self._slab_limit = slab_limit
        self._largest = 0
        self._lock = threading.Lock()
        self.finishing: bool = False
        """A MEMALLOC caller has been seen."""
        self.outstanding: int = 0
        """Bytes charged now."""
        self.highest: int = 0
        """The highest value of ``outstanding``."""
        self.refused: WaitQueue[Any] = WaitQueue()
        """Waiters of all caches refused by this bound; event loop's thread only."""
        self.hopeless: dict[Waiter[Any], None] = {}
        """Waiters of all caches that can have what they need only once a bound is raised; loop's thread only."""
        self.spares: dict[Callable[[], object], None] = {}
        """For each pool with spares, the function that gives them back."""

    def open(self, size: int) -> None:
        """Register a cache with emergency objects of ``size`` bytes: the default bound allows at least one.

        Event loop's thread only.
        """
        if size > self._largest:
            self._largest = size
            hopeless, self.hopeless = self.hopeless, {}
            for waiter in hopeless:
                waiter.wake()
            self.grant()

    @property
    def limit(self) -> int | None:
        """The most bytes outstanding; None is no bound."""
        if not isinstance(self._limit, EllipsisType):
            return self._limit
        return None if self._slab_limit is None else max(self._slab_limit // SHARE, self._largest)

    def most(self, level: int) -> int | None:
        """The most bytes that ``level`` may bring it to; None is no bound. Any level may have one object."""
        limit = self.limit
        if limit is None or level == FINISHES:
            return limit
        kept = max(self._largest * self.finishing, limit // SHARE * (level == ORDINARY))
        return max(limit - kept, min(self._largest, limit))

    def room(self, nbytes: int, level: int) -> bool:
        """Whether ``nbytes`` more for ``level`` are within bounds now. Any thread."""
        most = self.most(level)
        return most is None or self.outstanding + nbytes <= most

    def try_charge(self, nbytes: int, level: int) -> bool:
        """Charge ``nbytes`` if there is room; False if not. Any thread, but not in a finaliser."""
        with self._lock:
            if not self.room(nbytes, level):
                return False
            self.outstanding += nbytes
            self.highest = max(self.highest, self.outstanding)
            return True

    def uncharge(self, nbytes: int) -> None:
        """Uncharge ``nbytes`` that are back, or were never acquired. Any thread, but not in a finaliser."""
        with self._lock:
            self.outstanding -= nbytes

    def clear_spares(self) -> None:
        """Give back the spares of all pools, as a caller found no room. Event loop's thread only."""
        for give_back in tuple(self.spares):
            give_back()

    def grant(self) -> None:
        """Grant permits to refused waiters in order, as there may be room now. Event loop's thread only."""
        while (waiter := self.refused.first) is not None:
            if waiter.refused_by is not None and waiter.refused_by.hopeless(waiter):
                waiter.wake()
            elif waiter.refused_by is not None and not waiter.refused_by.grant(waiter):
                if not waiter.refused_by.bound_here(waiter):
                    break
                waiter.wake()  # now the bound of its own cache refuses it: let it queue there
            self.refused.leave(waiter)


class Backoff:
    """When to ask the backend again after it had none. Event loop's thread only."""

    def __init__(self) -> None:
        self._pause = 0.0
        self._failed_at = -math.inf
        self.failing: bool = False
        """The backend had none when last asked."""

    def retry_at(self, level: int) -> float:
        """Return when the backend may be asked again for a caller of ``level``."""
        return self._failed_at + (self._pause if level == ORDINARY else min(self._pause, PAUSE_FIRST))

    def failed(self, level: int, now: float) -> None:
        """Note that the backend had none for a caller of ``level``."""
        if now >= self.retry_at(level):  # else several asked at once: that counts once
            self._failed_at = now
            self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MOST)
            self.failing = True

    def succeeded(self) -> None:
        """Note that the backend had one."""
        self._pause, self.failing = 0.0, False


class Emergency(Generic[T]):
    """The emergency objects of a pool. Any thread, unless a member says otherwise.

    :param lock: the depot's lock
    :param tenant: the pool itself, told when fewer objects are outstanding
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
        self._objects: Held[T] = Held()
        self.lingering: Lingering[EmergencySlot[T]] = Lingering()
        """Freed, but still among the objects, as their memory may still be written to."""
        self.spares: deque[EmergencySlot[T]] = deque()
        """Freed, and kept for the next caller: the newest last."""
        self._spares_least = 0  # the fewest spares since `age` was last called
        self.refused: WaitQueue[T] = WaitQueue()
        """Waiters of this pool refused by ``max_emergency``; event loop's thread only."""
        self.in_hand: int = 0
        """Objects made for waiters that have not taken them yet; event loop's thread only."""
        self.backoff: Backoff = Backoff()
        self._outstanding = 0
        self.highest: int = 0
        """The most objects held at once."""
        self.made: int = 0
        """All objects made."""
        self._size = config.shape.single_size  # bytes of one, at the backend
        if self.most:
            permits.open(self._size)

    def __len__(self) -> int:
        """The number of objects held by callers, lingering ones included."""
        return len(self._objects)

    @property
    def nbytes(self) -> int:
        """Bytes of all objects that are not back at the backend, those in the making included."""
        return self._outstanding * self._size

    @property
    def wanted(self) -> bool:
        """Whether a waiter has been refused, here or by the bound over all caches. Event loop's thread only."""
        return self.refused.first is not None or self._permits.refused.first is not None

    @property
    def most(self) -> float:
        """The most objects outstanding: 0 with NOEMERGENCY, else ``max_emergency``, infinity if that is None."""
        most = self._config.max_emergency
        if CacheFlags.NOEMERGENCY in self._config.flags:
            return 0
        return math.inf if most is None else most

    def most_for(self, level: int) -> float:
        """The most objects outstanding for ``level``: the last of several is kept for MEMALLOC callers."""
        kept = level > FINISHES and self._permits.finishing and self.most > 1
        return self.most - kept

    def possible(self, objects: int, level: int) -> bool:
        """Whether a caller of ``level`` can ever have that many objects."""
        most = self._permits.most(level)
        return objects <= self.most_for(level) and (most is None or objects * self._size <= most)

    def try_charge(self, objects: int, level: int = ORDINARY) -> bool:
        """Set room aside for ``objects``; False if there is none. Then make or `uncharge` each of them."""
        with self._lock:
            if self.full(objects, level):
                return False
            if not self._permits.try_charge(objects * self._size, level):
                return False
            self._outstanding += objects
            return True

    def full(self, objects: int, level: int) -> bool:
        """Whether ``max_emergency`` refuses that many more objects."""
        return self._outstanding + objects > self.most_for(level)

    def uncharge(self, objects: int) -> None:
        """Give up room for ``objects`` that are back at the backend, or were never made."""
        if objects:
            with self._lock:
                self._outstanding -= objects
            self._permits.uncharge(objects * self._size)
            self._tenant.room_for_emergency()

    def objects(self) -> list[EmergencySlot[T]]:
        """Return the slots held by callers, oldest first, lingering ones included."""
        return list(self._objects)

    async def make(self, flags: KM) -> EmergencySlot[T]:
        """Make an object that room was set aside for. Suspends until the backend returns. Event loop's thread.

        :raises MemoryError: if the backend has none
        :raises BackendError: if the backend breaks its contract
        :raises ConstructorError: if the cache's ``ctor`` raises
        """
        shape = self._config.shape
        region = await self._supply.acquire(self._size, shape.align, GFP_FOR_EMERGENCY[flags], self._gone)
        return self._add(region)

    def make_nowait(self, flags: KM) -> EmergencySlot[T]:
        """Make an object that room was set aside for, without waiting.

        :raises MemoryError: if the backend has none
        :raises anyio.WouldBlock: if the backend would have to wait
        :raises BackendError, ConstructorError: like `make`
        """
        shape = self._config.shape
        gfp = GFP_FOR_EMERGENCY[flags] & ~GFP.RECLAIM
        return self._add(self._supply.acquire_nowait(self._size, shape.align, gfp, self._gone))

    def at_hand(self, level: int) -> int:
        """Return how many free objects a caller of ``level`` may take; the last bytes are for urgent callers.

        Objects missing from the reserve for MEMALLOC callers are kept for them here. Lingering ones count only
        where no new object may be made.
        """
        if not (self.spares or self.lingering) or self.full(0, level) or not self._permits.room(0, level):
            return 0
        more = not self.full(1, level) and self._permits.room(self._size, level)
        found = len(self.spares) + (0 if more else len(self.lingering))
        return max(0, found - (self._reserve.missing if level > FINISHES else 0))

    def take(self, level: int) -> EmergencySlot[T] | None:
        """Take one of the objects `at_hand`, or None."""
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
        """Keep a freed object for the next caller, give it back, or let it linger. Safe in a finaliser."""
        if slot.kept and self.lingering.admit(slot):
            return
        self._objects.remove(slot)
        if keep and not self._permits.refused and self._permits.room(0, ORDINARY):
            self._permits.spares[self.clear] = None
            self.spares.append(slot)
        else:
            self._release(slot)

    def clear(self, most: int | None = None) -> None:
        """Give the spares back; with ``most``, that many at most, the oldest first. Very many go a bit later."""
        steps = self._clear(len(self.spares) if most is None else most)
        if next(steps, _DONE) is not _DONE:
            self._supply.do_soon(steps)

    def _clear(self, left: int) -> Iterator[None]:
        while left > 0 and self.spares:
            for _ in range(min(left, AT_ONCE)):
                try:
                    slot = self.spares.popleft()
                except IndexError:
                    break
                self._release(slot)
            left -= AT_ONCE
            if left > 0 and self.spares:
                yield
        if not self.spares:
            self._permits.spares.pop(self.clear, None)

    def check(self) -> None:
        """Check what is always true between calls.

        :raises AssertionError: naming what does not hold
        """
        known = len(self._objects) + len(self.spares)
        assert self._outstanding >= known, f"charged for {self._outstanding}, there are {known}"
        assert not {id(slot) for slot in self.spares} & {id(slot) for slot in self.objects()}, "spare and held"

    def age(self) -> None:
        """Give back the spares that nobody has needed since the last call."""
        self.clear(self._spares_least)
        self._spares_least = len(self.spares)

    def _gone(self) -> None:
        self.uncharge(1)

    def _release(self, slot: EmergencySlot[T]) -> None:
        if self._config.ctor is not None:
            destroy(slot, self._config.dtor)
        kept, slot.region = slot.region, None
        del slot.exporter
        self._supply.release(kept, self._gone)

    def _add(self, region: Region) -> EmergencySlot[T]:
        shape, ctor = self._config.shape, self._config.ctor
        kept = self._supply.to_keep(region, self._gone)
        slot: EmergencySlot[T] = EmergencySlot(None, region.memory, region.address, shape.lead, shape.size)
        slot.region, slot.record = kept, None
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
        with self._lock:
            self.made += 1
        self._hold(slot)
        return slot

    def _hold(self, slot: EmergencySlot[T]) -> None:
        with self._lock:
            self._objects.add(slot)
            self.highest = max(self.highest, len(self._objects))
