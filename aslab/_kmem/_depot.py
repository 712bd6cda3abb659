"""What lies behind the magazine: slabs, and the one lock.

    alloc   magazine ── empty ──► half a magazine from the partial slabs
    free    magazine ── full ───► its oldest half back to the slabs

All of it is synchronous and may run in any thread. The lock is held for a few list operations at a
time and never across an await. A free never waits for it: a finaliser, run by the garbage collector
inside such an operation, may free a buffer in the very thread that holds it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .._fastpath import Magazine
from ._lingering import Lingering
from ._slab import Slab, SlabLists, Slot

T = TypeVar("T")


class Depot(Generic[T]):
    """The slabs of one cache and their way into its magazine."""

    def __init__(self, magazine: Magazine[T], clean: Callable[[Slot[T]], object] | None = None) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.slabs: SlabLists[T] = SlabLists()
        self.lingering: Lingering[Slot[T]] = Lingering(clean)
        self._magazine = magazine

    def take(self, *, lingering: bool = True) -> Slot[T] | None:
        """A slot: the newest of the magazine, else from the slabs, refilling the magazine by a batch.

        Where there is none, one that lingers.
        """
        if self._magazine or self.slabs.partial:
            with self.lock:
                slot = self._take()
            if slot is not None:
                return slot
        return self.lingering.take() if lingering else None

    def _take(self) -> Slot[T] | None:
        magazine = self._magazine
        if magazine:
            try:
                return magazine.pop()
            except IndexError:  # another thread was quicker
                pass
        slot = self.slabs.take()
        if slot is not None:
            for _ in range(magazine.batch - 1):
                extra = self.slabs.take()
                if extra is None:
                    break
                magazine.append(extra)
        return slot

    def flush(self, age: int) -> bool:
        """Put a batch of the oldest back while the magazine is over its capacity; False if the lock is taken."""
        if self.lock.locked():  # perhaps by this very thread, and we are in a finaliser
            return False
        with self.lock:  # not tried and then released in a `finally`: Ctrl-C may come in between
            magazine = self._magazine
            if self.slabs.condemned is not None:
                self._weed(age)
            while len(magazine) > max(0, magazine.capacity):
                self._put_back(magazine.batch, age)
        return True

    def drain(self, age: int) -> None:
        """Put all that is in the magazine back into the slabs, and what need not linger any more."""
        with self.lock:
            for slot in self.lingering.look():
                self.slabs.put(slot, age)
            self._put_back(len(self._magazine), age)

    def add(self, slab: Slab[T]) -> None:
        """Take in a new slab."""
        with self.lock:
            self.slabs.add(slab)

    def remove_empty(self, keep: int = 0, until: int | None = None, most: int | None = None) -> list[Slab[T]]:
        """Take out slabs that can go; see `SlabLists.remove_empty`. The magazine counts among the kept."""
        with self.lock:
            return self.slabs.remove_empty(max(0, keep - len(self._magazine)), until, most)

    def put(self, slot: Slot[T], age: int) -> None:
        """Put one back into its slab, past the magazine, unless it has to linger."""
        if slot.kept and self.lingering.admit(slot):
            return
        with self.lock:
            self.slabs.put(slot, age)

    def take_packed(self, other_than: Slab[T] | None = None) -> Slot[T] | None:
        """One from the slabs, past the magazine; for moving out of a slab only from another that is in use."""
        with self.lock:
            slab = next(iter(self.slabs.partial), None)
            if other_than is not None and (slab is None or slab is other_than or not slab.in_use):
                return None
            return self.slabs.take()

    def sort(self, age: int) -> None:
        """Put everything back, then have the fullest slabs first."""
        with self.lock:
            self._put_back(len(self._magazine), age)
            self.slabs.sort()

    @property
    def free(self) -> int:
        """Objects that can be had without growing."""
        return self.slabs.free + len(self._magazine) + len(self.lingering)

    def has_idle_slab(self) -> bool:
        """Whether all objects of a slab are free, those in the magazine included."""
        with self.lock:
            last = next(reversed(self.slabs.partial), None)
            if last is not None and not last.in_use:
                return True
            at_hand: Counter[Any] = Counter(slot.slab for slot in list(self._magazine))
            return any(slab is not None and slab.in_use <= count for slab, count in at_hand.items())

    def condemn(self, age: int) -> bool:
        """Choose a slab that is to go; see `SlabLists.condemn`."""
        with self.lock:
            chosen = self.slabs.condemn()
            if chosen:
                self._weed(age)
            return chosen

    def take_condemned(self) -> list[Slab[T]]:
        """The slab that is to go, if it is empty."""
        with self.lock:
            return self.slabs.take_condemned()

    def pardon(self, age: int) -> None:
        """No slab is to go any more."""
        with self.lock:
            self.slabs.pardon(age)

    def _weed(self, age: int) -> None:
        """Put what is of the condemned slab back into it."""
        for _ in range(len(self._magazine)):
            slot = self._magazine.take_oldest()
            if slot is None:
                break
            if slot.slab is self.slabs.condemned:
                self.slabs.put(slot, age)
            else:
                self._magazine.append(slot)

    def _put_back(self, count: int, age: int) -> None:
        for _ in range(count):
            slot = self._magazine.take_oldest()
            if slot is None:
                break
            self.slabs.put(slot, age)
