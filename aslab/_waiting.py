"""Waiting for objects, and the four ways out of it.

    a free, or a grow that ends    what the first in line needs is handed over, all at once
    growth is late                 emergency objects, if the cache may make them, or those freed just now
    an error                       the cache was closed, or a backend broke its contract
    cancellation                   what was handed over meanwhile goes to the next

Late is the backend, never the event loop. A caller at the limit of its cache, or whose slab has arrived and is
being made, waits with no timer: its time starts when growth does, anew with each slab (as in SPL). And when it is
up the loop gets some turns first: what a thread has brought while the loop was busy is delivered by then.

A caller that tries an emergency object stays in line, and takes what comes first; if the attempt fails it tries
again after a pause that doubles; one refused by ``max_emergency`` or ``emergency_limit`` is woken when there is
room, and it is permitted then. Nobody spins, and nobody is woken for nothing.

Who needs several waits as one: free objects gather until there are enough for the first in line, and nobody takes
some of them and waits for the rest. So no two can lock each other out.

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from ._clients import keep_interrupt
from ._clock import Clock
from ._depot import Depot
from ._emergency import Emergency
from ._errors import BackendError, twin
from ._flags import KM
from ._growth import PAUSE_FIRST, PAUSE_MOST, Growth
from ._lateness import Lateness
from ._line import Line, Waiter
from ._permits import Permits
from ._reserve import Reserve
from ._slab import Slot
from ._state import Mark, Marks
from ._stats import Tally

T = TypeVar("T")


class Attempt(Generic[T]):
    """An emergency object in the making, for a waiter that may go away."""

    def __init__(self) -> None:
        self.wanted: bool = True
        self.over: bool = False
        self.slot: Slot[T] | None = None
        self.error: BaseException | None = None


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
        tickets: Iterator[int],
        grow_timeout: float,
        on_change: Callable[[], None],
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
        self._grow_timeout = grow_timeout
        self._on_change = on_change
        self._give_back = give_back
        self._ring = ring
        self._start = start
        self._tickets = tickets
        self._busy = False
        self._lateness: Lateness[T] = Lateness(growth, clock)
        self.in_handover: int = 0
        """Objects given to waiters that have not resumed yet, or made for one that needs several."""

    async def wait(self, flags: KM, need: int, tally: Tally) -> list[Slot[T]]:
        """Join the line; leave it with so many objects, whichever way they come first."""
        waiter: Waiter[T] = Waiter(flags, next(self._tickets), need, tally, self._clock())
        self._enter(waiter)
        try:
            return await self._stand_in_line(waiter)
        except BaseException:
            if waiter.slots is not None:  # it was given them, and cancelled before it knew
                self.in_handover -= need
                self._give_all_back(waiter.slots)
            raise
        finally:
            self._exit(waiter)
            self._withdraw(waiter)

    def serve(self) -> None:
        """Hand free objects out, in order, until they or those who want them run out.

        PUSHPAGE callers come first, then the reserve, then the others.
        """
        if self._busy:  # we are in a finaliser, run in the middle of what we would change
            self._ring()
            return
        self._busy, changed = True, False
        try:
            while (self._line or self._reserve.short) and self._serve_next():
                changed = True
        finally:
            self._busy = False
            if changed:
                self._on_change()
        if self._emergency.spare and (self._refused or self._permits.refused):
            self._emergency.clear()  # of no use to the first in line, and in the way of others
        first = self._line.first()
        if first is not None and first.seen is not None and self._at_hand(urgent=first.urgent) > first.seen:
            first.wake()  # less is missing than when it asked for it

    def _serve_next(self) -> bool:
        waiter = self._line.first()
        if self._reserve.short and not (waiter and waiter.urgent):
            slot = self._depot.take(lingering=False)
            if slot is not None:
                self._reserve.put(slot)
            return slot is not None
        if waiter is None:
            return False
        slots = self._collect(waiter.need, urgent=waiter.urgent)
        if slots is None:
            return False
        self._line.leave(waiter)
        self.in_handover += len(slots)
        waiter.give(slots)
        return True

    def _collect(self, need: int, *, urgent: bool) -> list[Slot[T]] | None:
        """So many free objects, or none."""
        if self._at_hand(urgent=urgent) < need:
            return None
        slots: list[Slot[T]] = []
        while len(slots) < need:
            slot = self._depot.take(lingering=False)
            if slot is None and urgent:
                slot = self._reserve.take()
            slot = slot or self._emergency.take(urgent=urgent) or self._depot.lingering.take()
            if slot is None:  # another thread was quicker
                self._give_all_back(slots)
                return None
            slots.append(slot)
        return slots

    def _at_hand(self, *, urgent: bool) -> int:
        reserved = len(self._reserve) if urgent else 0
        return self._depot.free + reserved + self._emergency.at_hand(urgent=urgent)

    def let_others_try(self) -> None:
        """There may be room for emergency objects: permit them to those who were refused, in order."""
        while (waiter := self._refused.first()) is not None:
            if not self.grant(waiter):
                if self.bound_here(waiter):
                    break
                self._permits.refused.join(waiter)  # it is the bound over all caches now
            self._refused.leave(waiter)
        self._permits.grant()

    def growth_begins(self) -> None:
        """Callers whose time does not run may hope for growth now: let them wait for it, with a timeout."""
        hopeful, self._untimed = self._untimed, {}
        for waiter in hopeful:
            waiter.wake()

    def send_away(self, error: Exception, tally: Tally | None = None) -> None:
        """Tell everybody in line, or the callers of one cache, what is wrong."""
        for waiter in self._line:
            if tally is None or waiter.tally is tally:
                waiter.fail(error)

    async def _stand_in_line(self, waiter: Waiter[T]) -> list[Slot[T]]:
        since: float | None = None  # when its time began to run; None while only a free can help
        late_from: float | None = None  # when the growth was asked for that it has found late
        retry_at, pause = -math.inf, PAUSE_FIRST
        while True:
            self.serve()
            if waiter.slots is not None:
                self.in_handover -= waiter.need
                slots, waiter.slots = waiter.slots, None
                if self._reserve.short:
                    self._growth.ask()
                return slots
            if waiter.error is not None:
                raise twin(waiter.error)
            self._growth.ask()
            if self._growth.at_limit or self._growth.arrived:
                since = None
                await self._wait_untimed(waiter)
                continue
            now = self._clock()
            since = now if since is None else since
            patience = max(since, self._growth.due_from) + self._grow_timeout
            late = late_from == self._growth.due_from
            if now >= patience and not late:
                if await self._lateness.found(waiter, now - patience):
                    late_from = self._growth.due_from
                    waiter.tally.timeouts += 1
                    self._growth.late()
                continue
            if not late and Mark.DEADLOCKED not in self._marks:
                self._withdraw(waiter)
            elif waiter.permitted or now >= retry_at:
                permitted = self._ask_permission(waiter)
                if permitted:
                    made = await self._try_emergency(waiter, permitted)
                    if made is not None:
                        return made
                    retry_at = self._clock() + pause
                    pause = min(2 * pause, PAUSE_MOST)
                    continue
            until = retry_at if retry_at > now else math.inf
            await waiter.suspend(until if late else min(until, patience))

    async def _wait_untimed(self, waiter: Waiter[T]) -> None:
        self._withdraw(waiter)
        if self._growth.at_limit:
            self._growth.note_limit()
            if self._growth.sealed and not waiter.sealed:
                waiter.sealed = True
                waiter.tally.sealed += 1
        self._untimed[waiter] = None
        await waiter.suspend(math.inf)
        self._untimed.pop(waiter, None)

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
        if missing > 0 and line is None and self._emergency.permit(missing, urgent=waiter.urgent):
            return missing
        # Whose turn never comes would be in others' way.
        if self._emergency.possible(missing, urgent=waiter.urgent):
            waiter.refused_by = self
            own = self._emergency.full(missing)
            (line or (self._refused if own else self._permits.refused)).join(waiter)
            if not own:
                self._permits.clear_spares()
        return 0

    def _missing(self, waiter: Waiter[T]) -> int:
        """How many objects it needs besides those that are free for it: these belong to the first in line."""
        at_hand = self._at_hand(urgent=waiter.urgent) if self._is_first(waiter) else 0
        return max(0, waiter.need - at_hand)

    def grant(self, waiter: Waiter[T]) -> bool:
        """Permit the emergency objects that it still needs, and wake it; False if there is no room."""
        if not self._growth.unwell:  # it has something else to wait for: let it see
            waiter.wake()
            return True
        missing = self._missing(waiter)
        if not self._emergency.permit(missing, urgent=waiter.urgent):
            return False
        waiter.permitted += missing
        waiter.wake()
        return True

    def bound_here(self, waiter: Waiter[T]) -> bool:
        """Whether it is the bound of the cache that stands against it."""
        return self._emergency.full(self._missing(waiter))

    def _withdraw(self, waiter: Waiter[T]) -> None:
        """It makes no emergency objects now: its permits and its place among the refused are for others."""
        permitted, waiter.permitted, waiter.seen = waiter.permitted, 0, None
        if waiter.refused_by is not None:
            waiter.refused_by = None
            self._refused.leave(waiter)
            self._permits.refused.leave(waiter)
            self.let_others_try()
        self._emergency.forgo(permitted)

    async def _try_emergency(self, waiter: Waiter[T], permitted: int) -> list[Slot[T]] | None:
        """One attempt. What comes meanwhile, in line, is preferred."""
        made: list[Slot[T]] = []
        slots: list[Slot[T]] | None = None
        tried = 0
        try:
            while tried < permitted and not waiter.served:
                tried += 1
                slot = await self._attempt(waiter)
                if slot is None:
                    break
                made.append(slot)
            if len(made) == permitted and not waiter.served:
                slots = self._collect(waiter.need - permitted, urgent=waiter.urgent)
        except MemoryError:
            pass
        finally:
            self.in_handover -= len(made)
            if slots is None:
                self._give_all_back(made)
            self._emergency.forgo(permitted - tried)
        return None if slots is None else slots + made

    async def _attempt(self, waiter: Waiter[T]) -> Slot[T] | None:
        """Suspend until an emergency object is made; None if it is served before.

        A task of the allocator makes it: what a caller who goes away has begun is outstanding until it ends, and
        then somebody else's.
        """
        attempt: Attempt[T] = Attempt()
        self._start(partial(self._make, attempt, waiter))
        try:
            has_waited = waiter.has_waited
            while not (attempt.over or waiter.served):
                await waiter.wait(math.inf)
            waiter.has_waited = has_waited  # in line: this is no wait that counts
        except BaseException:
            attempt.wanted = False
            if attempt.slot is not None:
                self.in_handover -= 1
                self._give_back(attempt.slot)
            raise
        attempt.wanted = False
        if attempt.error is not None:
            raise attempt.error
        return attempt.slot

    async def _make(self, attempt: Attempt[T], waiter: Waiter[T]) -> None:
        try:
            slot = await self._emergency.make(waiter.flags)
        except BaseException as exc:
            attempt.error = exc
            if isinstance(exc, GeneratorExit):
                raise
            if not isinstance(exc, Exception):  # a client's code, which must not end this task; or all is over
                keep_interrupt(exc)
                attempt.error = BackendError(f"making an emergency object was ended by {exc!r}")
        else:
            if attempt.wanted:
                attempt.slot = slot
                self.in_handover += 1
            else:
                self._give_back(slot)
        finally:
            attempt.over = True
            waiter.wake()

    def _is_first(self, waiter: Waiter[T]) -> bool:
        self._busy = True
        first = self._line.first()
        self._busy = False
        return first is waiter

    def _give_all_back(self, slots: list[Slot[T]]) -> None:
        for slot in slots:
            self._give_back(slot)

    def _enter(self, waiter: Waiter[T]) -> None:
        waiter.tally.waiters += 1
        self._busy = True
        self._line.join(waiter)
        self._busy = False
        self._on_change()

    def _exit(self, waiter: Waiter[T]) -> None:
        waiter.tally.waiters -= 1
        self._busy = True
        self._line.leave(waiter)
        self._untimed.pop(waiter, None)
        self._lateness.leave(waiter)
        self._busy = False
        self._on_change()
        self.serve()  # what was too little for this one may be enough for the next
