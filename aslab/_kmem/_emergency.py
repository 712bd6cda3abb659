"""Emergency objects: single objects from another backend, for when slabs do not come.

They live in a hash by address, so that freeing one costs the same whether 10 are outstanding or
100,000 (the 2012 change of SPL walked a list, today's SPL a tree), and a free of any other object
does not look here at all: the handle knows what it is.

One that is freed while slabs are still late would have to be made again at once. So it is kept, constructed as it
is, and the next caller has it; when growth is well again, or nobody has wanted it for a moment, it goes: whoever
depends on the same memory may need it to get on.

In the counters they are part of the objects' total, never of the slabs' (SPL's rule). Those that are kept are
nobody's, and counted apart.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .._clients import keep_interrupt
from .._config import CacheConfig
from .._errors import ConstructorError, clear_frames
from .._flags import FINISHES, GFP, KM, ORDINARY, CacheFlags, gfp_for_emergency
from ..backends._protocol import Region
from ._lingering import Lingering
from ._permits import Permits
from ._reserve import Reserve
from ._slab import Slot, construct, destroy
from ._supply import Supply

T = TypeVar("T")


class EmergencySlot(Slot[T]):
    """The place of one emergency object: a region of its own."""

    __slots__ = ("region",)

    region: Region

    def __init__(self, region: Region, size: int) -> None:
        super().__init__(None, region.memory, region.address, 0, size)
        self.region = region


class Emergency(Generic[T]):
    """The emergency objects of a pool. Any thread.

    What was permitted is returned when the backend has it back, or never gave it. ``on_room`` is called then.
    """

    def __init__(
        self,
        config: CacheConfig[T],
        supply: Supply,
        permits: Permits,
        lock: threading.Lock,
        reserve: Reserve[T],
        on_room: Callable[[], None],
    ) -> None:
        self._config = config
        self._supply = supply
        self._permits = permits
        self._lock = lock
        self._reserve = reserve
        self._on_room = on_room
        self._objects: dict[int, EmergencySlot[T]] = {}
        self.lingering: Lingering[EmergencySlot[T]] = Lingering()
        """Freed, but counted still, since their regions are not back."""
        self._spare: list[EmergencySlot[T]] = []
        self._spare_least = 0  # that lay idle since the last tick
        self._outstanding = 0
        self.highest: int = 0
        if self.most:
            permits.open(config.shape.size)

    def __len__(self) -> int:
        """Objects that callers have."""
        return len(self._objects)

    @property
    def spare(self) -> int:
        """Objects that are kept for the next caller."""
        return len(self._spare)

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

    def permit(self, objects: int, level: int = ORDINARY) -> bool:
        """Ask to make so many more; for each `make`, `make_nowait` or `forgo` must follow."""
        with self._lock:
            if self.full(objects, level):
                return False
            if not self._permits.take(objects * self._config.shape.size, level):
                return False
            self._outstanding += objects
            return True

    def full(self, objects: int, level: int) -> bool:
        """Whether the bound of this cache is what stands against so many more."""
        return self._outstanding + objects > self.most_for(level)

    def forgo(self, objects: int) -> None:
        """So many that were permitted are not outstanding any more, or never were."""
        if objects:
            with self._lock:
                self._outstanding -= objects
            self._permits.give_back(objects * self._config.shape.size)
            self._on_room()

    def objects(self) -> list[EmergencySlot[T]]:
        """Those that callers have, oldest first."""
        return list(self._objects.values())

    async def make(self, flags: KM) -> EmergencySlot[T]:
        """Make one that was permitted, for such a caller.

        :raises MemoryError: if the backend has none
        """
        shape = self._config.shape
        region = await self._supply.acquire(shape.size, shape.align, gfp_for_emergency(flags), self._gone)
        return self._add(region)

    def make_nowait(self, flags: KM) -> EmergencySlot[T]:
        """Make one that was permitted, for such a caller, without waiting.

        :raises MemoryError: if the backend has none
        :raises anyio.WouldBlock: if it would have to wait
        """
        shape = self._config.shape
        gfp = gfp_for_emergency(flags) & ~GFP.RECLAIM
        return self._add(self._supply.acquire_nowait(shape.size, shape.align, gfp, self._gone))

    def at_hand(self, level: int) -> int:
        """How many there are for such a caller: the last of the bytes there may be are for the urgent.

        What is missing in the reserve for MEMALLOC callers is kept for them here. Those that linger only where
        another may not be made.
        """
        if not (self._spare or self.lingering) or self.full(0, level) or not self._permits.room(0, level):
            return 0
        more = not self.full(1, level) and self._permits.room(self._config.shape.size, level)
        found = len(self._spare) + (0 if more else len(self.lingering))
        return max(0, found - (self._reserve.missing if level > FINISHES else 0))

    def take(self, level: int) -> EmergencySlot[T] | None:
        """One of those, or None."""
        if not ((self._spare or self.lingering) and self.at_hand(level)):
            return None
        try:
            slot = self._spare.pop()
        except IndexError:
            return self.lingering.take()
        self._spare_least = min(self._spare_least, len(self._spare))
        self._hold(slot)
        return slot

    def free(self, slot: EmergencySlot[T], *, keep: bool = False) -> None:
        """Keep one for the next caller, give it back, or have it linger. Safe in a finaliser: no lock."""
        if slot.kept and self.lingering.admit(slot):
            return
        del self._objects[slot.address]
        if keep and not self._permits.refused and self._permits.room(0, ORDINARY):
            self._permits.spares[self.clear] = None
            self._spare.append(slot)
        else:
            self._give_up(slot)

    def clear(self, most: int | None = None) -> None:
        """Give back what was kept; at most so many, those that have lain there longest."""
        left = len(self._spare) if most is None else most
        while left > 0 and self._spare:
            left -= 1
            try:
                self._give_up(self._spare.pop(0))
            except IndexError:
                return
        if not self._spare:
            self._permits.spares.pop(self.clear, None)

    def age(self) -> None:
        """What nobody has wanted since this was called last goes."""
        self.clear(self._spare_least)
        self._spare_least = len(self._spare)

    def _gone(self) -> None:
        self.forgo(1)

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
