"""Debug letters at work on one pool: what is known of each object, and what is found wrong with it.

    alloc    red zones and poison are checked   ──► held, with the site of the allocation
    free     red zones are checked, poison put  ──► free, with the site of the free
    a slab goes back, `Cache.validate`          ──► whatever it is, it is checked

An object has red zones and poison from the moment it is first handed out. What was overwritten is restored, so
each finding is reported once, the object stays in use, and nothing is lost. Each is logged, in one record for what
was found and one for what was restored, as SLUB does; whoever called has it raised as well.

Always true, between calls, for each object that was ever handed out: its record says whether a caller holds it,
and its red zones, and the poison of one that is free, are as they were put. An object that was freed while
somebody kept a view of it is `stale`: writing to it is allowed (_lingering.py), so its poison is not checked.

Any thread, finalisers included. The lock is the innermost of all: nothing is logged, and no other lock taken,
while it is held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from .._clients import log
from .._config import CacheConfig
from .._errors import ConsistencyError, CorruptionError, PoisonError, RedZoneError
from .._fastpath import EmergencySlot, Slot
from .._sites import Site, here
from ._filled import POISON, RED, ROW, Filled, byte_at, dump, row_of
from ._slab import Slab, zero_out

T = TypeVar("T")

HEAD = 2
"""Rows shown of the object itself, by which its owner may know it."""


class Record:
    """One allocation of an object, which its handle and the object refer to."""

    __slots__ = ("address", "allocated", "collected", "freed", "held", "stale")

    def __init__(self, address: int) -> None:
        self.address: int = address
        self.held: bool = True
        self.stale: bool = False
        """It was freed while a view of it was kept."""
        self.collected: bool = False
        """It was not freed by a call: it was garbage, or moved."""
        self.allocated: Site | None = None
        self.freed: Site | None = None

    def story(self) -> list[str]:
        """Return who allocated it and who freed it, in lines."""
        if self.allocated is None:
            return ["  debug letter U tells who allocated it and who freed it"]
        lines = _lines("allocated", self.allocated)
        if self.collected:
            return [*lines, "  freed by aslab: it was garbage-collected, or moved"]
        return lines if self.freed is None else lines + _lines("freed", self.freed)


def _lines(what: str, site: Site) -> list[str]:
    return [f"  {what} by {site.task}", *(f"    {step}" for step in site.stack)]


class Debug(Generic[T]):
    """The debug letters of one pool."""

    def __init__(self, config: CacheConfig[T], thread: int) -> None:
        self._name = config.name
        self._shape = config.shape
        chosen = config.debug
        self.consistency: bool = "F" in chosen
        self.views: bool = "V" in chosen
        self._red = "Z" in chosen
        self._poison = "P" in chosen
        self._sites = "U" in chosen
        self._trace = "T" in chosen
        self._lock = threading.RLock()
        self.told: set[str] = set()
        """What was found wrong with the books: each is reported once."""
        self.threads: bool = False
        """Threads beside the event loop's have used the cache."""
        self._thread = thread  # the event loop's

    def used(self, *, by: Callable[[], int] = threading.get_ident) -> None:
        """Note which thread uses the cache, before it changes anything. Finalisers included."""
        if by() != self._thread:
            self.threads = True

    def site(self) -> Site | None:
        """Return where the caller of aslab is now, as far as a letter needs it."""
        return here(2, whole=self._sites) if self._sites or self._trace else None

    # -- what happens to an object

    def hand_out(self, slot: Slot[T], site: Site | None) -> None:
        """Note that a caller is given an object, which is checked first.

        :raises RedZoneError, PoisonError: if it was damaged; it is still free, and as it was
        :raises ConsistencyError: if another caller holds it
        """
        record = Record(slot.address)
        record.allocated = site if self._sites else None
        with self._lock:
            last = record_of(slot)
            twice = last is not None and last.held
            found = [] if last is None or twice else self._look(slot, last)
            if not (found or twice):
                if last is None:
                    self._fill(slot)
                elif last.stale:
                    self.poison_again(slot)
                _put(slot, record)
        if twice:
            text = f"cache {self._name!r}: the buffer at {slot.address:#x} is held, and was handed out again"
            raise self._told([ConsistencyError(text, self._name, slot.address)])
        if found:
            raise self._told(found)
        if self._trace:
            log.info("cache %r: alloc of the buffer at %#x by %s", self._name, slot.address, site)

    def let_go(self, slot: Slot[T], site: Site | None = None, *, collected: bool = True) -> CorruptionError | None:
        """Note that an object is free from now on. Returns what was wrong with it, which is logged."""
        with self._lock:
            record = record_of(slot)
            if record is None or not record.held:  # never handed out; or it was stale
                if record is not None and record.stale and not slot.kept:
                    self.poison_again(slot)
                return None
            found = self._look(slot, record)
            record.held, record.collected, record.stale = False, collected, bool(slot.kept)
            record.freed = site if self._sites else None
            if self._poison:
                self._body(slot).fill()
        if self._trace:
            by = "aslab: it was garbage-collected, or moved" if collected else site
            log.info("cache %r: free of the buffer at %#x by %s", self._name, slot.address, by)
        return self._told(found) if found else None

    def move(self, old: Slot[T], new: Slot[T]) -> None:
        """Note that an object has moved to another place, which was handed out for it."""
        with self._lock:
            old_record, new_record = record_of(old), record_of(new)
            assert old_record is not None, "it is held"
            assert new_record is not None, "it was handed out for this"
            new_record.address, old_record.address = old.address, new.address
            _put(new, old_record)
            _put(old, new_record)

    def freed_twice(self, record: Record) -> str:
        """Say that a buffer was freed twice, who had it, and who freed it first."""
        text = f"cache {self._name!r}: the buffer at {record.address:#x} was freed before"
        return "\n".join((text, *record.story()))

    def poison_again(self, slot: Slot[T]) -> None:
        """Poison a free object that may have been written to until now, and check it from now on."""
        record = record_of(slot)
        if record is not None and not record.held:
            if self._poison:
                self._body(slot).fill()
            record.stale = False

    # -- looking

    def look_at_slabs(self, slabs: list[Slab[T]]) -> None:
        """Check the objects of slabs that are about to be given back."""
        for slab in slabs:
            self.validate(list(slab.records))

    def validate(self, slots: list[Slot[Any]]) -> list[CorruptionError]:
        """Check objects, and return what was wrong with them, which is logged."""
        errors = []
        for slot in slots:
            with self._lock:
                record = record_of(slot)
                found = [] if record is None else self._look(slot, record)
            errors += found
            if found:
                self._told(found)
        return errors

    def _look(self, slot: Slot[T], record: Record) -> list[CorruptionError]:
        """Check an object, and restore what was overwritten. To be called with the lock held."""
        found: list[CorruptionError] = []
        if self._red:
            for zone, which in zip(self._zones(slot), ("left", "right"), strict=True):
                if (damage := zone.damage()) is not None:
                    how = f"{which} red zone overwritten"
                    found.append(self._damage(RedZoneError, zone, damage, how, slot, record))
        if self._poison and not record.held and not record.stale:
            body = self._body(slot)
            if (damage := body.damage()) is not None:
                found.append(self._damage(PoisonError, body, damage, "written to after its free", slot, record))
        return found

    def _damage(
        self,
        kind: type[CorruptionError],
        place: Filled,
        damage: tuple[int, int],
        how: str,
        slot: Slot[T],
        record: Record,
    ) -> CorruptionError:
        """Put damage into words, and undo it."""
        first, end = damage
        size, begin = self._shape.size, slot.address
        state = "held" if record.held else "free"
        which = f"byte {first - begin}" if end - first == 1 else f"bytes {first - begin} to {end - begin - 1}"
        row = max(place.address, first - (first - begin) % ROW)
        until = min(place.address + place.nbytes, end + -(end - begin) % ROW)
        lines = (
            f"cache {self._name!r}: {how}: buffer of {size} bytes at {begin:#x}, {state}; {which} from its start: "
            f"first {byte_at(first):#04x}, expected {place.byte:#04x}",
            row_of("expected", row, bytes((place.byte,)) * min(ROW, until - row)),
            *dump("found", row, until),
            *(dump("object", begin, begin + size, HEAD) if place.byte == RED else ()),
            *record.story(),
        )
        place.fill()
        restored = f"cache {self._name!r}: restored {first:#x} to {end - 1:#x}: {place.byte:#04x}"
        return kind("\n".join(lines), self._name, begin, restored)

    def _told(self, found: list[CorruptionError]) -> CorruptionError:
        """Log what was found. Returns the first of it."""
        for error in found:
            log.error("%s", error)
            if error.restored:
                log.error("%s", error.restored)
        return found[0]

    # -- places

    def _zones(self, slot: Slot[T]) -> tuple[Filled, Filled]:
        shape, start = self._shape, slot.address
        after = shape.stride - shape.size - shape.red
        return Filled(start - shape.red, shape.red, RED), Filled(start + shape.size, after, RED)

    def _body(self, slot: Slot[T]) -> Filled:
        return Filled(slot.address, self._shape.size, POISON)

    def _fill(self, slot: Slot[T]) -> None:
        """Begin with an object that was never handed out."""
        if self._red:
            for zone in self._zones(slot):
                zone.fill()
        if self._poison:
            self._body(slot).fill()


def cleaning(config: CacheConfig[T], debug: Debug[T] | None) -> Callable[[Slot[T]], object] | None:
    """Return what is to be done with a free object that somebody may have written to until now, if anything."""
    if config.init_on_free:
        return zero_out
    return None if debug is None else debug.poison_again


def record_of(slot: Slot[Any]) -> Record | None:
    """Return what is known of the last allocation of an object; None if it was never handed out."""
    if isinstance(slot, EmergencySlot):
        return cast("Record | None", slot.record)
    slab = cast("Slab[Any] | None", slot.slab)
    return None if slab is None else slab.records.get(slot)


def site_of(slot: Slot[Any]) -> Site | None:
    """Return where an object was allocated, if that is known."""
    record = record_of(slot)
    return None if record is None else record.allocated


def _put(slot: Slot[Any], record: Record) -> None:
    if isinstance(slot, EmergencySlot):
        slot.record = record
    else:
        cast("Slab[Any]", slot.slab).records[slot] = record
