"""The slabs behind the magazine, and the one lock.

    alloc   magazine ── empty ──► half a magazine from the partial slabs
    free    magazine ── full ───► its oldest half back to the slabs

Always true, while nobody holds the lock:

    1. a slot that is not out is free in its slab, exactly once
    2. a slot that is out is in the magazine, lingers, or belongs to a layer above
    3. `SlabLists` counts the slots that are out of their slabs

All of it is synchronous and may run in any thread. The lock is held for a few list operations at a time and never
across an await. A free never waits for it: the garbage collector may run a finaliser inside such an operation, and
so free a buffer in the very thread that holds the lock.
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
        """Take the magazine's newest slot, or one from the slabs, refilling the magazine; None if none is free."""
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
        """While the magazine is over its capacity, put its oldest batch back. False if the lock is taken."""
        if self.lock.locked():  # perhaps by this very thread, if this is a finaliser
            return False
        with self.lock:  # not acquire(blocking=False) with `finally`, as Ctrl-C may come in between
            magazine = self.magazine
            if self.slabs.condemned is not None:
                self._weed()
            while len(magazine) > max(0, magazine.capacity):
                self._put_back(magazine.batch)
        return True

    def drain(self, age: int | None = None) -> None:
        """Put back into the slabs all of the magazine, and the slots that need not linger any more.

        :param age: the tick at which they were freed, if not now
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
        """Take out empty slabs; see `SlabLists.remove_empty`. Slots in the magazine count towards ``keep``."""
        with self.lock:
            return self.slabs.remove_empty(max(0, keep - len(self.magazine)), until, most)

    def put(self, slot: Slot[T]) -> None:
        """Put a slot back into its slab, past the magazine, unless it has to linger."""
        if slot.kept and self.lingering.admit(slot):
            return
        with self.lock:
            self.slabs.put(slot)

    def take_packed(self, other_than: Slab[T] | None = None) -> Slot[T] | None:
        """Take a slot from the first slab, past the magazine; with ``other_than``, from another one in use."""
        with self.lock:
            slab = next(iter(self.slabs.partial), None)
            if other_than is not None and (slab is None or slab is other_than or not slab.in_use):
                return None
            return self.slabs.take()

    def sort(self) -> None:
        """Put the magazine back, then sort the slabs, the fullest first."""
        with self.lock:
            self._put_back(len(self.magazine))
            self.slabs.sort()

    def sparse(self, steps: int, of: int) -> list[Slab[T]]:
        """Return the slabs that `may_empty`, the sparsest first."""
        with self.lock:
            return self.slabs.sparse(steps, of)

    def may_empty(self, slab: Slab[T], steps: int, of: int) -> bool:
        """Whether a slab is still among them."""
        with self.lock:
            return self.slabs.may_empty(slab, steps, of)

    @property
    def free(self) -> int:
        """The number of objects that can be allocated without growing."""
        return self.slabs.free + len(self.magazine) + len(self.lingering)

    def has_idle_slab(self) -> bool:
        """Whether some slab has all its objects free, counting those in the magazine."""
        with self.lock:
            last = next(reversed(self.slabs.partial), None)
            if last is not None and not last.in_use:
                return True
            at_hand: Counter[Any] = Counter(slot.slab for slot in list(self.magazine))
            return any(slab is not None and slab.in_use <= count for slab, count in at_hand.items())

    def condemn(self) -> bool:
        """Choose a slab to give back; see `SlabLists.condemn`. Event loop's thread only, like the next two."""
        with self.lock:
            chosen = self.slabs.condemn()
            if chosen:
                self.magazine.set_watch(CONDEMNED, on=True)
                self._weed()
            return chosen

    def take_condemned(self) -> list[Slab[T]]:
        """Take the condemned slab out, if it is empty."""
        with self.lock:
            slabs = self.slabs.take_condemned()
            self.magazine.set_watch(CONDEMNED, on=self.slabs.condemned is not None)
            return slabs

    def restore(self) -> None:
        """Return the condemned slab to use."""
        with self.lock:
            self.slabs.restore()
            self.magazine.set_watch(CONDEMNED, on=False)

    def _weed(self) -> None:
        """Put the condemned slab's slots in the magazine back into it."""
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

    def recorded(self) -> list[Slot[T]]:
        """Return the slots that the debug letters know something of."""
        return [slot for slab in self.slabs for slot in list(slab.records)]

    def check(self) -> None:
        """Check what is always true between calls.

        :raises AssertionError: naming what does not hold
        """
        free = self.recount()
        haunted = sum(slot.haunted() for slot in free if slot.kept)
        assert not haunted, f"free slots that may be written to: counted {haunted}, kept 0"

    def recount(self) -> list[Slot[T]]:
        """Check what is true while the lock is held, whatever other threads do. Returns the free slots.

        :raises AssertionError: naming what does not hold
        """
        slabs = self.slabs
        every = list(slabs)
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
        ):
            assert counted == kept, f"{what}: counted {counted}, kept {kept}"
        self.magazine.check(CONDEMNED, slabs.condemned is not None)
        return [*free, *at_hand]
