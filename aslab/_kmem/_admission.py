"""Who may have emergency objects made: one after the other, in order, as there is room.

Always true, between calls: a waiter that was refused, and could be permitted what it needs some day, stands in
one queue of refused, that of the bound which refused it; there it is asked again as soon as there is room. What it
was permitted and does not use is uncharged. So nobody polls, and nobody is woken in vain.

A waiter that can never be permitted what it needs stands in neither, as it would be in the way of others.

Event loop's thread only.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ._emergency import Emergency, Permits
from ._growth import Growth
from ._handover import Handover
from ._waiters import Waiter, Waiters

T = TypeVar("T")


class Admission(Generic[T]):
    """What the waiters of one pool are permitted, within ``max_emergency`` and ``emergency_limit``."""

    def __init__(
        self,
        waiters: Waiters[T],
        handover: Handover[T],
        emergency: Emergency[T],
        growth: Growth[T],
        permits: Permits,
    ) -> None:
        self._waiters = waiters
        self._handover = handover
        self._emergency = emergency
        self._growth = growth
        self._permits = permits

    def apply(self, waiter: Waiter[T]) -> int:
        """How many emergency objects may be made for it now: all that it still needs, or none."""
        missing = self._missing(waiter)
        waiter.seen = waiter.need - missing if waiter.need > 1 else None
        granted, waiter.permitted = waiter.permitted, 0
        enough = granted >= missing > 0
        if granted:  # by now it may miss less; or nothing, or more than it was permitted
            self._emergency.uncharge(granted - missing if enough else granted)
        if enough:
            return missing
        here, everywhere = self._emergency.refused, self._permits.refused
        queue = next((one for one in (here, everywhere) if one.first and one.first.rank < waiter.rank), None)
        if missing > 0 and queue is None and self._emergency.try_charge(missing, waiter.level):
            return missing
        if self._emergency.possible(missing, waiter.level):
            waiter.refused_by = self
            own = self._emergency.full(missing, waiter.level)
            (queue or (here if own else everywhere)).join(waiter)
            if not own:
                self._permits.clear_spares()
        return 0

    def withdraw(self, waiter: Waiter[T]) -> None:
        """It makes no emergency objects now: its permits and its place among the refused are for others."""
        permitted, waiter.permitted, waiter.seen = waiter.permitted, 0, None
        if waiter.refused_by is not None:
            waiter.refused_by = None
            self._emergency.refused.leave(waiter)
            self._permits.refused.leave(waiter)
            self.let_others_try()
        if permitted:
            self._emergency.uncharge(permitted)

    def let_others_try(self) -> None:
        """There may be room for emergency objects: permit them to those that were refused, in order."""
        refused = self._emergency.refused
        while (waiter := refused.first) is not None:
            if self.hopeless(waiter):
                waiter.wake()  # its turn never comes, and others' would not
            elif not self.grant(waiter):
                if self.bound_here(waiter):
                    break
                self._permits.refused.join(waiter)  # it is the bound over all caches now
            refused.leave(waiter)
        if self._permits.refused.first is not None:
            self._permits.grant()

    def grant(self, waiter: Waiter[T]) -> bool:
        """Permit the emergency objects that it still needs, and wake it; False if there is no room."""
        if not self._growth.unwell:  # it has something else to wait for: let it see
            waiter.wake()
            return True
        missing = self._missing(waiter)
        if not self._emergency.try_charge(missing, waiter.level):
            return False
        waiter.permitted += missing
        waiter.wake()
        return True

    def hopeless(self, waiter: Waiter[T]) -> bool:
        """Whether it can never be permitted what it needs, by now."""
        return not self._emergency.possible(self._missing(waiter), waiter.level)

    def bound_here(self, waiter: Waiter[T]) -> bool:
        """Whether it is the bound of the cache that stands against it."""
        return self._emergency.full(self._missing(waiter), waiter.level)

    def _missing(self, waiter: Waiter[T]) -> int:
        """How many objects it needs besides those that are free for it: these belong to the first in line."""
        first = self._waiters.first is waiter
        at_hand = self._handover.at_hand(self._handover.standing(waiter)) if first else 0
        return max(0, waiter.need - at_hand)
