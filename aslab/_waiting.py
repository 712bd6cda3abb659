"""Waiting for objects, and the four ways out of it.

    a free, or a grow that ends    what the first in line needs is handed over, all at once
    growth is late                 emergency objects, if the cache may make them
    an error                       the cache was closed, or a backend broke its contract
    cancellation                   what was handed over meanwhile goes to the next

A caller at the limit of its cache waits for a free alone, with no timer: its time starts when growth
does. A caller that tries an emergency object stays in line, and takes what comes first; if the attempt
fails it tries again after a pause that doubles; one refused by ``max_emergency`` is woken when there
is room. Nobody spins, and nobody is woken for nothing.

Who needs several waits as one: free objects gather until there are enough for the first in line, and nobody takes
some of them and waits for the rest. So no two can lock each other out.

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar, cast

import anyio

from ._depot import Depot
from ._emergency import Emergency, EmergencySlot
from ._errors import twin
from ._flags import KM
from ._growth import PAUSE_FIRST, PAUSE_MOST, Growth
from ._line import Line, Waiter
from ._reserve import Reserve
from ._slab import Slot
from ._state import Mark, Marks
from ._stats import Tally

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
        tickets: Iterator[int],
        grow_timeout: float,
        on_change: Callable[[], None],
        give_back: Callable[[Slot[T]], None],
        ring: Callable[[], None],
    ) -> None:
        self._line = line
        self._refused: Line[T] = Line()  # those of the line who found max_emergency reached
        self._at_limit: dict[Waiter[T], None] = {}  # those of the line who wait for a free alone, in order
        self._marks = marks
        self._depot = depot
        self._reserve = reserve
        self._growth = growth
        self._emergency = emergency
        self._grow_timeout = grow_timeout
        self._on_change = on_change
        self._give_back = give_back
        self._ring = ring
        self._tickets = tickets
        self._busy = False
        self.in_handover: int = 0
        """Objects given to waiters that have not resumed yet, or made for one that needs several."""

    async def wait(self, flags: KM, need: int, tally: Tally) -> list[Slot[T]]:
        """Join the line; leave it with so many objects, whichever way they come first."""
        waiter: Waiter[T] = Waiter(flags, next(self._tickets), need, tally, anyio.current_time())
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
            if waiter.may_try:
                self.let_others_try()

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

    def _serve_next(self) -> bool:
        waiter = self._line.first()
        if self._reserve.short and not (waiter and waiter.urgent):
            slot = self._depot.take()
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
            slot = self._depot.take()
            if slot is None and urgent:
                slot = self._reserve.take()
            if slot is None:  # another thread was quicker
                self._give_all_back(slots)
                return None
            slots.append(slot)
        return slots

    def _at_hand(self, *, urgent: bool) -> int:
        return self._depot.free + (len(self._reserve) if urgent else 0)

    def let_others_try(self) -> None:
        """Wake as many of the refused as max_emergency has room for, in order."""
        room = self._emergency.room
        while (waiter := self._refused.first()) is not None and waiter.need <= room:
            self._refused.leave(waiter)
            waiter.may_try = True
            waiter.wake()
            room -= waiter.need

    def growth_begins(self) -> None:
        """Callers at the limit may hope for growth now: let them wait for it, with a timeout."""
        hopeful, self._at_limit = self._at_limit, {}
        for waiter in hopeful:
            waiter.wake()

    def send_away(self, error: Exception, tally: Tally | None = None) -> None:
        """Tell everybody in line, or the callers of one cache, what is wrong."""
        for waiter in self._line:
            if tally is None or waiter.tally is tally:
                waiter.fail(error)

    async def _stand_in_line(self, waiter: Waiter[T]) -> list[Slot[T]]:
        patience: float | None = None  # when growth becomes late; None while only a free can help
        late = False
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
            if self._growth.at_limit:
                patience, late = None, False
                await self._wait_at_limit(waiter)
                continue
            now = anyio.current_time()
            if patience is None:
                patience = now + self._grow_timeout
            if waiter.need > 1 and not late:  # it may need several slabs, each of which has its time
                patience = max(patience, self._growth.began + self._grow_timeout)
            if now >= patience and not late:
                late = True
                waiter.tally.timeouts += 1
                self._growth.late()
            if (late or Mark.DEADLOCKED in self._marks) and now >= retry_at:
                permitted = self._ask_permission(waiter)
                if permitted:
                    made = await self._try_emergency(waiter, permitted)
                    if made is not None:
                        return made
                    retry_at = anyio.current_time() + pause
                    pause = min(2 * pause, PAUSE_MOST)
                    continue
            until = retry_at if retry_at > now else math.inf
            await self._suspend(waiter, until if late else min(until, patience))

    async def _wait_at_limit(self, waiter: Waiter[T]) -> None:
        if self._growth.sealed and not waiter.sealed:
            waiter.sealed = True
            waiter.tally.sealed += 1
        self._at_limit[waiter] = None
        await self._suspend(waiter, math.inf)
        self._at_limit.pop(waiter, None)

    async def _suspend(self, waiter: Waiter[T], until: float) -> None:
        waiter.tally.waits += not waiter.has_waited
        await waiter.wait(until)

    def _ask_permission(self, waiter: Waiter[T]) -> int:
        """How many emergency objects may be made for it now: all that it still needs, or none."""
        waiter.may_try = False
        missing = waiter.need
        if self._is_first(waiter):  # what is free belongs to the first in line
            missing -= self._at_hand(urgent=waiter.urgent)
        other = self._refused.first()
        after = other is not None and other.rank < waiter.rank
        if missing > 0 and not after and self._emergency.permit(missing):
            return missing
        if waiter.need <= self._emergency.most:  # else its turn never comes, and it would be in others' way
            self._refused.join(waiter)
        return 0

    async def _try_emergency(self, waiter: Waiter[T], missing: int) -> list[Slot[T]] | None:
        """One attempt. What comes meanwhile, in line, is preferred."""
        made: list[Slot[T]] = []
        slots: list[Slot[T]] | None = None
        try:
            while len(made) < missing:
                slot = await waiter.attempt(partial(self._emergency.make, waiter.flags))
                if slot is None:
                    break
                made.append(slot)
                self.in_handover += 1
            if len(made) == missing and waiter.slots is None and waiter.error is None:
                slots = self._collect(waiter.need - missing, urgent=waiter.urgent)
        except MemoryError:
            pass
        finally:
            self.in_handover -= len(made)
            if slots is None:
                for slot in made:
                    self._emergency.free(cast("EmergencySlot[T]", slot))
            self._emergency.forgo(missing - len(made))
            self.let_others_try()
        return None if slots is None else slots + made

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
        self._refused.leave(waiter)
        self._at_limit.pop(waiter, None)
        self._busy = False
        self._on_change()
        self.serve()  # what was too little for this one may be enough for the next
