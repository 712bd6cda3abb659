"""Waiting for an object, and the four ways out of it.

    a free, or a grow that ends    the object is handed over, in order
    growth is late                 an emergency object, if the cache may make one
    an error                       the cache was closed, or a backend broke its contract
    cancellation                   what was handed over meanwhile goes to the next

A caller at the limit of its cache waits for a free alone, with no timer: its time starts when growth
does. A caller that tries an emergency object stays in line, and takes what comes first; if the attempt
fails it tries again after a pause that doubles; one refused by ``max_emergency`` is woken when there
is room. Nobody spins, and nobody is woken for nothing.

Event loop's thread only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar, cast

import anyio

from ._depot import Depot
from ._emergency import Emergency, EmergencySlot
from ._errors import twin
from ._flags import KM
from ._growth import PAUSE_FIRST, PAUSE_MOST, Growth
from ._line import Line, Waiter
from ._slab import Slot
from ._state import Mark, Marks

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """The callers of one cache that wait. ``on_change`` is told when their number changes.

    ``give_back`` takes a slot back, ``ring`` makes the event loop call `serve` a little later.
    """

    def __init__(
        self,
        line: Line[T],
        marks: Marks,
        depot: Depot[T],
        growth: Growth[T],
        emergency: Emergency[T],
        *,
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
        self._growth = growth
        self._emergency = emergency
        self._grow_timeout = grow_timeout
        self._on_change = on_change
        self._give_back = give_back
        self._ring = ring
        self._tickets = itertools.count()
        self._busy = False
        self.in_handover: int = 0
        """Objects given to waiters that have not resumed yet."""
        self.waits: int = 0
        """Callers that had to wait; those that took an emergency object at once did not."""
        self.timeouts: int = 0

    async def wait(self, flags: KM) -> Slot[T]:
        """Join the line; leave it with an object, whichever way one comes first."""
        waiter: Waiter[T] = Waiter(flags, next(self._tickets))
        self._enter(waiter)
        try:
            return await self._stand_in_line(waiter)
        except BaseException:
            if waiter.slot is not None:  # it was given an object, and cancelled before it knew
                self.in_handover -= 1
                self._give_back(waiter.slot)
            raise
        finally:
            self._exit(waiter)
            if waiter.may_try:
                self.let_others_try()

    def serve(self) -> None:
        """Hand free objects to waiters, in order, until one or the other runs out."""
        if self._busy:  # we are in a finaliser, run in the middle of what we would change
            self._ring()
            return
        while self._line:
            slot = self._depot.take()
            if slot is None:
                return
            self._busy = True
            waiter = self._line.pop()
            self._busy = False
            self._on_change()
            if waiter is None:  # a finaliser's free has served the last one while we took
                self._give_back(slot)
                return
            self.in_handover += 1
            waiter.give(slot)

    def let_others_try(self) -> None:
        """Wake as many of the refused as max_emergency has room for."""
        room = self._emergency.room
        while room >= 1:
            waiter = self._refused.pop()
            if waiter is None:
                break
            waiter.may_try = True
            waiter.wake()
            room -= 1

    def growth_begins(self) -> None:
        """Callers at the limit may hope for growth now: let them wait for it, with a timeout."""
        hopeful, self._at_limit = self._at_limit, {}
        for waiter in hopeful:
            waiter.wake()

    def send_away(self, error: Exception) -> None:
        """Tell everybody in line what is wrong."""
        for waiter in self._line:
            waiter.fail(error)

    async def _stand_in_line(self, waiter: Waiter[T]) -> Slot[T]:
        patience: float | None = None  # when growth becomes late; None while only a free can help
        late = False
        retry_at, pause = -math.inf, PAUSE_FIRST
        while True:
            self.serve()
            if waiter.slot is not None:
                self.in_handover -= 1
                slot, waiter.slot = waiter.slot, None
                return slot
            if waiter.error is not None:
                raise twin(waiter.error)
            self._growth.ask()
            if self._growth.at_limit:
                patience, late = None, False
                self._at_limit[waiter] = None
                await self._suspend(waiter, math.inf)
                self._at_limit.pop(waiter, None)
                continue
            now = anyio.current_time()
            if patience is None:
                patience = now + self._grow_timeout
            if now >= patience and not late:
                late = True
                self.timeouts += 1
                self._growth.late()
            if (late or Mark.DEADLOCKED in self._marks) and now >= retry_at and self._may_try(waiter):
                made = await self._try_emergency(waiter)
                if made is not None:
                    return made
                retry_at = anyio.current_time() + pause
                pause = min(2 * pause, PAUSE_MOST)
                continue
            until = retry_at if retry_at > now else math.inf
            await self._suspend(waiter, until if late else min(until, patience))

    async def _suspend(self, waiter: Waiter[T], until: float) -> None:
        self.waits += not waiter.has_waited
        await waiter.wait(until)

    def _may_try(self, waiter: Waiter[T]) -> bool:
        waiter.may_try = False
        permitted = self._emergency.permit()
        if not permitted:
            self._refused.join(waiter)
        return permitted

    async def _try_emergency(self, waiter: Waiter[T]) -> Slot[T] | None:
        """One attempt. What comes meanwhile, in line, is preferred."""
        try:
            made = await waiter.attempt(partial(self._emergency.make, waiter.flags))
        except MemoryError:
            return None
        finally:
            self.let_others_try()
        if made is not None and (waiter.slot is not None or waiter.error is not None):
            self._emergency.free(cast("EmergencySlot[T]", made))
            return None
        return made

    def _enter(self, waiter: Waiter[T]) -> None:
        self._busy = True
        self._line.join(waiter)
        self._busy = False
        self._on_change()

    def _exit(self, waiter: Waiter[T]) -> None:
        self._busy = True
        self._line.leave(waiter)
        self._refused.leave(waiter)
        self._at_limit.pop(waiter, None)
        self._busy = False
        self._on_change()
