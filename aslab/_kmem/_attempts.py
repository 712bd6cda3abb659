"""Making emergency objects for callers that wait.

A task of the allocator makes each: what a caller who goes away has begun is outstanding until it ends, and then
somebody else's. Once the backend has none, only the first in line asks, now and then, and one that it gets lets
the next one ask: so the backend is not asked in vain by all who wait, and those whose progress frees memory come
first.

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from .._clients import keep_interrupt
from .._errors import BackendError
from .._flags import ORDINARY
from ._clock import Clock
from ._emergency import Emergency
from ._slab import Slot
from ._waiters import Waiter

T = TypeVar("T")

PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between tries in vain: doubled from the first, a timer tick of 2012, to the most; urgent callers wait no
longer than the first."""


class Attempt(Generic[T]):
    """An emergency object in the making, for a waiter that may go away."""

    def __init__(self) -> None:
        self.wanted: bool = True
        self.over: bool = False
        self.slot: Slot[T] | None = None
        self.error: BaseException | None = None


class Attempts(Generic[T]):
    """What a pool does to have emergency objects made.

    ``start`` starts a task of the allocator, ``give_back`` takes an object that nobody wants any more, ``look``
    serves who waits, and answers when a waiter has to look again.
    """

    def __init__(
        self,
        emergency: Emergency[T],
        clock: Clock,
        *,
        start: Callable[[Callable[[], Coroutine[Any, Any, object]]], None],
        give_back: Callable[[Slot[T]], None],
        look: Callable[[Waiter[T]], float],
    ) -> None:
        self._emergency = emergency
        self._clock = clock
        self._start = start
        self._give_back = give_back
        self._look = look
        self.in_hand: int = 0
        """Objects made for waiters that have not taken them yet."""
        self._pause = 0.0
        self._failed_at = -math.inf

    @property
    def failing(self) -> bool:
        """Whether the backend had none when it was asked last."""
        return self._pause > 0

    def retry_at(self, level: int) -> float:
        """When the backend may be asked again for such a caller."""
        return self._failed_at + (self._pause if level == ORDINARY else min(self._pause, PAUSE_FIRST))

    def allowed(self, level: int, *, first: bool) -> bool:
        """Whether such a caller may have one made now, who may be the first in line."""
        return not self.failing or (first and self._clock() >= self.retry_at(level))

    async def make(self, waiter: Waiter[T], objects: int) -> list[Slot[T]]:
        """So many as were permitted, one after the other; fewer if there are no more, or it is served meanwhile.

        What it does not use it forgoes. If it is cancelled, what was made is given back.
        """
        made: list[Slot[T]] = []
        tried = 0
        try:
            while tried < objects and not waiter.served:
                tried += 1
                slot = await self._one(waiter)
                if slot is None:
                    break
                made.append(slot)
        except MemoryError:
            if self._clock() >= self.retry_at(waiter.level):  # else it is not the first that asked at this moment
                self._failed_at = self._clock()
                self._pause = min(max(2 * self._pause, PAUSE_FIRST), PAUSE_MOST)
        except BaseException:
            self.put_back(made)
            raise
        else:
            if made:
                self._pause = 0.0
        finally:
            self._emergency.forgo(objects - tried)
        return made

    def put_back(self, made: list[Slot[T]]) -> None:
        """They are not used after all."""
        self.in_hand -= len(made)
        for slot in made:
            self._give_back(slot)

    async def _one(self, waiter: Waiter[T]) -> Slot[T] | None:
        """Suspend until it is made; None if the waiter is served before.

        :raises MemoryError: if the backend has none
        """
        attempt: Attempt[T] = Attempt()
        self._start(partial(self._make, attempt, waiter))
        try:
            has_waited = waiter.has_waited
            while not (attempt.over or waiter.served):
                await waiter.wait(self._look(waiter))
            waiter.has_waited = has_waited  # in line: this is no wait that counts
        except BaseException:
            attempt.wanted = False
            if attempt.slot is not None:
                self.put_back([attempt.slot])
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
                self.in_hand += 1
            else:
                self._give_back(slot)
        finally:
            attempt.over = True
            waiter.wake()
