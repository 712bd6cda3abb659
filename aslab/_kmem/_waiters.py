"""Who waits, in which order, and for what they are woken.

MEMALLOC before PUSHPAGE before SLEEP, and within each the oldest first: a heap by (urgency, ticket). Leaving only
blanks the entry, so joining and leaving cost O(log n), whatever the number of waiters.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, TypeVar

import anyio

from .._flags import KM, LEVEL
from .._stats import Tally
from ._slab import Slot

T = TypeVar("T")


class Refuser(Protocol):
    """Who has refused a waiter emergency objects, and is asked again when there is room."""

    def grant(self, waiter: Waiter[Any]) -> bool:
        """Permit what it still needs, and wake it; False if there is no room."""
        ...

    def hopeless(self, waiter: Waiter[Any]) -> bool:
        """Whether it can never be permitted what it needs, by now."""
        ...

    def bound_here(self, waiter: Waiter[Any]) -> bool:
        """Whether it is the bound of its cache that stands against it."""
        ...


class Waiter(Generic[T]):
    """One caller that waits. Lives on the event loop's thread alone."""

    __slots__ = (
        "_event",
        "beside",
        "error",
        "flags",
        "has_waited",
        "idle",
        "level",
        "make_event",
        "need",
        "permitted",
        "rank",
        "refused_by",
        "sealed",
        "seen",
        "since",
        "slots",
        "tally",
        "told",
    )

    def __init__(
        self, flags: KM, ticket: int, need: int = 1, tally: Tally | None = None, since: float = 0.0
    ) -> None:
        self.flags: KM = flags
        self.level: int = LEVEL[flags]
        """Who is served before whom: the smaller first."""
        self.rank: tuple[int, int] = (self.level, ticket)
        """Its place: the smaller comes first."""
        self.need: int = need
        """Objects that it wants, all at once."""
        self.since: float = since
        """When it came, by the event loop's clock."""
        self.beside: float | None = None
        """When something came free while it was the first in line, and anybody could still take it."""
        self.idle: bool = False
        """It sleeps, and will look again once it is woken."""
        self.told: bool = False
        """It was woken because something came free, and for nothing else."""
        self.tally: Tally = tally or Tally()
        """The counters of its cache."""
        self.slots: list[Slot[T]] | None = None
        """The objects handed over; they are this waiter's to use or to give back."""
        self.error: Exception | None = None
        """Why waiting longer makes no sense."""
        self.refused_by: Refuser | None = None
        """Who is to be asked again for emergency objects, while it waits to be permitted some."""
        self.seen: int | None = None
        """How many free objects there were for it when it asked for what is missing."""
        self.permitted: int = 0
        """Emergency objects that may be made for it now: it was woken for that."""
        self.has_waited: bool = False
        self.sealed: bool = False
        """It would have had the cache grow, had that not been sealed."""
        self.make_event: Callable[[], anyio.Event] = anyio.Event
        self._event: anyio.Event | None = None

    def suspend(self, until: float) -> Coroutine[Any, Any, None]:
        """As `wait`, and counts it."""
        self.tally.waits += not self.has_waited
        return self.wait(until)

    async def wait(self, until: float) -> None:
        """Suspend until woken, or until that time."""
        self.has_waited = True
        self.told = False
        self._event = self.make_event()
        if self.slots is not None or self.error is not None:
            return  # by a finaliser, which the garbage collector ran just now: nobody will set this event
        if until < math.inf:
            with anyio.CancelScope(deadline=until):
                await self._event.wait()
        else:
            await self._event.wait()

    def tell(self) -> None:
        """Let it look whether something is free; nothing else has changed."""
        if self._event is not None and not self._event.is_set():
            self.wake()
            self.told = True

    def wake(self) -> None:
        """Let it look again."""
        self.told = False
        if self._event is not None:
            try:
                self._event.set()
            except RuntimeError:  # its event loop is closed, and the task with it
                self._event = None

    def give(self, slots: list[Slot[T]]) -> None:
        """Hand over all that it needs. Whatever it was doing for them ends."""
        self.slots = slots
        self.wake()

    def fail(self, error: Exception) -> None:
        """Send it away."""
        self.error = error
        self.wake()

    @property
    def served(self) -> bool:
        """Whether it need not wait any more."""
        return self.slots is not None or self.error is not None


class Line(Generic[T]):
    """The waiters of a cache, most urgent and oldest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, list[Waiter[T]]]] = []
        self._places: dict[Waiter[T], list[Waiter[T]]] = {}
        self._serial = itertools.count()
        self.first: Waiter[T] | None = None
        """Who is next: looked at far more often than it changes. May be read from any thread."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter(tuple(self._places))

    def join(self, waiter: Waiter[T]) -> None:
        """Take the place that urgency and age give. Joining twice changes nothing."""
        if waiter in self._places:
            return
        place = self._places[waiter] = [waiter]
        heapq.heappush(self._heap, (*waiter.rank, next(self._serial), place))
        if self.first is None or waiter.rank < self.first.rank:
            self.first = waiter

    def leave(self, waiter: Waiter[T]) -> bool:
        """Give up the place; whether it had one."""
        place = self._places.pop(waiter, None)
        if place is not None:
            place.clear()
            if len(self._heap) > 2 * len(self._places) + 64:
                self._heap = [entry for entry in self._heap if entry[3]]
                heapq.heapify(self._heap)
            if waiter is self.first:
                self.first = self._find_first()
        return place is not None

    def _find_first(self) -> Waiter[T] | None:
        while self._heap:
            place = self._heap[0][3]
            if place:
                return place[0]
            heapq.heappop(self._heap)
        return None

    def overtaken_by(self, waiter: Waiter[T]) -> bool:
        """Whether somebody here comes before it."""
        return self.first is not None and self.first.rank < waiter.rank
