"""What lies behind the magazine: slabs, and the one lock.

    alloc   magazine ── empty ──► half a magazine from the partial slabs
    free    magazine ── full ───► its oldest half back to the slabs

Always true, while nobody holds the lock: a slot that is not out lies in its slab's free list, once; one that is
out lies in the magazine, lingers, or belongs to somebody above. `SlabLists` counts what is out of its slabs.

All of it is synchronous and may run in any thread. The lock is held for a few list operations at a
time and never across an await. A free never waits for it: a finaliser, run by the garbage collector
inside such an operation, may free a buffer in the very thread that holds it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .._fastpath import CONDEMNED, Magazine, Slot
from ._lingering import Lingering
from ._slab import Slab, SlabLists

T = TypeVar("T")


class Depot(Generic[T]):
    """The slabs of one pool and their way into its magazine."""

    def __init__(self, magazine: Magazine[T], clean: Callable[[Slot[T]], object] | None = None) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.slabs: SlabLists[T] = SlabLists()
        self.lingering: Lingering[Slot[T]] = Lingering(clean)
        self.magazine: Magazine[T] = magazine

    def take(self) -> Slot[T] | None:
        """A slot: the newest of the magazine, else from the slabs, refilling the magazine by a batch."""
        if not (self.magazine or self.slabs.partial):
            return None
        with self.lock:
            magazine = self.magazine
            if magazine:
                try:
                    return magazine.pop()
                except IndexError:  # another thread was quicker
                    pass
            batch = self.slabs.take_batch(magazine.batch)
            magazine.extend(batch[1:])
            return batch[0] if batch else None

    def flush(self) -> bool:
        """Put a batch of the oldest back while the magazine is over its capacity; False if the lock is taken."""
        if self.lock.locked():  # perhaps by this very thread, and we are in a finaliser
            return False
        with self.lock:  # not tried and then released in a `finally`: Ctrl-C may come in between
            magazine = self.magazine
            if self.slabs.condemned is not None:
                self._weed()
            while len(magazine) > max(0, magazine.capacity):
                self._put_back(magazine.batch)
        return True

    def drain(self, age: int | None = None) -> None:
        """Put all that is in the magazine back into the slabs, and what need not linger any more.

        :param age: the tick at which it came back, if that is not now
        """
        with self.lock:
            for slot in self.lingering.look() if self.lingering else ():
                self.slabs.put(slot, age)
            self._put_back(len(self.magazine), age)

    def add(self, slab: Slab[T]) -> None:
        """Take in a new slab."""
        with self.lock:
            self.slabs.add(slab)

    def remove_empty(self, keep: int = 0, until: int | None = None, most: int | None = None) -> list[Slab[T]]:
        """Take out slabs that can go; see `SlabLists.remove_empty`. The magazine counts among the kept."""
        with self.lock:
            return self.slabs.remove_empty(max(0, keep - len(self.magazine)), until, most)

    def put(self, slot: Slot[T]) -> None:
        """Put one back into its slab, past the magazine, unless it has to linger."""
        if slot.kept and self.lingering.admit(slot):
            return
        with self.lock:
            self.slabs.put(slot)

    def take_packed(self, other_than: Slab[T] | None = None) -> Slot[T] | None:
        """One from the slabs, past the magazine; for moving out of a slab only from another that is in use."""
        with self.lock:
            slab = next(iter(self.slabs.partial), None)
            if other_than is not None and (slab is None or slab is other_than or not slab.in_use):
                return None
            return self.slabs.take()

    def sort(self) -> None:
        """Put everything back, then have the fullest slabs first."""
        with self.lock:
            self._put_back(len(self.magazine))
            self.slabs.sort()

    @property
    def free(self) -> int:
        """Objects that can be had without growing."""
        return self.slabs.free + len(self.magazine) + len(self.lingering)

    def has_idle_slab(self) -> bool:
        """Whether all objects of a slab are free, those in the magazine included."""
        with self.lock:
            last = next(reversed(self.slabs.partial), None)
            if last is not None and not last.in_use:
                return True
            at_hand: Counter[Any] = Counter(slot.slab for slot in list(self.magazine))
            return any(slab is not None and slab.in_use <= count for slab, count in at_hand.items())

    def condemn(self) -> bool:
        """Choose a slab that is to go; see `SlabLists.condemn`. Event loop's thread only, as what follows."""
        with self.lock:
            chosen = self.slabs.condemn()
            if chosen:
                self.magazine.set_watch(CONDEMNED, on=True)
                self._weed()
            return chosen

    def take_condemned(self) -> list[Slab[T]]:
        """The slab that is to go, if it is empty."""
        with self.lock:
            slabs = self.slabs.take_condemned()
            self.magazine.set_watch(CONDEMNED, on=self.slabs.condemned is not None)
            return slabs

    def restore(self) -> None:
        """No slab is to go any more."""
        with self.lock:
            self.slabs.restore()
            self.magazine.set_watch(CONDEMNED, on=False)

    def _weed(self) -> None:
        """Put what is of the condemned slab back into it."""
        for _ in range(len(self.magazine)):
            slot = self.magazine.take_oldest()
            if slot is None:
                break
            if slot.slab is self.slabs.condemned:
                self.slabs.put(slot)
            else:
                self.magazine.append(slot)

    def _put_back(self, count: int, age: int | None = None) -> None:
        for _ in range(count):
            slot = self.magazine.take_oldest()
            if slot is None:
                break
            self.slabs.put(slot, age)

    def check(self) -> None:
        """Assert what is always true between calls.

        :raises AssertionError: naming what is not
        """
        slabs = self.slabs
        every = [*slabs.partial, *slabs.complete, *([slabs.condemned] if slabs.condemned else [])]
        slots = {slot for slab in every for slot in slab.slots}
        free = [slot for slab in every for slot in (*slab.freed, *slab.slots[slab.used :])]
        unmade = sum(slab.objects - len(slab.slots) for slab in every)
        at_hand = list(self.magazine)
        for what, counted, kept in (
            ("slots in all slabs", len(slots) + unmade, slabs.slots_total),
            ("slots out of their slabs", len(slots) - len(free), slabs.slots_out),
            ("slots that say they are out", sum(1 for slot in slots if slot.out), slabs.slots_out),
            ("slabs with a slot out", sum(1 for slab in every if slab.in_use), slabs.slabs_used),
            ("slabs made less given back", slabs.created - slabs.destroyed, len(every)),
            ("free slots, each once", len({*free, *at_hand}), len(free) + len(at_hand)),
            ("free slots of no slab", len({*free, *at_hand} - slots), 0),
            ("complete slabs with a free slot", sum(1 for slab in slabs.complete if slab.free), 0),
            ("partial slabs without one", sum(1 for slab in slabs.partial if not slab.free), 0),
            ("free slots that may be written to", sum(s.haunted() for s in (*free, *at_hand) if s.kept), 0),
        ):
            assert counted == kept, f"{what}: counted {counted}, kept {kept}"
        self.magazine.check(CONDEMNED, slabs.condemned is not None)
