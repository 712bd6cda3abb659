"""Callers that wait: in which order, and what they are woken for.

Always true, between calls:

    `first` is the waiter of the smallest rank that has joined and not left
    a waiter with `slots` or an `error` has been woken, or has not suspended yet: nobody waits for what it has
    the slots of a waiter belong to it alone: it uses them, or gives them back
    the magazine is watched (WAITERS, FILLERS) while anybody is here, but for a moment after the first was told

MEMALLOC before PUSHPAGE before SLEEP, and within each the oldest first: a heap by (urgency, ticket). Leaving only
blanks the entry, so joining and leaving cost O(log n), whatever the number of waiters.

Event loop's thread only; `WaitQueue.first` may be read from any.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, TypeVar

import anyio

from .._fastpath import FILLERS, Magazine, Slot
from .._flags import KM, LEVEL
from .._stats import Counters

T = TypeVar("T")


class Refuser(Protocol):
    """What has refused a waiter emergency objects, and is asked again when there is room (_admission.py)."""

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
    """One caller that waits."""

    __slots__ = (
        "_event",
        "beside",
        "counters",
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
        "told",
    )

    def __init__(
        self, flags: KM, ticket: int, need: int = 1, counters: Counters | None = None, since: float = 0.0
    ) -> None:
        self.flags: KM = flags
        self.level: int = LEVEL[flags]
        """Its urgency: the smaller is served first."""
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
        self.counters: Counters = counters or Counters()
        """Those of its cache."""
        self.slots: list[Slot[T]] | None = None
        """The objects handed over to it."""
        self.error: Exception | None = None
        """Why waiting longer makes no sense."""
        self.refused_by: Refuser | None = None
        """What is asked again for emergency objects, while it waits to be permitted some."""
        self.seen: int | None = None
        """How many free objects there were for it when it asked for what is missing."""
        self.permitted: int = 0
        """Emergency objects that may be made for it now: it was woken for that."""
        self.has_waited: bool = False
        self.sealed: bool = False
        """It would have had the cache grow, had that not been sealed."""
        self.make_event: Callable[[], anyio.Event] = anyio.Event
        self._event: anyio.Event | None = None

    def suspend(self, until: float, *, idle: bool = False) -> Coroutine[Any, Any, None]:
        """As `wait`, and counts it."""
        self.counters.waits += not self.has_waited
        return self.wait(until, idle=idle)

    async def wait(self, until: float, *, idle: bool = False) -> None:
        """Suspend until woken, or until that time; ``idle`` if others may pass."""
        self.has_waited = True
        event = self.arm()
        self.idle = idle  # not before: `tell` would wake nobody, and the free that it is for would be lost
        if self.slots is not None or self.error is not None:
            return  # by a finaliser, which the garbage collector ran just now: nobody will set this event
        if until < math.inf:
            with anyio.CancelScope(deadline=until):
                await event.wait()
        else:
            await event.wait()

    def arm(self) -> anyio.Event:
        """From here on it can be woken: the event that tells."""
        self.told = False
        self._event = event = self.make_event()
        return event

    def tell(self) -> None:
        """Have it look whether something is free; nothing else has changed."""
        if self._event is not None and not self._event.is_set():
            self.wake()
            self.told = True

    def wake(self) -> None:
        """Have it look again."""
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


class WaitQueue(Generic[T]):
    """Waiters, the most urgent and oldest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, list[Waiter[T]]]] = []
        self._places: dict[Waiter[T], list[Waiter[T]]] = {}
        self._serial = itertools.count()
        self.first: Waiter[T] | None = None
        """The next one: looked at far more often than it changes. May be read from any thread."""

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


class Waiters(WaitQueue[T]):
    """All that wait in one pool: those in line for objects, and fillers, which want objects to be free."""

    def __init__(self, magazine: Magazine[T]) -> None:
        super().__init__()
        self._magazine = magazine
        self.untimed: dict[Waiter[T], None] = {}
        """Those in line whose time does not run, in order: at the limit, or while their slab is being made."""
        self.undecided: dict[Waiter[T], None] = {}
        """Those in line whose time is up, while one of them sees whether growth is late."""
        self.fillers: dict[Waiter[T], Callable[[], bool]] = {}
        """Those that take nothing, in order, and what each waits for; its ``need`` is to be free."""

    def begin_to_fill(self, filler: Waiter[T], done: Callable[[], bool]) -> None:
        """Wake it once that is so."""
        self.fillers[filler] = done
        self._magazine.set_watch(FILLERS, on=True)

    def end_to_fill(self, filler: Waiter[T]) -> None:
        """It waits no longer."""
        del self.fillers[filler]
        self._magazine.set_watch(FILLERS, on=bool(self.fillers))

    def tell_fillers(self) -> None:
        """Wake those of them whose objects are there."""
        for filler, done in self.fillers.items():
            if done():
                filler.wake()

    def wake_untimed(self, *, everybody: bool) -> None:
        """A slab was asked for: let those wait for it, with a timeout, whose time did not run; or everybody."""
        untimed, self.untimed = self.untimed, {}
        for waiter in list(self) if everybody else untimed:
            waiter.wake()

    def send_away(self, error: Exception, counters: Counters | None = None) -> None:
        """Tell everybody, or the callers of one cache, what is wrong."""
        for waiter in (*self, *self.fillers):
            if counters is None or waiter.counters is counters:
                waiter.fail(error)

    def check(self) -> None:
        """Assert what is always true between calls.

        :raises AssertionError: naming what is not
        """
        ranks = sorted(waiter.rank for waiter in self)
        assert (self.first.rank if self.first else None) == (ranks[0] if ranks else None), "the first in line"
        assert not [waiter for waiter in self if waiter.served], "served waiters have left the line"
        self._magazine.check(FILLERS, self.fillers)
