"""Slabs: one region each, carved into slots, and the lists that a cache keeps them in.

    region   ├── slot 0 ──┼── slot 1 ──┼── ... ──┼── slot n-1 ──┤ rest of the last page
    address  a            a + stride             a + (n-1)·stride

``stride`` is the object size rounded up to the alignment; the region is rounded up to whole pages.
Bookkeeping is kept outside of the region, so a power-of-two object wastes nothing (SPL puts a header
into the slab and pays for it there). A slot is made when it is first handed out, and the slots of a slab that
goes are taken apart a few at a time: so a slab of many objects costs no more at once than one of few.

Plain synchronous code: a cache calls it under its lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

from .._config import Shape
from .._fastpath import Slot, exporter, lease_view
from ..backends._protocol import Region

T = TypeVar("T")

AT_ONCE = 256
"""Slots taken apart, or looked at, before other tasks have their turn."""


def construct(slot: Slot[T], ctor: Callable[[memoryview], T], region: Region) -> None:
    """Build the object of a slot, on a view that does not count as one of a lease."""
    offset = slot.address - region.address
    slot.obj = ctor(lease_view(exporter(region.memory, offset, len(slot.exporter))))


def destroy(slot: Slot[T], dtor: Callable[[T], None] | None) -> None:
    """Undo `construct`."""
    obj, slot.obj = cast("T", slot.obj), None
    if dtor is not None:
        dtor(obj)


class Slab(Generic[T]):
    """A region and its slots, some free, the others out; those never handed out may not be made yet."""

    __slots__ = ("age", "built", "freed", "later", "region", "shape", "slots", "stays", "used")

    def __init__(self, region: Region, shape: Shape) -> None:
        self.region: Region = region
        self.shape: Shape = shape
        self.age: int = 0
        """The ageing tick at which it became empty."""
        self.built: int = 0
        """How many slots, from the first, hold a constructed object."""
        self.stays: bool = False
        """A client has refused to move an object of it; holds until it leaves the partial list."""
        self.later: int = 0
        """How often a client has answered LATER, until then."""
        self.slots: list[Slot[T]] = []
        """Those that are made, from the first on."""
        self.used: int = 0
        """How many slots, from the first, have been handed out ever."""
        self.freed: list[Slot[T]] = []
        """Those of them that are back, the newest last."""

    @property
    def objects(self) -> int:
        """All slots, made or not."""
        return self.shape.objects

    @property
    def free(self) -> int:
        """Slots that may be handed out."""
        return self.shape.objects - self.used + len(self.freed)

    @property
    def in_use(self) -> int:
        """Slots that are out."""
        return self.used - len(self.freed)

    def carve(self) -> Slot[T]:
        """Make the next slot."""
        offset = len(self.slots) * self.shape.stride
        slot: Slot[T] = Slot(self, self.region.memory, self.region.address, offset, self.shape.size)
        self.slots.append(slot)
        return slot

    def take(self) -> Slot[T]:
        """Hand out the slot that came back last, or else the next that never was out."""
        if self.freed:
            slot = self.freed.pop()
        else:
            slot = self.slots[self.used] if self.used < len(self.slots) else self.carve()
            self.used += 1
        slot.out = True
        return slot

    def put(self, slot: Slot[T]) -> None:
        """Take one back."""
        slot.out = False
        self.freed.append(slot)

    def may_move_again(self) -> None:
        """It has left the partial list, or is empty: what clients said of it does not count any more."""
        self.stays, self.later = False, 0

    def dismantle(self, dtor: Callable[[T], None] | None) -> Iterator[None]:
        """Destroy what was constructed and let go of the memory, with pauses. Every slot must be free."""
        self.freed = []
        while self.slots:
            some, self.slots[:AT_ONCE] = self.slots[:AT_ONCE], ()
            for slot in some:
                if self.built:
                    self.built -= 1
                    destroy(slot, dtor)
                slot.slab = None
            del some, slot
            if self.slots:
                yield


class SlabLists(Generic[T]):
    """The partial and the complete slabs of a cache, and the counters that belong to them.

    Order of the partial list, as SPL keeps it: fuller slabs first, empty ones last. A new slab goes to
    the tail; a complete slab that is freed into goes to the head; one that becomes empty to the tail.
    So allocation packs, and what can be given back gathers at the tail.
    """

    def __init__(self) -> None:
        self.partial: OrderedDict[Slab[T], None] = OrderedDict()
        self.complete: dict[Slab[T], None] = {}
        self.condemned: Slab[T] | None = None
        """On neither list: nothing is taken from it, and it goes as soon as it is empty."""
        self.slots_total: int = 0
        self.slots_out: int = 0
        self.slots_out_max: int = 0
        self._slots_out_peak = 0  # since `restart_peak`
        self.slabs_used: int = 0
        self.slabs_used_max: int = 0
        self.created: int = 0
        self.destroyed: int = 0
        self.tick: int = 0
        """Counts the looks of the ageing task."""

    def __len__(self) -> int:
        return len(self.partial) + len(self.complete) + (self.condemned is not None)

    @property
    def free(self) -> int:
        """Free slots that may be taken."""
        withheld = self.condemned.free if self.condemned is not None else 0
        return self.slots_total - self.slots_out - withheld

    def add(self, slab: Slab[T]) -> None:
        """Take in a new, empty slab, at the tail."""
        slab.age = self.tick
        self.partial[slab] = None
        self.slots_total += slab.objects
        self.created += 1

    def take(self) -> Slot[T] | None:
        """One slot from the first partial slab, or None."""
        slab = next(iter(self.partial), None)
        if slab is None:
            return None
        if not slab.in_use:
            self.slabs_used += 1
            self.slabs_used_max = max(self.slabs_used_max, self.slabs_used)
        slot = slab.take()
        if not slab.free:
            del self.partial[slab]
            self.complete[slab] = None
            slab.may_move_again()
        self.slots_out += 1
        if self.slots_out > self._slots_out_peak:
            self._slots_out_peak = self.slots_out
            self.slots_out_max = max(self.slots_out_max, self.slots_out)
        return slot

    def take_batch(self, count: int) -> list[Slot[T]]:
        """So many slots, or as many as there are."""
        batch: list[Slot[T]] = []
        while len(batch) < count and (slot := self.take()) is not None:
            batch.append(slot)
        return batch

    def put(self, slot: Slot[T], age: int | None = None) -> None:
        """Take a slot back.

        :param age: the tick at which it came back, if that is not now
        """
        slab = cast("Slab[T] | None", slot.slab)
        if slab is None:
            raise AssertionError("a slot of a dismantled slab came back")
        if slab is self.condemned:
            slab.put(slot)
            self.slots_out -= 1
            self.slabs_used -= not slab.in_use
            return
        if not slab.free:
            del self.complete[slab]
            self.partial[slab] = None
            self.partial.move_to_end(slab, last=False)
        slab.put(slot)
        self.slots_out -= 1
        if not slab.in_use:
            self.slabs_used -= 1
            slab.age = self.tick if age is None else age
            slab.may_move_again()
            self.partial.move_to_end(slab)

    def condemn(self) -> bool:
        """Choose the emptiest slab that is in use, to go; False if there is none, or one was chosen before."""
        if self.condemned is not None:
            return False
        partial = (slab for slab in self.partial if slab.in_use)
        slab = min(partial, key=lambda slab: slab.in_use, default=next(iter(self.complete), None))
        if slab is None:
            return False
        self.partial.pop(slab, None)
        self.complete.pop(slab, None)
        self.condemned = slab
        return True

    def take_condemned(self) -> list[Slab[T]]:
        """The condemned slab, if it is empty now."""
        slab = self.condemned
        if slab is None or slab.in_use:
            return []
        self.condemned = None
        self.slots_total -= slab.objects
        self.destroyed += 1
        return [slab]

    def restore(self) -> None:
        """Put the condemned slab back on its list."""
        slab, self.condemned = self.condemned, None
        if slab is None:
            return
        if not slab.free:
            self.complete[slab] = None
            return
        self.partial[slab] = None
        if slab.in_use:
            self.partial.move_to_end(slab, last=False)  # never behind an empty one
        else:
            slab.age = self.tick

    def sort(self) -> None:
        """Fuller slabs first, exactly: the order that they are kept in otherwise only tends to it."""
        self.partial = OrderedDict.fromkeys(sorted(self.partial, key=lambda slab: slab.free))

    def sparse(self, steps: int, of: int) -> list[Slab[T]]:
        """Partial slabs that `may_empty`, the sparsest first."""
        in_use = [slab for slab in reversed(self.partial) if slab.in_use]
        return [slab for slab in in_use if self.may_empty(slab, steps, of)]

    def may_empty(self, slab: Slab[T], steps: int, of: int) -> bool:
        """Whether it is at most so full, in steps ``of`` a whole, and another could take what it holds."""
        return slab is not next(iter(self.partial), None) and slab.in_use * of <= steps * slab.objects

    def restart_peak(self) -> int:
        """The most slots that were out since this was called last."""
        peak, self._slots_out_peak = self._slots_out_peak, self.slots_out
        return peak

    def remove_empty(self, keep: int = 0, until: int | None = None, most: int | None = None) -> list[Slab[T]]:
        """Take empty slabs off the tail, stopping at the first in use.

        ``keep`` free slots stay, and what exceeds ``most`` slabs; with ``until``, slabs that became empty after
        that tick stay too.
        """
        removed: list[Slab[T]] = []
        while self.partial and (most is None or len(removed) < most):
            slab = next(reversed(self.partial))
            too_young = until is not None and slab.age > until
            if slab.in_use or too_young or self.free - slab.objects < keep:
                break
            del self.partial[slab]
            self.slots_total -= slab.objects
            self.destroyed += 1
            removed.append(slab)
        return removed
