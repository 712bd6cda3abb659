"""Slots that nobody holds any more, and that cannot be used yet: somebody may still reach their memory.

A buffer was forgotten while its memory is exported: no finaliser or weak reference can tell when the exports are
gone for good, since the garbage collector may run theirs later, and bring them back. So now and then the slot is
looked at. Where view objects are kept, the slot lingers (_lingering.py), and here is who tells of that. Once the
pool is closed nobody looks any more, and both wait for what _orphans.py tells.
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
"""Parked slots that a miss looks at; the ageing task looks at all."""


class Parking(Generic[T]):
    """The parked slots of one pool. Any thread, and any moment, but for `look_at_all`."""

    def __init__(self, pool: Pool[T]) -> None:
        self._pool = pool
        self._parked: deque[tuple[Tally, Slot[T], bool]] = deque()

    def park(self, tally: Tally, slot: Slot[T], emergency: bool) -> None:
        """Keep a slot whose handle is gone while somebody still exports its memory."""
        self._parked.append((tally, slot, emergency))
        if Mark.DESTROY in self._pool.marks:
            self.close()

    def look(self, most: int = AT_ONCE) -> None:
        """Take those back that nobody exports any more; looks at a few, the next ones next time."""
        for _ in range(min(most, len(self._parked))):
            try:
                tally, slot, emergency = self._parked.popleft()
            except IndexError:  # another thread looks, too
                return
            if slot.in_use():
                self._parked.append((tally, slot, emergency))
            else:
                self._take_back(tally, slot, emergency)

    async def look_at_all(self) -> None:
        """Look at all, and let other tasks have their turn now and then. Event loop's thread only."""
        for number in range(len(self._parked) // AT_ONCE):
            self.look()
            await take_turns(number)

    def view_gone(self, kept: KeptView) -> None:
        """The object of a view that had ended is gone."""
        slot: Any = kept.place
        pool = self._pool
        lingering: Lingering[Any] = pool.emergency.lingering if slot.slab is None else pool.depot.lingering
        if lingering and lingering.let_go(slot):
            pool.come_back(slot)

    def look_at_lingering(self) -> None:
        """Take those back that need not linger any more."""
        for slot in (*self._pool.depot.lingering.look(), *self._pool.emergency.lingering.look()):
            self._pool.come_back(slot)

    def close(self) -> None:
        """Closed: soon nobody looks now and then."""
        while self._parked:
            tally, slot, emergency = self._parked.pop()
            Orphan(slot, partial(self._take_back, tally, slot, emergency))
        if not self._look_when_closed():
            look_after_collections(self._look_when_closed)

    def _look_when_closed(self) -> bool:
        """After each garbage collection; answers whether all is back."""
        self.look_at_lingering()
        return not len(self._pool.depot.slabs) and not len(self._pool.emergency)

    def _take_back(self, tally: Tally, slot: Slot[T], emergency: bool) -> None:
        tally.count_return(emergency)
        self._pool.come_back(slot)
