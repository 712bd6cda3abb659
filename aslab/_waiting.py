"""Waiting for an object, and the four ways out of it.

    a free, or a grow that ends    the object is handed over, in order
    growth is late                 an emergency object, if the cache may make one
    an error                       the cache was closed, or a backend broke its contract
    cancellation                   what was handed over meanwhile goes to the next

A caller at the limit of its cache waits for a free alone, with no timer: its time starts when growth
does. A caller whose emergency attempt fails keeps its place and tries again after a pause that
doubles; one refused by ``max_emergency`` is woken when there is room. Nobody spins, and nobody is
woken for nothing.

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

from ._depot import Depot
from ._emergency import Emergency
from ._flags import KM
from ._growth import PAUSE_FIRST, PAUSE_MOST, Growth
from ._line import Line, Waiter
from ._slab import Slot
from ._state import Mark, Marks

T = TypeVar("T")


class WaitingRoom(Generic[T]):
    """The callers of one cache that wait. ``on_change`` is told how many, ``give_back`` takes a slot back."""

    def __init__(
        self,
        line: Line[T],
        marks: Marks,
        depot: Depot[T],
        growth: Growth[T],
        emergency: Emergency[T],
        *,
        grow_timeout: float,
        on_change: Callable[[int], None],
        give_back: Callable[[Slot[T]], None],
    ) -> None:
        self._line = line
        self._refused: Line[T] = Line()  # those of the line who found max_emergency reached
        self._marks = marks
        self._depot = depot
        self._growth = growth
        self._emergency = emergency
        self._grow_timeout = grow_timeout
        self._on_change = on_change
        self._give_back = give_back
        self.in_handover = 0
        """Objects given to waiters that have not resumed yet."""
        self.waits = 0
        """Callers that had to wait; those that took an emergency object at once did not."""
        self.timeouts = 0

    async def wait(self, flags: KM, ticket: int) -> Slot[T]:
        """Join the line; leave it with an object, whichever way one comes first."""
        waiter: Waiter[T] = Waiter(flags, ticket)
        self._join(waiter)
        try:
            return await self._stand_in_line(waiter)
        except BaseException:
            if waiter.slot is not None:  # it was given an object, and cancelled before it knew
                self.in_handover -= 1
                self._give_back(waiter.slot)
            raise
        finally:
            self._leave(waiter)
            if waiter.may_try:
                self.let_others_try()

    def serve(self) -> None:
        """Hand free objects to waiters, in order, until one or the other runs out."""
        while self._line:
            slot = self._depot.take()
            if slot is None:
                return
            waiter = self._line.pop()
            if waiter is None:  # a finaliser's free has served the last one while we took
                self._give_back(slot)
                return
            self._on_change(len(self._line))
            waiter.slot = slot
            self.in_handover += 1
            waiter.wake()

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

    def close(self, error: Exception) -> None:
        """Send everybody away."""
        for waiter in self._line:
            waiter.error = error
            waiter.wake()

    async def _stand_in_line(self, waiter: Waiter[T]) -> Slot[T]:
        patience: float | None = None  # when growth becomes late; None while only a free can help
        late = False
        retry_at, pause = -math.inf, PAUSE_FIRST
        while True:
            self.serve()
            if waiter.error is not None:
                raise type(waiter.error)(*waiter.error.args) from waiter.error.__cause__
            if waiter.slot is not None:
                self.in_handover -= 1
                slot, waiter.slot = waiter.slot, None
                return slot
            self._growth.ask()
            if self._growth.at_limit:
                patience, late = None, False
                await self._suspend(waiter, math.inf)
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
        if not waiter.has_waited:
            waiter.has_waited = True
            self.waits += 1
        await waiter.wait(until)

    def _may_try(self, waiter: Waiter[T]) -> bool:
        waiter.may_try = False
        permitted = self._emergency.permit()
        if not permitted:
            self._refused.join(waiter)
        return permitted

    async def _try_emergency(self, waiter: Waiter[T]) -> Slot[T] | None:
        """One attempt, out of the line; back to the old place if it fails."""
        self._leave(waiter)
        try:
            return await self._emergency.make()
        except MemoryError:
            self._join(waiter)
            return None
        finally:
            self.let_others_try()

    def _join(self, waiter: Waiter[T]) -> None:
        self._line.join(waiter)
        self._on_change(len(self._line))

    def _leave(self, waiter: Waiter[T]) -> None:
        self._line.leave(waiter)
        self._refused.leave(waiter)
        self._on_change(len(self._line))
