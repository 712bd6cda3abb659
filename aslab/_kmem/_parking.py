"""Slots that nobody holds any more, and that cannot be used yet: somebody may still reach their memory.

Always true: a parked slot is in nobody's hands, out of its slab, and counted as held. It is parked once.

A buffer was forgotten while its memory is exported. No finaliser or weak reference can tell when the exports are
gone for good, since the garbage collector may run theirs later, and bring them back. So now and then the slot is
looked at. Once the pool is closed nobody looks any more, and it waits for what _orphans.py tells.

Any thread, and any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .._fastpath import Slot
from .._stats import Counters
from ._orphans import Orphan

AT_ONCE = 16
"""Parked slots that a miss looks at; the ageing task looks at all."""


class Parked(NamedTuple):
    """What is left of a forgotten buffer."""

    counters: Counters
    slot: Slot[Any]
    emergency: bool


class Parking(deque[Parked]):
    """The parked slots of one pool."""

    orphaned: bool = False
    """The pool is closed, and what it lacks is looked for after each garbage collection."""

    def look(self) -> list[Parked]:
        """Take out those that nobody exports any more. Looks at a few, and at the next ones next time."""
        gone = []
        for _ in range(min(AT_ONCE, len(self))):
            try:
                parked = self.popleft()
            except IndexError:  # another thread looks, too
                break
            if parked.slot.in_use():
                self.append(parked)
            else:
                gone.append(parked)
        return gone

    def orphan(self, tell: Callable[[Parked], object]) -> None:
        """Nobody looks any more: have that called for each, in any thread, once nobody exports it."""
        while self:
            parked = self.pop()
            Orphan(parked.slot, partial(tell, parked))
