"""Who may have emergency objects made: waiters in order, as far as there is room.

Always true, between calls:

    1. a refused waiter that can be granted later stands in exactly one queue, that of the bound which refused it
       (``max_emergency`` or ``emergency_limit``), and is granted there as soon as there is room
    2. a waiter that can never be granted what it needs stands in neither queue, where it would block others;
       it is woken if a larger cache raises the default ``emergency_limit``
    3. permits that a waiter does not use are uncharged

So nobody polls, and nobody is woken without room.

Event loop's thread only.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ._emergency import Emergency, Permits
from ._growth import Growth
from ._handover import Handover
from ._line import Waiters
from ._waiters import Waiter

T = TypeVar("T")


class Admission(Generic[T]):
    """Permits for the waiters of one pool, within ``max_emergency`` and ``emergency_limit``."""

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
        self._permitted = 0  # objects, of all waiters

    def apply(self, waiter: Waiter[T]) -> int:
        """Return how many emergency objects may be made for ``waiter`` now: all that it still needs, or 0."""
        missing = self._missing(waiter)
        waiter.seen = waiter.need - missing if waiter.need > 1 else None
        granted, waiter.permitted = waiter.permitted, 0
        self._permitted -= granted
        enough = granted >= missing > 0
        if granted:  # since then it may need fewer, or more than were granted
            self._emergency.uncharge(granted - missing if enough else granted)
        if enough:
            return missing
        here, everywhere = self._emergency.refused, self._permits.refused
        queue = next((one for one in (here, everywhere) if one.first and one.first.rank < waiter.rank), None)
        if missing > 0 and queue is None and self._emergency.try_charge(missing, waiter.level):
            self._leave_queues(waiter)
            return missing
        if not self._emergency.possible(missing, waiter.level):
            self._leave_queues(waiter)
            waiter.refused_by, self._permits.hopeless[waiter] = self, None
            return 0
        waiter.refused_by = self
        own = self._emergency.full(missing, waiter.level)
        queue = queue or (here if own else everywhere)
        queue.join(waiter)
        other = everywhere if queue is here else here
        self._permits.hopeless.pop(waiter, None)
        if other.leave(waiter) and other.first is not None:
            other.first.wake()  # it may have been in that one's way
        if not own:
            self._permits.clear_spares()
        return 0

    def withdraw(self, waiter: Waiter[T]) -> None:
        """Give up the permits of ``waiter`` and its place among the refused, for others to use."""
        permitted, waiter.permitted, waiter.seen = waiter.permitted, 0, None
        self._permitted -= permitted
        self._leave_queues(waiter)
        if permitted:
            self._emergency.uncharge(permitted)

    def _leave_queues(self, waiter: Waiter[T]) -> None:
        if waiter.refused_by is not None:
            waiter.refused_by = None
            self._emergency.refused.leave(waiter)
            self._permits.refused.leave(waiter)
            self._permits.hopeless.pop(waiter, None)
            self.let_others_try()

    def let_others_try(self) -> None:
        """Grant permits to refused waiters in order, as there may be room now."""
        refused = self._emergency.refused
        while (waiter := refused.first) is not None:
            if self.hopeless(waiter):
                waiter.wake()  # its turn never comes, and it blocks those behind it
            elif not self.grant(waiter):
                if self.bound_here(waiter):
                    break
                self._permits.refused.join(waiter)  # now the bound over all caches refuses it
            refused.leave(waiter)
        if self._permits.refused.first is not None:
            self._permits.grant()

    def grant(self, waiter: Waiter[T]) -> bool:
        """Permit the emergency objects that ``waiter`` still needs, and wake it; False if there is no room."""
        if not self._growth.unwell:  # growth is well again: let it wait for a slab instead
            waiter.wake()
            return True
        missing = self._missing(waiter)
        if not self._emergency.try_charge(missing, waiter.level):
            return False
        waiter.permitted += missing
        self._permitted += missing
        waiter.wake()
        return True

    def hopeless(self, waiter: Waiter[T]) -> bool:
        """Whether ``waiter`` can never be permitted what it needs now."""
        return not self._emergency.possible(self._missing(waiter), waiter.level)

    def bound_here(self, waiter: Waiter[T]) -> bool:
        """Whether the bound of its own cache, ``max_emergency``, is what refuses ``waiter``."""
        return self._emergency.full(self._missing(waiter), waiter.level)

    def _missing(self, waiter: Waiter[T]) -> int:
        """How many objects ``waiter`` needs beyond the free ones, which count for the first in line alone."""
        first = self._waiters.first is waiter
        at_hand = self._handover.at_hand(self._handover.standing(waiter)) if first else 0
        return max(0, waiter.need - at_hand)

    def check(self) -> None:
        """Check what is always true between calls.

        :raises AssertionError: naming what does not hold
        """
        line, given = set(self._waiters.everybody), self._handover.given
        refused = [one for one in self._permits.refused if one.refused_by is self]
        refused += [one for one in self._permits.hopeless if one.refused_by is self]
        refused += self._emergency.refused
        assert len(refused) == len(set(refused)), "a waiter is refused in two places"
        # A waiter that is served has left the line, and leaves the queues when it resumes.
        served = sum(one.need for one in set(refused) - line if one.slots is not None)
        assert served <= given, "a waiter that has left is still refused"
        assert all(one in line or one.slots is not None for one in refused), (
            "a waiter that has left is still refused"
        )
        permitted = sum(waiter.permitted for waiter in line)
        known = permitted == self._permitted or (permitted < self._permitted and given)
        assert known, "permits without a waiter"
