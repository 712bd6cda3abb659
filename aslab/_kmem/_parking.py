"""Slots that nobody holds and that cannot be used yet, because somebody may still reach their memory.

A parked slot belonged to a buffer that was dropped while its memory was exported. No finaliser or weak reference
can tell when the exports are gone for good, since the garbage collector may run theirs later and bring them back.
So the slot is looked at now and then. A slot whose view objects are kept lingers (_lingering.py); here it is noted
when they go. Once the pool is closed nobody looks any more, and both wait for _orphans.py.

Always true between calls: a parked slot is out of its slab, has no handle, and has not been counted as returned.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .._fastpath import KeptView, Slot
from .._stats import Tally
from ._lingering import Lingering
from ._orphans import Orphan, look_after_collections
from ._state import Mark
from ._wakeup import take_turns

if TYPE_CHECKING:
    from ._pool import Pool

T = TypeVar("T")

AT_ONCE = 16
"""How many parked slots a miss looks at; the ageing task looks at all."""


class Parking(Generic[T]):
    """The parked slots of one pool. Any thread, at any moment, except `look_at_all`."""

    def __init__(self, pool: Pool[T]) -> None:
        self._pool = pool
        self._parked: deque[tuple[Tally, Slot[T], bool]] = deque()

    def park(self, tally: Tally, slot: Slot[T], emergency: bool) -> None:
        """Keep a slot whose handle is gone and whose memory is still exported."""
        self._parked.append((tally, slot, emergency))
        if Mark.DESTROY in self._pool.marks:
            self.close()

    def look(self, most: int = AT_ONCE) -> None:
        """Take back slots that are no longer exported. Looks at a few, and at the next few the next time."""
        for _ in range(min(most, len(self._parked))):
            try:
                tally, slot, emergency = self._parked.popleft()
            except IndexError:  # another thread is looking, too
                return
            if slot.in_use():
                self._parked.append((tally, slot, emergency))
            else:
                self._take_back(tally, slot, emergency)

    async def look_at_all(self) -> None:
        """Look at all of them, and let other tasks run now and then. Event loop's thread only."""
        for number in range(len(self._parked) // AT_ONCE):
            self.look()
            await take_turns(number)

    def view_gone(self, kept: KeptView) -> None:
        """Called when the object of a view that had ended is gone."""
        slot: Any = kept.place
        pool = self._pool
        lingering: Lingering[Any] = pool.emergency.lingering if slot.slab is None else pool.depot.lingering
        if lingering and lingering.let_go(slot):
            pool.come_back(slot)

    def look_at_lingering(self) -> None:
        """Take back slots that need not linger any more."""
        for slot in (*self._pool.depot.lingering.look(), *self._pool.emergency.lingering.look()):
            self._pool.come_back(slot)

    def close(self) -> None:
        """Wait for what is left without an event loop: the pool is closed."""
        while self._parked:
            tally, slot, emergency = self._parked.pop()
            Orphan(slot, partial(self._take_back, tally, slot, emergency))
        if not self._look_when_closed():
            look_after_collections(self._look_when_closed)

    def _look_when_closed(self) -> bool:
        """Look after a garbage collection. Returns whether all memory is back."""
        self.look_at_lingering()
        return not len(self._pool.depot.slabs) and not len(self._pool.emergency)

    def _take_back(self, tally: Tally, slot: Slot[T], emergency: bool) -> None:
        tally.count_return(emergency)
        self._pool.come_back(slot)
