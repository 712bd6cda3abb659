"""Who gets what comes free: the line, in order, and callers that run, which may pass it for a moment.

Always true, between calls:

    what is set aside is refilled before anybody less urgent gets anything (_reserve.py)
    nobody in line could be served with what is free, unless callers that run may pass it just now
    frees are watched for (WAITERS, KEPT, RESERVE), and allocations diverted, for as long as that needs

What comes free is not handed over at once. The first in line is told, and has it as soon as it runs, with all
that is free by then; a caller that runs before it, and is as urgent, may take it. So a caller that frees and
allocates again is served as fast as if nobody waited, where each hand-over costs two turns of the event loop. But
once the first in line has stood `BESIDE` seconds beside what came free, the next that does is handed over. (The
locks of WebKit and of Rust's parking_lot do the same.) A caller that finishes work with what it waits for is never
passed, nor one that needs several; but for a task that has just given an object back (`Claims`).

A caller that needs several waits as one: free objects gather until there are enough for the first in line, and
nobody takes some of them and waits for the rest. So no two can lock each other out.

Event loop's thread only, but for `take_set_aside` and `at_hand`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import anyio

from .._fastpath import KEPT, RESERVE, WAITERS, Slot
from .._flags import FINISHES, ORDINARY, URGENT
from ._clock import Clock
from ._depot import Depot
from ._emergency import Emergency, EmergencySlot
from ._reserve import Reserve
from ._waiters import Waiter, Waiters

T = TypeVar("T")

BESIDE = 0.001
"""Seconds for which others may pass the first in line, from when something came free."""


class Claims(Generic[T]):
    """Who has just given an object back, and so comes first for what is kept for MEMALLOC callers.

    A task that finishes work gives back what the work held, and may at once need one object to go on with the
    next. It must find it: others that finish, and have run or waited meanwhile, may depend on that very task, as
    all writes of ZFS do on the one that ends them. So for a moment one of the kept objects is its own. With one
    object kept, it belongs to the task that gave back last.

    :param lasts: how many seconds a claim lasts
    """

    def __init__(self, reserve: Reserve[T], now: Callable[[], float], lasts: float) -> None:
        self._reserve = reserve
        self._now = now
        self._lasts = lasts
        self._until: dict[int, float] = {}  # by task, the oldest first

    def note(self) -> None:
        """The task that runs gives an object back."""
        task = _current_task() if self._reserve.kept else None
        if task is not None:
            self._until.pop(task, None)
            self._until[task] = self._now() + self._lasts
            while len(self._until) > self._reserve.kept:
                del self._until[next(iter(self._until))]

    @property
    def mine(self) -> bool:
        """Whether the task that runs has one."""
        return bool(self._until) and self._until.get(_current_task() or 0, 0.0) > self._now()

    @property
    def others(self) -> int:
        """How many other tasks have one. Any thread."""
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
    """What is free in one pool, and how it reaches those that wait."""

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
        """Seconds for which callers that run may pass the first in line."""
        self.busy: bool = False
        """The line is being changed: a finaliser that comes in between must leave it alone."""
        self.given: int = 0
        """Objects given to waiters that have not resumed yet."""
        self.note()

    # -- what there is

    def at_hand(self, level: int) -> int:
        """How many free objects there are for such a caller."""
        depot = self._depot
        found = len(depot.magazine) + len(depot.lingering) + (depot.slabs.free if depot.slabs.partial else 0)
        if self._reserve:
            found += self._reserve.at_hand(level)
        if self._emergency.spares or self._emergency.lingering:
            found += self._emergency.at_hand(level)
        return found

    def collect(self, need: int, level: int) -> list[Slot[T]] | None:
        """So many free objects, or none."""
        if need > 1 and self.at_hand(level) < need:
            return None
        slots: list[Slot[T]] = []
        for _ in range(need):
            slot = self._take(level)
            if slot is None:  # another thread was quicker
                self.put_back(slots)
                return None
            slots.append(slot)
        return slots

    def _take(self, level: int) -> Slot[T] | None:
        depot, emergency = self._depot, self._emergency
        slot: Slot[T] | None = None
        if depot.magazine or depot.slabs.partial:
            slot = depot.take()
        if slot is None and self._reserve:
            slot = self._reserve.take(level)
        if slot is None and (emergency.spares or emergency.lingering):
            slot = emergency.take(level)
        return depot.lingering.take() if slot is None and depot.lingering else slot

    def put_back(self, slots: list[Slot[T]], *, keep: bool = True) -> None:
        """What was collected in vain; emergency objects stay for the next caller, or go."""
        for slot in slots:
            if slot.slab is None:
                self._emergency.free(cast("EmergencySlot[T]", slot), keep=keep)
            else:
                self._depot.put(slot)

    # -- the line

    def serve(self) -> bool:
        """Hand free objects out, in order, until they or those that want them run out. Whether any went.

        MEMALLOC callers come first, then what is kept for such, PUSHPAGE callers, the reserve, the others. Must
        not be called while `busy`.
        """
        self.busy, served = True, False
        try:
            while self._serve_next():
                served = True
        finally:
            self.busy = False
            if served:
                self.note()
        if self._emergency.spares and self._emergency.wanted:
            self._emergency.clear()  # of no use to the first in line, and in the way of others
        first = self._waiters.first
        if first is not None:
            if first.seen is not None and self.at_hand(self.standing(first)) > first.seen:
                first.wake()  # less is missing than when it asked for it
            if first.level == FINISHES and self.at_hand(FINISHES) >= first.need:
                first.beside = self.now() if first.beside is None else first.beside
                first.wake()  # to look again when it has stood there for long enough
        return served

    def _serve_next(self) -> bool:
        waiter = self._waiters.first
        level = ORDINARY if waiter is None else self.standing(waiter)
        if self._reserve.objects and self._reserve.comes_before(level):
            slot = self._depot.take()
            if slot is not None:
                self._reserve.append(slot)
            return slot is not None
        if waiter is None:
            return False
        slots = self.collect(waiter.need, level)
        if slots is None:
            return False
        self._waiters.leave(waiter)
        self.given += len(slots)
        waiter.give(slots)
        return True

    def tell(self) -> bool:
        """Something came free: whether others may have it before the first in line runs, who is told.

        Until it has run, nobody need hear of other frees.
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
        """The line has changed, or what is set aside: what frees and allocations look at."""
        first, reserve, magazine = self._waiters.first, self._reserve, self._depot.magazine
        short = len(reserve) < reserve.objects
        if first is not None and (short or not self._passed_by_anybody(first)):
            magazine.divert(WAITERS)
        elif magazine.detour:
            magazine.let_pop(WAITERS)
        bits = WAITERS * (first is not None) | KEPT * (reserve.kept > 0) | RESERVE * short
        # In one statement: no finaliser, and no other thread, comes between reading the others and writing them.
        magazine.watch = magazine.watch & ~(WAITERS | KEPT | RESERVE) | bits or False
        if not short and len(reserve) < reserve.objects:  # another thread took one meanwhile
            magazine.watch_for(RESERVE)

    def empty_reserve(self) -> None:
        """Put what is set aside back into its slabs: `serve` sets it aside again, in the fullest."""
        while (slot := self._reserve.take()) is not None:
            self._depot.put(slot)
        self.note()

    # -- passing the line

    def take_running(self, level: int) -> Slot[T] | None:
        """A free object for a caller that runs now, past those that wait, if it may."""
        first = self._waiters.first
        if first is None or (level == FINISHES and self.claims.mine) or self._may_pass(first, level):
            slot = self._depot.take()
            if slot is None and (slot := self.take_set_aside(level)) is not None:
                self.note()  # from now on frees refill it, and must be heard of
            return slot
        return None

    def take_set_aside(self, level: int) -> Slot[T] | None:
        """One that is set aside or spare, for such a caller that runs now. Any thread."""
        reserve, emergency = self._reserve, self._emergency
        if not (reserve or emergency.spares or emergency.lingering):
            return None
        if level == FINISHES and len(reserve) + len(emergency.spares) <= self.claims.others:
            return None
        slot = reserve.take(level)
        if slot is None:
            return emergency.take(level)
        self._depot.magazine.watch_for(RESERVE)  # from now on frees refill it
        return slot

    def standing(self, waiter: Waiter[T]) -> int:
        """Its level, but for what is kept for MEMALLOC callers: those that run have that before those in line.

        A caller that finishes a write with an object gives back two, and may need one of these at once to start
        the next write. Were both handed to others, nobody might be left to give any back.
        """
        runs_first = waiter.level == FINISHES and waiter.need == 1 and not self.has_stood(waiter)
        return URGENT if runs_first else waiter.level

    def has_stood(self, waiter: Waiter[T]) -> bool:
        """Whether it has stood beside what came free for long enough."""
        return waiter.beside is not None and self.now() >= waiter.beside + self.beside

    def kept_from(self, waiter: Waiter[T]) -> float:
        """When it may have what is kept for MEMALLOC callers, and must look again; infinite if never."""
        if waiter.level > FINISHES or waiter.beside is None or self.at_hand(FINISHES) < waiter.need:
            return math.inf
        return waiter.beside + self.beside

    def now(self) -> float:
        """The loop's time."""
        try:
            return self._clock()
        except RuntimeError:  # the loop is closed: whatever comes free now, nobody runs
            return math.inf

    def _may_pass(self, first: Waiter[T], level: int) -> bool:
        if (self._reserve.objects and self._reserve.comes_before(level)) or first.level < level:
            return False
        return first.level > level or (first.need == 1 and not self.has_stood(first))

    def _passed_by_anybody(self, first: Waiter[T]) -> bool:
        return first.level == ORDINARY and first.need == 1 and not self.has_stood(first)

    def check(self) -> None:
        """Assert what is always true between calls.

        :raises AssertionError: naming what is not
        """
        first, magazine, reserve = self._waiters.first, self._depot.magazine, self._reserve
        if first is None or not first.told:
            magazine.check(WAITERS, first is not None)
            magazine.check(KEPT, reserve.kept > 0)
        magazine.check(RESERVE, len(reserve) < reserve.objects)
        if first is None:
            magazine.check(WAITERS, holds=False, detour=True)
        assert not self.busy, "the line is being changed"
