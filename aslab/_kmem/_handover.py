"""Who gets a freed object: the line, in order, or a running caller, which may pass the line for a moment.

Always true, between calls:

    1. the reserve is refilled before any less urgent caller gets an object (_reserve.py)
    2. the free objects do not suffice for the first in line, unless running callers may pass it at the moment or
       it is about to leave with an error
    3. frees are watched for (WAITERS, KEPT, RESERVE), and allocations diverted, exactly while that is needed

A freed object is not handed over at once. The first in line is told, and when it runs it takes what is free then;
a running caller that is as urgent may take the object first. So a caller that frees and allocates again is served
as fast as with no waiters, whereas a hand-over costs two turns of the event loop. But once the first in line has
stood `BESIDE` seconds beside a free object, the next one freed is handed over. (The locks of WebKit and of Rust's
parking_lot do the same.) A MEMALLOC caller is never passed, nor one that needs several objects, except by a task
that has just given an object back (`Claims`).

A caller that needs several objects waits for all at once: free objects gather until they suffice for the first in
line, and nobody takes some of them and waits for the rest. So no two callers deadlock over them.

Event loop's thread only, except `take_set_aside` and `at_hand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import anyio

from .._fastpath import KEPT, RESERVE, WAITERS, EmergencySlot, Slot
from .._flags import FINISHES, ORDINARY, URGENT
from ._clock import Clock
from ._depot import Depot
from ._emergency import Emergency
from ._line import Waiters
from ._reserve import Reserve
from ._waiters import Waiter

T = TypeVar("T")

BESIDE = 0.001
"""Seconds for which others may pass the first in line, from when an object first came free."""


class Claims(Generic[T]):
    """The tasks that have just given an object back, and so come first for objects kept for MEMALLOC callers.

    A task that finishes work gives back the objects it held, and may at once need one to start the next work. It
    must get it: other MEMALLOC callers may depend on that very task, as all writes of ZFS depend on the one that
    ends them. So for a moment one of the kept objects is its own. With one object kept, that belongs to the task
    that gave back last.

    :param lasts: seconds that a claim lasts
    """

    def __init__(self, reserve: Reserve[T], now: Callable[[], float], lasts: float) -> None:
        self._reserve = reserve
        self._now = now
        self._lasts = lasts
        self._until: dict[int, float] = {}  # by task, the oldest first

    def note(self) -> None:
        """Note that the running task has given an object back."""
        task = _current_task() if self._reserve.kept else None
        if task is not None:
            self._until.pop(task, None)
            self._until[task] = self._now() + self._lasts
            while len(self._until) > self._reserve.kept:
                del self._until[next(iter(self._until))]

    @property
    def mine(self) -> bool:
        """Whether the running task has a claim."""
        return bool(self._until) and self._until.get(_current_task() or 0, 0.0) > self._now()

    @property
    def others(self) -> int:
        """The number of other tasks that have a claim. Any thread."""
        if not self._until:
            return 0
        task, now = _current_task(), self._now()
        return sum(until > now and one != task for one, until in list(self._until.items()))


def _current_task() -> int | None:
    try:
        return anyio.get_current_task().id
    except RuntimeError:  # a callback of the loop, or a thread
        return None


class Handover(Generic[T]):
    """The free objects of one pool, and how they reach its waiters."""

    def __init__(
        self, waiters: Waiters[T], depot: Depot[T], reserve: Reserve[T], emergency: Emergency[T], clock: Clock
    ) -> None:
        self._waiters = waiters
        self._depot = depot
        self._reserve = reserve
        self._emergency = emergency
        self._clock = clock
        self.claims: Claims[T] = Claims(reserve, self.now, BESIDE)
        self.beside: float = BESIDE
        """Seconds for which running callers may pass the first in line."""
        self.busy: bool = False
        """The line is being changed: a finaliser that runs meanwhile must leave it alone."""
        self.given: int = 0
        """Objects given to waiters that have not resumed yet."""
        self.note()

    # -- free objects

    def at_hand(self, level: int) -> int:
        """Return the number of free objects that a caller of ``level`` may take. Any thread."""
        depot = self._depot
        found = len(depot.magazine) + len(depot.lingering) + (depot.slabs.free if depot.slabs.partial else 0)
        if self._reserve:
            found += self._reserve.at_hand(level)
        if self._emergency.spares or self._emergency.lingering:
            found += self._emergency.at_hand(level)
        return found

    def collect(self, need: int, level: int) -> list[Slot[T]] | None:
        """Take ``need`` free objects for a caller of ``level``; None, and nothing taken, if there are fewer."""
        if need > 1 and self.at_hand(level) < need:
            return None
        depot = self._depot
        slots: list[Slot[T]] = []
        for _ in range(need):
            slot = depot.take() if depot.magazine or depot.slabs.partial else None
            slot = slot or self._take_other(level)
            if slot is None:  # another thread was quicker
                self.put_back(slots)
                return None
            slots.append(slot)
        return slots

    def _take_other(self, level: int) -> Slot[T] | None:
        depot, emergency = self._depot, self._emergency
        slot: Slot[T] | None = self._reserve.take(level) if self._reserve else None
        if slot is None and (emergency.spares or emergency.lingering):
            slot = emergency.take(level)
        return depot.lingering.take() if slot is None and depot.lingering else slot

    def put_back(self, slots: list[Slot[T]], *, keep: bool = True) -> None:
        """Return collected objects that are not handed out; with ``keep``, emergency objects become spares."""
        for slot in slots:
            if slot.slab is None:
                self._emergency.free(cast("EmergencySlot[T]", slot), keep=keep)
            else:
                self._depot.put(slot)

    # -- the line

    def serve(self) -> bool:
        """Hand out free objects in order until objects or waiters run out. Returns whether any were handed out.

        The order is MEMALLOC callers, the objects kept for them, PUSHPAGE callers, the reserve, SLEEP callers.
        Must not be called while `busy`.
        """
        waiters, reserve = self._waiters, self._reserve
        self.busy, served = True, False
        try:
            while True:
                waiter = waiters.first
                level = ORDINARY if waiter is None else waiter.level or self.standing(waiter)
                if reserve.objects and reserve.comes_before(level):
                    slot = self._depot.take()
                    if slot is None:
                        break
                    reserve.append(slot)
                elif (
                    waiter is None
                    or waiter.error is not None
                    or (slots := self.collect(waiter.need, level)) is None
                ):
                    break  # also at one with an error: it leaves, and serves the line again
                else:
                    waiters.leave(waiter)
                    self.given += waiter.need
                    waiter.give(slots)
                served = True
        finally:
            self.busy = False
            if served:
                self.note()
        if self._emergency.spares and self._emergency.wanted:
            self._emergency.clear()  # no use to the first in line, and they take up room that refused waiters need
        first = self._waiters.first
        if first is not None:
            if first.seen is not None and self.at_hand(self.standing(first)) > first.seen:
                first.wake()  # it lacks fewer objects than when it asked for emergency objects
            if first.level == FINISHES and self.at_hand(FINISHES) >= first.need:
                first.beside = self.now() if first.beside is None else first.beside
                first.wake()  # to set its timer: it looks again once it has stood there long enough
        return served

    def tell(self) -> bool:
        """Tell the first in line of a free, if running callers may pass it; False if the free must be handed out.

        Once told, and until it has run, it need not hear of further frees: they are not watched for.
        """
        first = self._waiters.first
        if self.busy or (self._reserve.objects and self._reserve.short):
            return False
        if first is None or not first.idle or first.need > 1 or first.level == FINISHES:
            return False
        if first.beside is None:
            first.beside = self.now()
        elif self.has_stood(first):
            return False
        first.tell()
        magazine = self._depot.magazine
        magazine.watch = magazine.watch & ~(WAITERS | KEPT) or False
        return True

    def note(self) -> None:
        """Update the bits that frees and allocations look at, after a change to the line or the reserve."""
        first, reserve, magazine = self._waiters.first, self._reserve, self._depot.magazine
        short = len(reserve) < reserve.objects
        if first is not None and (short or not self._passed_by_anybody(first)):
            magazine.divert(WAITERS)
        elif magazine.detour:
            magazine.let_pop(WAITERS)
        bits = WAITERS * (first is not None) | KEPT * (reserve.kept > 0) | RESERVE * short
        # In one statement, so that no finaliser and no other thread comes between the read and the write.
        magazine.watch = magazine.watch & ~(WAITERS | KEPT | RESERVE) | bits or False
        if not short and len(reserve) < reserve.objects:  # another thread took one meanwhile
            magazine.watch_for(RESERVE)

    def empty_reserve(self) -> None:
        """Put the reserve back into its slabs; `serve` refills it from the fullest."""
        while (slot := self._reserve.take()) is not None:
            self._depot.put(slot)
        self.note()

    # -- passing the line

    def take_running(self, level: int) -> Slot[T] | None:
        """Take a free object for a running caller of ``level`` if it may pass the line; else None."""
        depot, emergency = self._depot, self._emergency
        if not (depot.magazine or depot.slabs.partial or self._reserve or emergency.spares or emergency.lingering):
            return None
        first = self._waiters.first
        if first is None or (level == FINISHES and self.claims.mine) or self._may_pass(first, level):
            slot = depot.take()
            if slot is None and (slot := self.take_set_aside(level)) is not None:
                self.note()  # from now on frees refill the reserve, so they must be watched for
            return slot
        return None

    def take_set_aside(self, level: int) -> Slot[T] | None:
        """Take an object from the reserve or the emergency objects for a running caller. Any thread."""
        reserve, emergency = self._reserve, self._emergency
        if not (reserve or emergency.spares or emergency.lingering):
            return None
        if level == FINISHES and len(reserve) + len(emergency.spares) <= self.claims.others:
            return None
        slot = reserve.take(level)
        if slot is None:
            return emergency.take(level)
        self._depot.magazine.watch_for(RESERVE)  # from now on frees refill the reserve
        return slot

    def standing(self, waiter: Waiter[T]) -> int:
        """Return the level at which a waiter is served now: at first URGENT, for one that waits with MEMALLOC.

        So running MEMALLOC callers get the kept objects before those in line. A caller that finishes a write gives
        back two objects, and may need one of them at once to start the next write. If both were handed to others,
        nobody might be left to give any back.
        """
        runs_first = waiter.level == FINISHES and waiter.need == 1 and not self.has_stood(waiter)
        return URGENT if runs_first else waiter.level

    def has_stood(self, waiter: Waiter[T]) -> bool:
        """Whether a waiter has stood beside free objects for `beside` seconds."""
        return waiter.beside is not None and self.now() >= waiter.beside + self.beside

    def kept_from(self, waiter: Waiter[T]) -> float:
        """Return when a waiter may take the objects kept for MEMALLOC, and must look again; infinity if never."""
        if waiter.level > FINISHES or waiter.beside is None or self.at_hand(FINISHES) < waiter.need:
            return math.inf
        return waiter.beside + self.beside

    def now(self) -> float:
        """Return the loop's time; infinity once the loop is closed."""
        try:
            return self._clock()
        except RuntimeError:  # the loop is closed, and no waiter will run
            return math.inf

    def _may_pass(self, first: Waiter[T], level: int) -> bool:
        if (self._reserve.objects and self._reserve.comes_before(level)) or first.level < level:
            return False
        return first.level > level or (first.need == 1 and not self.has_stood(first))

    def _passed_by_anybody(self, first: Waiter[T]) -> bool:
        return first.level == ORDINARY and first.need == 1 and not self.has_stood(first)

    def check(self) -> None:
        """Check what is always true between calls.

        :raises AssertionError: naming what does not hold
        """
        first, magazine, reserve = self._waiters.first, self._depot.magazine, self._reserve
        if first is None or not first.resumes:
            magazine.check(WAITERS, first is not None)
            magazine.check(KEPT, reserve.kept > 0)
        magazine.check(RESERVE, len(reserve) < reserve.objects)
        if first is None:
            magazine.check(WAITERS, holds=False, detour=True)
        assert not self.busy, "the line is being changed"
