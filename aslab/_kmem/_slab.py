"""Slabs, each a region carved into slots, and the lists that a pool keeps them in.

    region   ├── slot 0 ──┼── slot 1 ──┼── ... ──┼── slot n-1 ──┤ rest of the last page
    address  a            a + stride             a + (n-1)·stride

``stride`` is the object size rounded up to the alignment; the region is rounded up to whole pages. With debug
letter Z there is a red zone before and after each object. Bookkeeping is
outside the region, so a power-of-two object wastes nothing (SPL puts a header into the slab and pays for it
there). A slot is made when first handed out, and the slots of a slab that goes are destroyed a few at a time, so a
slab of many objects costs no more at once than one of few.

Always true, between calls:

    1. a slab is in `partial` while it has a free slot, else in `complete`; the condemned slab is in neither
    2. `slots_total`, `slots_out` and `slabs_used` count every slab, the condemned one included
    3. a slot that is `out` is not in its slab's `freed`, and slots from `used` on have never been out

Plain synchronous code; the depot calls it under its lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from .._config import Shape
from .._fastpath import Slot, exporter, lease_view
from ..backends._libc import zero
from ..backends._protocol import Region

T = TypeVar("T")

AT_ONCE = 256
"""Slots destroyed, or looked at, before other tasks have their turn."""


def construct(slot: Slot[T], ctor: Callable[[memoryview], T], region: Region) -> None:
    """Build the object of a slot, on a view with an exporter of its own, so that it is no use of the slot."""
    offset = slot.address - region.address
    slot.obj = ctor(lease_view(exporter(region.memory, offset, slot.size)))


def destroy(slot: Slot[T], dtor: Callable[[T], None] | None) -> None:
    """Undo `construct`: take the object out of its slot, and call ``dtor`` with it."""
    obj, slot.obj = cast("T", slot.obj), None
    if dtor is not None:
        dtor(obj)


def zero_out(slot: Slot[Any]) -> None:
    """Zero the memory of a slot. Any thread."""
    zero(slot.address, slot.size)


class Slab(Generic[T]):
    """A region and its slots, some free, the others out; slots never handed out may not exist yet."""

    __slots__ = (
        "__weakref__",
        "age",
        "anchor",
        "built",
        "freed",
        "later",
        "records",
        "region",
        "shape",
        "slots",
        "stays",
        "used",
    )

    def __init__(self, region: Region, shape: Shape) -> None:
        self.region: Region = region
        self.shape: Shape = shape
        self.anchor: object = None
        """Of its slots, which find it by that."""
        self.age: int = 0
        """The ageing tick at which it became empty."""
        self.built: int = 0
        """How many slots, from the first, hold a constructed object."""
        self.stays: bool = False
        """A client has refused to move one of its objects; cleared when the slab leaves the partial list."""
        self.later: int = 0
        """How often a client has answered LATER since then."""
        self.records: dict[Slot[T], Any] = {}
        """What the debug letters know of its slots, those that have been handed out."""
        self.slots: list[Slot[T]] = []
        """The slots made so far, from the first."""
        self.used: int = 0
        """How many slots, from the first, have ever been handed out."""
        self.freed: list[Slot[T]] = []
        """Those of them that are back, the newest last."""

    @property
    def objects(self) -> int:
        """The number of slots, made or not."""
        return self.shape.objects

    @property
    def free(self) -> int:
        """The number of slots that may be handed out."""
        return self.shape.objects - self.used + len(self.freed)

    @property
    def in_use(self) -> int:
        """The number of slots that are out."""
        return self.used - len(self.freed)

    def carve(self, count: int = 1) -> Slot[T]:
        """Make the next slots, at most ``count`` of those that are left. Returns the first of them."""
        made, shape, region = len(self.slots), self.shape, self.region
        count = min(count, shape.objects - made)
        memory = region.memory[shape.lead :] if shape.lead else region.memory
        start = region.address + shape.lead
        self.anchor = Slot.carve(self.slots, self, memory, start, shape.size, shape.stride, count)
        return self.slots[made]

    def take(self, count: int) -> list[Slot[T]]:
        """Hand out as many slots as there are: those that came back last, then those that have never been out."""
        taken = self.freed[: -count - 1 : -1]
        del self.freed[len(self.freed) - len(taken) :]
        until = min(self.used + count - len(taken), self.shape.objects)
        if until > len(self.slots):
            self.carve(until - len(self.slots))
        taken += self.slots[self.used : until]
        self.used = until
        for slot in taken:
            slot.out = True
        return taken

    def put(self, slot: Slot[T]) -> None:
        """Take a slot back."""
        slot.out = False
        self.freed.append(slot)

    def may_move_again(self) -> None:
        """Forget the clients' answers, as the slab has left the partial list or is empty."""
        self.stays, self.later = False, 0

    def dismantle(self, dtor: Callable[[T], None] | None) -> Iterator[None]:
        """Destroy the objects and drop all references to the memory, yielding now and then. No slot may be out."""
        self.records.clear()
        self.slots.reverse()  # a list is cheap to shorten at its end only
        while self.slots:
            del self.freed[-AT_ONCE:]
            for _ in range(min(AT_ONCE, len(self.slots))):
                slot = self.slots.pop()
                if self.built:
                    self.built -= 1
                    destroy(slot, dtor)
                slot.slab = None
            del slot
            if self.slots:
                yield


class SlabLists(Generic[T]):
    """The partial and the complete slabs of a pool, and their counters.

    The partial list is ordered as SPL's: fuller slabs first, empty ones last. A new slab goes to the tail; a
    complete slab goes to the head when one of its slots is freed; a slab that becomes empty goes to the tail. So
    allocation packs objects, and slabs to give back gather at the tail.
    """

    def __init__(self) -> None:
        self.partial: OrderedDict[Slab[T], None] = OrderedDict()
        self.complete: dict[Slab[T], None] = {}
        self.condemned: Slab[T] | None = None
        """In neither list: nothing is taken from it, and it is given back as soon as it is empty."""
        self.slots_total: int = 0
        self.slots_out: int = 0
        self.slots_out_max: int = 0
        self._slots_out_peak = 0  # since the last `restart_peak`
        self.slabs_used: int = 0
        self.slabs_used_max: int = 0
        self.created: int = 0
        self.destroyed: int = 0
        self.tick: int = 0
        """Counts the runs of the ageing task."""

    def __len__(self) -> int:
        return len(self.partial) + len(self.complete) + (self.condemned is not None)

    def __iter__(self) -> Iterator[Slab[T]]:
        return iter([*self.partial, *self.complete, *([self.condemned] if self.condemned else [])])

    @property
    def free(self) -> int:
        """The number of free slots that may be taken."""
        withheld = self.condemned.free if self.condemned is not None else 0
        return self.slots_total - self.slots_out - withheld

    def add(self, slab: Slab[T]) -> None:
        """Add a new, empty slab at the tail."""
        slab.age = self.tick
        self.partial[slab] = None
        self.slots_total += slab.objects
        self.created += 1

    def take(self) -> Slot[T] | None:
        """Take a slot from the first partial slab, or None."""
        batch = self.take_batch(1)
        return batch[0] if batch else None

    def take_batch(self, count: int) -> list[Slot[T]]:
        """Take ``count`` slots from the first partial slabs, or as many as there are."""
        batch: list[Slot[T]] = []
        while len(batch) < count:
            slab = next(iter(self.partial), None)
            if slab is None:
                break
            if not slab.in_use:
                self.slabs_used += 1
                self.slabs_used_max = max(self.slabs_used_max, self.slabs_used)
            batch += slab.take(count - len(batch))
            if not slab.free:
                del self.partial[slab]
                self.complete[slab] = None
                slab.may_move_again()
        self.slots_out += len(batch)
        if self.slots_out > self._slots_out_peak:
            self._slots_out_peak = self.slots_out
            self.slots_out_max = max(self.slots_out_max, self.slots_out)
        return batch

    def put(self, slot: Slot[T], age: int | None = None) -> None:
        """Take a slot back.

        :param age: the tick at which it was freed, if not now
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
        """Condemn the emptiest slab in use; False if there is none, or one is condemned already."""
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
        """Take the condemned slab out, if it is empty now."""
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
        """Sort the partial list exactly, the fullest first: otherwise it is only roughly in that order."""
        self.partial = OrderedDict.fromkeys(sorted(self.partial, key=lambda slab: slab.free))

    def sparse(self, steps: int, of: int) -> list[Slab[T]]:
        """Return the partial slabs that `may_empty`, the sparsest first."""
        in_use = [slab for slab in reversed(self.partial) if slab.in_use]
        return [slab for slab in in_use if self.may_empty(slab, steps, of)]

    def may_empty(self, slab: Slab[T], steps: int, of: int) -> bool:
        """Whether a slab is at most ``steps`` / ``of`` full, and not the first, which takes what others hold."""
        return slab is not next(iter(self.partial), None) and slab.in_use * of <= steps * slab.objects

    def restart_peak(self) -> int:
        """Return the most slots that have been out since the last call."""
        peak, self._slots_out_peak = self._slots_out_peak, self.slots_out
        return peak

    def remove_empty(self, keep: int = 0, until: int | None = None, most: int | None = None) -> list[Slab[T]]:
        """Take empty slabs off the tail, stopping at the first in use.

        :param keep: free slots that must stay
        :param until: if given, slabs that became empty after that tick stay
        :param most: the most slabs to take
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
