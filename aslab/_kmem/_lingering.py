"""Slots without a handle whose memory somebody can still reach: they must not be reused, or not yet.

    lingering    freed, and the object of an ended view is alive: it may still be written to
    parked       forgotten by its owner, and still exported
    orphans      what is left of both once the pool is closed

A library that takes the address of a view and keeps only the view object (as torch does) exports nothing, so a
free succeeds. But it can write to the memory as long as that object lives. So the slot lingers: it is reused last,
and only because its own task might otherwise wait for it, and its memory is not released until the object is gone.
If the view is merely in a variable, as is common, the slot is back as soon as the variable is gone.

    free ── view object alive ──► lingering ── it goes ──► magazine
                                      └─ nothing else is free ──► the next owner, and here again afterwards

A parked slot, if compiled, counts its exports and tells when they are gone. Otherwise no finaliser or weak
reference can tell that for good, since the garbage collector may run their finalisers later and resurrect them,
and a slot is looked at from time to time.

Once the pool is closed, no event loop is left to look. If a buffer was dropped while its memory was exported, or a
view object is kept, the region is released once those are gone. A weak reference reports that, but not reliably:
not whether the object that ended its export is itself kept, nor whether a finaliser resurrects what the garbage
collector took for garbage, since the collector clears weak references first. So what a weak reference reports is
checked again after the next collection. Memory that is still reachable at exit is not released, as no code can run
then.

Always true, between calls:

    1. a lingering slot is free, out of its slab, and not in the magazine
    2. exactly one thread takes a lingering slot out, and owns it from then on
    3. a parked slot is parked once, has no handle, is out of its slab, and counts as held
    4. an `Orphan` that has not reported is in ``_orphans``, which keeps it alive
    5. every function in ``_looks`` is called after each collection, until it returns True

Any thread, finalisers included: each step is a single operation of a dictionary.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from .._fastpath import Exported, Noted, Slot, exporter
from .._stats import Counters

S = TypeVar("S", bound=Slot[Any])

AT_ONCE = 16
"""Parked slots that a miss looks at; the ageing task looks at all of them."""
_NOTHING = exporter(memoryview(bytearray(1)), 0, 1)
_orphans: set[Orphan] = set()  # nothing else refers to them
_looks: set[Callable[[], bool]] = set()


class Lingering(dict[S, object]):
    """Lingering slots of one kind: of slabs, or of emergency objects.

    :param clean: called for each slot that stops lingering, as it may have been written to since it was freed
    """

    def __init__(self, clean: Callable[[S], object] | None = None) -> None:
        super().__init__()
        self._clean = clean
        self.tell: Callable[[], object] | None = None
        """Called in any thread when a slot has begun to linger, after the pool is closed."""

    def admit(self, slot: S) -> bool:
        """Take in a free slot if it has to linger. Returns False if not: then the slot is still the caller's."""
        self[slot] = None  # before looking, so that no notification is missed
        if self.let_go(slot):
            return False
        if self.tell is not None:
            self.tell()
        return True

    def take(self) -> S | None:
        """Take out the newest slot, or None: most likely its own task has merely kept a variable."""
        try:
            return self.popitem()[0] if self else None
        except KeyError:  # another thread was quicker
            return None

    def let_go(self, slot: S) -> bool:
        """Take a slot out if it need not linger any more. Returns True if so: then the caller owns it."""
        if self.pop(slot, self) is self:  # already taken
            return False
        if slot.haunted():
            self[slot] = None
            return False
        if self._clean is not None:
            self._clean(slot)
        return True

    def look(self) -> list[S]:
        """Take out all slots that need not linger any more: the end of slices and garbage is not reported."""
        return [slot for slot in list(self) if self.let_go(slot)]


class Parked(NamedTuple):
    """What is left of a forgotten buffer."""

    counters: Counters
    slot: Slot[Any]
    emergency: bool
    note: Noted | None = None


class Parking(OrderedDict[Slot[Any], Parked]):
    """The parked slots of one pool, by slot; next to be looked at first. Each step is a single operation of it."""

    def let_go(self, slot: Slot[Any]) -> Parked | None:
        """Take a slot out if it is parked and no longer exported, or return None."""
        parked = self.pop(slot, None)
        if parked is not None and slot.in_use():
            self[slot] = parked
            return None
        return parked

    def look(self) -> list[Parked]:
        """Take out the slots no longer exported. Looks at `AT_ONCE` of them, and at the next ones next time."""
        gone = []
        for _ in range(min(AT_ONCE, len(self))):
            try:
                slot, parked = self.popitem(last=False)
            except KeyError:  # another thread is looking, too
                break
            if slot.in_use():
                self[slot] = parked
            else:
                gone.append(parked)
        return gone

    def orphan(self, tell: Callable[[Parked], object]) -> None:
        """Watch the slots of a closed pool: ``tell`` is called for each, in any thread, once its exports end."""
        while self:
            slot, parked = self.popitem()
            watch(slot, partial(tell, parked))


class Orphan:
    """A place that gets no new exports. ``tell`` is called, in any thread, once the existing ones are gone.

    The exporter keeps the memory alive by a memoryview of its own. The orphan waits for that view, not for the
    exporter: once it is gone, nothing exports the region.
    """

    def __init__(self, place: Exported, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._again: memoryview | None = None
        _orphans.add(self)
        (inner,) = cast("dict[str, memoryview]", place.exporter._objects).values()
        place.exporter = _NOTHING
        self._number = id(inner)
        self._wait_for(inner)

    def _wait_for(self, inner: memoryview) -> None:
        self._ref: Any = weakref.ref(inner, self._gone)

    def _gone(self, _: object, *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # the globals of this module may be gone, too
            return
        if ctypes.c_ssize_t.from_address(self._number).value:  # its reference count: the collector is running
            self._again = ctypes.cast(self._number, ctypes.py_object).value
            look_after_collections(self._look)
        else:
            _orphans.discard(self)
            self._tell()

    def _look(self) -> bool:
        inner, self._again = self._again, None
        if inner is not None:
            self._wait_for(inner)  # reports at once if ours is the last reference
        return True


def watch(place: Exported, tell: Callable[[], object]) -> None:
    """Call ``tell``, in any thread, once the exports of a place are gone. The place gets no new ones."""
    if not place.tell_when_unused(tell):
        Orphan(place, tell)


def look_after_collections(look: Callable[[], bool]) -> None:
    """Call ``look`` after each garbage collection, in any thread, until it returns True."""
    _looks.add(look)
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        for look in list(_looks):
            _looks.discard(look)
            if not look():
                _looks.add(look)
