"""Waiting for objects, and the four ways out of it.

    a free, or a grow that ends    what the first in line needs, all at once
    growth is late                 emergency objects, if the cache may make them, or those freed just now
    an error                       the cache was closed, or a backend broke its contract
    cancellation                   what was handed over meanwhile goes to the next

Late is the backend, never the event loop. A caller at the limit of its cache, or whose slab has arrived and is
being made, waits with no timer: its time starts when growth does, anew with each slab (as in SPL). And when it is
up the loop gets some turns first: what a thread has brought while the loop was busy is delivered by then.

A caller that tries an emergency object stays in line, and takes what comes first; one refused by
``max_emergency`` or ``emergency_limit`` is woken when there is room, and it is permitted then. Nobody spins.

What comes free is not handed over at once: others may pass the first in line, for a moment (_passing.py).

Who needs several waits as one: free objects gather until there are enough for the first in line, and nobody takes
some of them and waits for the rest. So no two can lock each other out.

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

import anyio

from .._errors import twin
from .._flags import FINISHES, KM, ORDINARY
from .._stats import Tally
from ._attempts import Attempts
from ._clock import Clock
from ._depot import Depot
from ._emergency import Emergency
from ._growth import Growth
from ._lateness import Lateness
from ._passing import Passing
from ._permits import Permits
from ._reserve import Reserve
from ._slab import Slot
from ._state import Mark, Marks
from ._waiters import Line, Waiter

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """The callers of one pool that wait. ``on_change`` is told when their number changes.

    ``give_back`` takes a slot back, ``ring`` makes the event loop call `serve` a little later.
    """

    def __init__(
        self,
        line: Line[T],
        marks: Marks,
        depot: Depot[T],
        reserve: Reserve[T],
        growth: Growth[T],
        emergency: Emergency[T],
        *,
        permits: Permits,
        clock: Clock,
        make_event: Callable[[], anyio.Event],
        tickets: Iterator[int],
        on_change: Callable[[], None],
        on_passed: Callable[[], None],
        give_back: Callable[[Slot[T]], None],
        ring: Callable[[], None],
        start: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
    ) -> None:
        self._line = line
        self._refused: Line[T] = Line()  # those of the line who found max_emergency reached
        self._untimed: dict[Waiter[T], None] = {}  # those of the line whose time does not run, in order
        self._marks = marks
        self._depot = depot
        self._reserve = reserve
        self._growth = growth
        self._emergency = emergency
        self._permits = permits
        self._clock = clock
        self._make_event = make_event
        self._on_change = on_change
        self._on_passed = on_passed
        self._give_back = give_back
        self._ring = ring
        self._tickets = tickets
        self._busy = False
        self._lateness: Lateness[T] = Lateness(growth, clock)
        self._attempts: Attempts[T] = Attempts(emergency, clock, start=start, give_back=give_back, look=self._look)
        self.passing: Passing[T] = Passing(line, depot, reserve, emergency, clock, on_change)
        self._patience = growth.patience.of(ORDINARY)  # when growth began last
        self._given = 0  # objects, to waiters that have not resumed yet

    @property
    def in_handover(self) -> int:
        """Objects given to waiters that have not resumed yet, or made for one that needs several."""
        return self._given + self._attempts.in_hand

    async def wait(self, flags: KM, need: int, tally: Tally) -> list[Slot[T]]:
        """Join the line; leave it with so many objects, whichever way they come first."""
        waiter: Waiter[T] = Waiter(flags, next(self._tickets), need, tally, self._clock())
        waiter.make_event = self._make_event
        self._enter(waiter)
        try:
            return await self._stand_in_line(waiter)
        except BaseException:
            if waiter.slots is not None:  # it was given them, and cancelled before it knew
                self._given -= need
                for slot in waiter.slots:
                    self._give_back(slot)
            raise
        finally:
            self._exit(waiter)
            self._withdraw(waiter)

    def serve(self) -> None:
        """Hand free objects out, in order, until they or those who want them run out.

        MEMALLOC callers come first, then what is kept for such, PUSHPAGE callers, the reserve, the others.
        """
        if self._busy:  # we are in a finaliser, run in the middle of what we would change
            self._ring()
            return
        self._busy, changed = True, False
        try:
            while self._serve_next():
                changed = True
        finally:
            self._busy = False
            if changed:
                self._on_change()
        if self._emergency.spare and (self._refused or self._permits.refused):
            self._emergency.clear()  # of no use to the first in line, and in the way of others
        first = self._line.first
        if first is None:
            return
        if first.seen is not None and self._at_hand(self.passing.standing(first)) > first.seen:
            first.wake()  # less is missing than when it asked for it
        if first.level == FINISHES and self._at_hand(FINISHES) >= first.need:
            first.beside = self.passing.now() if first.beside is None else first.beside
            first.wake()  # to look again when it has stood there for long enough

    def tell(self) -> bool:
        """Something came free: whether others may have it before the first in line runs, who is told."""
        return not self._busy and self.passing.tell()

    def _serve_next(self) -> bool:
        waiter = self._line.first
        level = ORDINARY if waiter is None else self.passing.standing(waiter)
        if self._reserve.comes_before(level):
            slot = self._depot.take(lingering=False)
            if slot is not None:
                self._reserve.put(slot)
            return slot is not None
        if waiter is None:
            return False
        slots = self._collect(waiter.need, level)
        if slots is None:
            return False
        self._line.leave(waiter)
        self._given += len(slots)
        waiter.give(slots)
        return True

    def _collect(self, need: int, level: int) -> list[Slot[T]] | None:
        """So many free objects, or none."""
        if need > 1 and self._at_hand(level) < need:
            return None
        slots: list[Slot[T]] = []
        for _ in range(need):
            slot = self._depot.take(lingering=False) or self._reserve.take(level)
            slot = slot or self._emergency.take(level) or self._depot.lingering.take()
            if slot is None:
                for taken in slots:  # another thread was quicker
                    self._give_back(taken)
                return None
            slots.append(slot)
        return slots

    def _at_hand(self, level: int) -> int:
        return self._depot.free + self._reserve.at_hand(level) + self._emergency.at_hand(level)

    def let_others_try(self) -> None:
        """There may be room for emergency objects: permit them to those who were refused, in order."""
        while (waiter := self._refused.first) is not None:
            if self.hopeless(waiter):
                waiter.wake()  # its turn never comes, and others' would not
            elif not self.grant(waiter):
                if self.bound_here(waiter):
                    break
                self._permits.refused.join(waiter)  # it is the bound over all caches now
            self._refused.leave(waiter)
        self._permits.grant()

    def growth_begins(self) -> None:
        """Callers whose time does not run may hope for growth now: let them wait for it, with a timeout."""
        hopeful, self._untimed = self._untimed, {}
        patience, before = self._growth.patience.of(ORDINARY), self._patience
        self._patience = patience
        for waiter in hopeful if patience >= before else list(self._line):  # it has learned to wait no longer
            waiter.wake()

    def send_away(self, error: Exception, tally: Tally | None = None) -> None:
        """Tell everybody in line, or the callers of one cache, what is wrong."""
        for waiter in self._line:
            if tally is None or waiter.tally is tally:
                waiter.fail(error)

    async def _stand_in_line(self, waiter: Waiter[T]) -> list[Slot[T]]:
        since: float | None = None  # when its time began to run; None while only a free can help
        late_from: float | None = None  # when the growth was asked for that it has found late
        slept_until = math.inf
        while True:
            if self._line.first is waiter:  # who was told of what is free; nobody else need look
                self._look(waiter)
            if waiter.slots is not None:
                self._given -= waiter.need
                slots, waiter.slots = waiter.slots, None
                if self._reserve.short:
                    self._growth.ask()
                return slots
            if waiter.error is not None:
                raise twin(waiter.error)
            self._growth.ask()
            at_limit = self._growth.at_limit
            if at_limit or self._growth.arrived:
                since = None
                self._hope(waiter, at_limit=at_limit)
                await self._stand(waiter, math.inf)
                self._untimed.pop(waiter, None)
                continue
            now = self._clock()
            since = now if since is None else since
            patience = max(since, self._growth.due_from) + self._growth.patience.of(waiter.level)
            late = late_from == self._growth.due_from
            if now >= patience and not late:
                if await self._lateness.found(waiter, now - slept_until):
                    late_from = self._growth.due_from
                    waiter.tally.timeouts += 1
                    self._growth.late()
                continue
            until = math.inf if late else patience
            if not late and Mark.DEADLOCKED not in self._marks:
                self._withdraw(waiter)
            elif waiter.permitted or self._attempts.allowed(waiter.level, first=self._line.first is waiter):
                permitted = self._ask_permission(waiter)
                if permitted:
                    made = await self._try_emergency(waiter, permitted)
                    if made is not None:
                        return made
                    continue
            elif self._line.first is waiter:
                until = min(until, self._attempts.retry_at(waiter.level))
            slept_until = until
            await self._stand(waiter, until)

    def _look(self, waiter: Waiter[T]) -> float:
        """Serve the line; when it has to look again for what is kept, if it may have that then."""
        if waiter.beside is not None:  # passed by: to be told again, or handed over to
            self._on_passed()
        self.serve()
        return self._kept_from(waiter)

    def _kept_from(self, waiter: Waiter[T]) -> float:
        if waiter.level > FINISHES or waiter.beside is None or self._at_hand(FINISHES) < waiter.need:
            return math.inf
        return waiter.beside + self.passing.beside

    async def _stand(self, waiter: Waiter[T], until: float) -> None:
        """Suspend with nothing under way: others may pass."""
        waiter.idle = True
        until = min(until, self._kept_from(waiter))
        while True:
            await waiter.suspend(until)
            if waiter.beside is not None:  # before it looks: whoever frees from now on tells it
                self._on_passed()
            if not waiter.told or self._at_hand(self.passing.standing(waiter)):
                break
        waiter.idle = False

    def _hope(self, waiter: Waiter[T], *, at_limit: bool) -> None:
        """Before it suspends without a timer."""
        self._withdraw(waiter)
        if at_limit:
            self._growth.note_limit()
            if self._growth.sealed and not waiter.sealed:
                waiter.sealed = True
                waiter.tally.sealed += 1
        self._untimed[waiter] = None

    def _ask_permission(self, waiter: Waiter[T]) -> int:
        """How many emergency objects may be made for it now: all that it still needs, or none."""
        missing = self._missing(waiter)
        waiter.seen = waiter.need - missing if waiter.need > 1 else None
        granted, waiter.permitted = waiter.permitted, 0
        if granted >= missing > 0:
            self._emergency.forgo(granted - missing)
            return missing
        self._emergency.forgo(granted)  # by now it misses nothing, or more than it was permitted
        line = next((line for line in (self._refused, self._permits.refused) if line.overtaken_by(waiter)), None)
        if missing > 0 and line is None and self._emergency.permit(missing, waiter.level):
            return missing
        # Whose turn never comes would be in others' way.
        if self._emergency.possible(missing, waiter.level):
            waiter.refused_by = self
            own = self._emergency.full(missing, waiter.level)
            (line or (self._refused if own else self._permits.refused)).join(waiter)
            if not own:
                self._permits.clear_spares()
        return 0

    def _missing(self, waiter: Waiter[T]) -> int:
        """How many objects it needs besides those that are free for it: these belong to the first in line."""
        at_hand = self._at_hand(self.passing.standing(waiter)) if self._line.first is waiter else 0
        return max(0, waiter.need - at_hand)

    def grant(self, waiter: Waiter[T]) -> bool:
        """Permit the emergency objects that it still needs, and wake it; False if there is no room."""
        if not self._growth.unwell:  # it has something else to wait for: let it see
            waiter.wake()
            return True
        missing = self._missing(waiter)
        if not self._emergency.permit(missing, waiter.level):
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

    def _withdraw(self, waiter: Waiter[T]) -> None:
        """It makes no emergency objects now: its permits and its place among the refused are for others."""
        permitted, waiter.permitted, waiter.seen = waiter.permitted, 0, None
        if waiter.refused_by is not None:
            waiter.refused_by = None
            self._refused.leave(waiter)
            self._permits.refused.leave(waiter)
            self.let_others_try()
        if permitted:
            self._emergency.forgo(permitted)

    async def _try_emergency(self, waiter: Waiter[T], permitted: int) -> list[Slot[T]] | None:
        """One attempt. What comes meanwhile, in line, is preferred."""
        made = await self._attempts.make(waiter, permitted)
        slots: list[Slot[T]] | None = None
        if len(made) == permitted and not waiter.served:
            slots = self._collect(waiter.need - permitted, self.passing.standing(waiter))
        if slots is None:
            self._attempts.put_back(made)
            return None
        self._attempts.in_hand -= len(made)
        return slots + made

    def _enter(self, waiter: Waiter[T]) -> None:
        waiter.tally.waiters += 1
        self._busy = True
        self._line.join(waiter)
        self._busy = False
        if self._line.first is waiter:  # who stands behind others changes nothing for anybody
            self._on_change()

    def _exit(self, waiter: Waiter[T]) -> None:
        waiter.tally.waiters -= 1
        self._busy = True
        stood = self._line.leave(waiter)
        self._untimed.pop(waiter, None)
        self._lateness.leave(waiter)
        self._busy = False
        if stood:  # else it left when it was served
            self._on_change()
            self.serve()  # what was too little for this one may be enough for the next
        first = self._line.first
        if first is not None and (self._attempts.failing or self._growth.unwell):
            first.wake()  # it may be its turn to have an emergency object made
