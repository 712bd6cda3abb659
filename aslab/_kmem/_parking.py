"""Slots of forgotten buffers, which cannot be reused yet because their memory is still exported.

Always true, between calls: a parked slot is parked once, has no handle, is out of its slab, and counts as held.

A compiled slot counts its exports and tells when they are gone. Otherwise no finaliser or weak reference can tell
that for good, since the garbage collector may run their finalisers later and resurrect them, and a slot is looked
at from time to time. Once the pool is closed, it is left to _orphans.py.

Any thread, finalisers included.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .._fastpath import Noted, Slot
from .._stats import Counters
from ._orphans import watch

AT_ONCE = 16
"""Parked slots that a miss looks at; the ageing task looks at all of them."""


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
        """Leave the slots to _orphans.py: ``tell`` is called for each, in any thread, once its exports end."""
        while self:
            slot, parked = self.popitem()
            watch(slot, partial(tell, parked))
