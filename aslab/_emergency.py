"""Emergency objects: single objects from another backend, for when slabs do not come.

They live in a hash by address, so that freeing one costs the same whether 10 are outstanding or
100,000 (the 2012 change of SPL walked a list, today's SPL a tree), and a free of any other object
does not look here at all: the handle knows what it is.

In the counters they are part of the objects' total, never of the slabs' (SPL's rule).
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Generic, TypeVar

from ._config import CacheConfig
from ._errors import ConstructorError, clear_frames
from ._flags import GFP, KM, CacheFlags, gfp_for_emergency
from ._lingering import Lingering
from ._slab import Slot
from ._supply import Supply
from .backends._protocol import Backend, Region

T = TypeVar("T")


class EmergencySlot(Slot[T]):
    """The place of one emergency object: a region of its own."""

    __slots__ = ("region",)

    region: Region

    def __init__(self, region: Region, size: int) -> None:
        super().__init__(None, region, 0, size)
        self.region = region


class Emergency(Generic[T]):
    """The outstanding emergency objects of a cache. Any thread."""

    def __init__(self, config: CacheConfig[T], backend: Backend, supply: Supply, lock: threading.Lock) -> None:
        self._config = config
        self._backend = backend
        self._supply = supply
        self._lock = lock
        self._objects: dict[int, EmergencySlot[T]] = {}
        self._in_making = 0
        self.lingering: Lingering[EmergencySlot[T]] = Lingering()
        """Freed, but counted still, since their regions are not back."""
        self.highest: int = 0

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def most(self) -> float:
        """How many there may be; infinite without a bound."""
        most = self._config.max_emergency
        if CacheFlags.NOEMERGENCY in self._config.flags:
            return 0
        return math.inf if most is None else most

    @property
    def room(self) -> float:
        """How many more there may be now."""
        return self.most - len(self._objects) - self._in_making + len(self.lingering)

    def permit(self, objects: int) -> bool:
        """Ask to make so many more; for each `make`, `make_nowait` or `forgo` must follow."""
        with self._lock:
            if self.room < objects:
                return False
            self._in_making += objects
            return True

    def forgo(self, objects: int) -> None:
        """So many that were permitted are not made."""
        with self._lock:
            self._in_making -= objects

    def objects(self) -> list[EmergencySlot[T]]:
        """Those that are outstanding, oldest first."""
        return list(self._objects.values())

    async def make(self, flags: KM) -> EmergencySlot[T]:
        """Make one for such a caller.

        :raises MemoryError: if the backend has none
        """
        if (slot := self._reuse()) is not None:
            return slot
        shape = self._config.shape
        region = await self._supply.acquire(self._backend, shape.size, shape.align, gfp_for_emergency(flags))
        return self._add(region)

    def make_nowait(self, flags: KM) -> EmergencySlot[T]:
        """Make one for such a caller, without waiting.

        :raises MemoryError: if the backend has none
        :raises anyio.WouldBlock: if it would have to wait
        """
        if (slot := self._reuse()) is not None:
            return slot
        shape = self._config.shape
        gfp = gfp_for_emergency(flags) & ~GFP.RECLAIM
        region = self._supply.acquire_nowait(self._backend, shape.size, shape.align, gfp)
        return self._add(region)

    def free(self, slot: EmergencySlot[T]) -> None:
        """Destroy and release one, unless it has to linger. Safe in a finaliser: no lock."""
        if slot.kept and self.lingering.admit(slot):
            return
        del self._objects[slot.address]
        if self._config.ctor is not None:
            slot.destroy(self._config.dtor)
        region = slot.region
        del slot.exporter
        self._supply.release(self._backend, region)

    def _reuse(self) -> EmergencySlot[T] | None:
        """One that lingers, where there may be no other."""
        if len(self._objects) + self._in_making <= self.most:
            return None
        slot = self.lingering.take()
        if slot is not None:
            self.forgo(1)
        return slot

    def _add(self, region: Region) -> EmergencySlot[T]:
        slot: EmergencySlot[T] = EmergencySlot(region, self._config.shape.size)
        ctor = self._config.ctor
        if ctor is not None:
            handled = sys.exc_info()[1]
            try:
                slot.construct(ctor, region)
            except BaseException as exc:
                del slot
                clear_frames(exc, handled)
                self._supply.release(self._backend, region)
                if isinstance(exc, Exception):
                    raise ConstructorError(f"cache {self._config.name!r}: ctor raised {exc!r}") from exc
                raise
        with self._lock:
            self._in_making -= 1
            self._objects[slot.address] = slot
            self.highest = max(self.highest, len(self._objects))
        return slot
