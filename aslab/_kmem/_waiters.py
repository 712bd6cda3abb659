"""Waiting callers: their order, and what wakes them.

Always true, between calls:

    1. `first` is the waiter with the smallest rank of those that have joined and not left
    2. a waiter with `slots` or an `error` has been woken or has not suspended yet: nobody sleeps on what is there;
       of very many that a closed pool sends away, each is woken by one that leaves
    3. the slots of a waiter belong to it alone: it uses them or gives them back
    4. the magazine is watched (WAITERS, FILLERS) while anyone waits, except from when the first in line is told of
       a free until it runs

MEMALLOC comes before PUSHPAGE before SLEEP, and within each the oldest first: a heap by (urgency, ticket). Leaving
only voids the entry, so joining and leaving cost O(log n).

Event loop's thread only; `WaitQueue.first` may be read from any thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import anyio

from .._fastpath import FILLERS, Magazine, Slot
from .._flags import KM, LEVEL
from .._stats import Counters
from ._clock import Future
from ._wakeup import AT_ONCE

T = TypeVar("T")
SWEPT = 8
"""Entries of a heap with many blank ones that each waiter that leaves moves to a new heap."""


class Refuser(Protocol):
    """What refused a waiter emergency objects, and is asked again when there is room (_admission.py)."""

    def grant(self, waiter: Waiter[Any]) -> bool:
        """Permit the emergency objects that ``waiter`` still needs, and wake it; False if there is no room."""
        ...

    def hopeless(self, waiter: Waiter[Any]) -> bool:
        """Whether ``waiter`` can never be permitted what it needs now."""
        ...

    def bound_here(self, waiter: Waiter[Any]) -> bool:
        """Whether the bound of its own cache, ``max_emergency``, is what refuses ``waiter``."""
        ...


class Waiter(Generic[T]):
    """One waiting caller."""

    __slots__ = (
        "_future",
        "_make_future",
        "beside",
        "counters",
        "error",
        "flags",
        "granted",
        "has_waited",
        "idle",
        "late_from",
        "level",
        "need",
        "permitted",
        "rank",
        "refused_by",
        "sealed",
        "seen",
        "since",
        "slots",
        "timed_from",
        "told",
        "until",
    )

    def __init__(
        self, make: Callable[[], Future], flags: KM, ticket: int, need: int, counters: Counters, since: float = 0.0
    ) -> None:
        self._make_future = make
        self.flags: KM = flags
        self.level: int = LEVEL[flags]
        """Its urgency: smaller is served first."""
        self.rank: tuple[int, int] = (self.level, ticket)
        """Its place in line: smaller comes first."""
        self.need: int = need
        """Objects that it needs, all at once."""
        self.since: float = since
        """When it came, by the event loop's clock."""
        self.beside: float | None = None
        """When an object first came free while it was first in line and others could still take the object."""
        self.idle: bool = False
        """It sleeps, and looks again once woken."""
        self.told: bool = False
        """It was woken because an object came free, and for no other reason."""
        self.counters: Counters = counters
        """Its cache's counters."""
        self.slots: list[Slot[T]] | None = None
        """The objects handed over to it."""
        self.error: Exception | None = None
        """Why waiting longer cannot help."""
        self.timed_from: float | None = None
        """When its time began to run; None while it has no timer."""
        self.until: float = math.inf
        """When its timer wakes it."""
        self.late_from: float | None = None
        """`due_from` of the grow that it has found late."""
        self.refused_by: Refuser | None = None
        """What to ask again for emergency objects, from when it is refused until it withdraws or has them."""
        self.seen: int | None = None
        """How many free objects it could have had when it asked for the missing ones as emergency objects."""
        self.permitted: int = 0
        """Emergency objects that may be made for it now, which it was woken for."""
        self.granted: int = 0
        """Emergency objects that are being made for it."""
        self.has_waited: bool = False
        """It is counted in `waits`."""
        self.sealed: bool = False
        """It is counted in `sealed`: the cache would have had to grow for it."""
        self._future: Future | None = None

    @property
    def resumes(self) -> bool:
        """Whether it was idle and is woken, but has not run yet."""
        return self.idle and (self._future is None or self._future.done())

    def suspend(self, until: float, *, idle: bool = False, counts: bool = True) -> Awaitable[object]:
        """Return what ends when it is woken, or when the loop's clock reaches ``until``: to be awaited at once.

        If ``idle``, others may pass it meanwhile; if it ``counts``, that is in `waits`, once.
        """
        if counts and not self.has_waited:
            self.has_waited = True
            self.counters.waits += 1
        self.told = False
        self._future = future = self._make_future()
        self.idle = idle  # not before: `tell` would wake nobody, and the free that it is for would be lost
        if self.slots is not None or self.error is not None:
            self.wake()  # a finaliser served it just now, and found no future yet
        return future if until == math.inf else _by(until, future)

    def tell(self) -> None:
        """Wake it to look for free objects, when nothing else has changed."""
        if self._future is not None and not self._future.done():
            self.wake()
            self.told = True

    def wake(self) -> None:
        """Wake it to look again at everything."""
        self.told = False
        if self._future is not None and not self._future.done():
            try:
                self._future.set_result(None)
            except RuntimeError:  # its event loop is closed, and its task is gone
                self._future = None

    def give(self, slots: list[Slot[T]]) -> None:
        """Hand over all the objects that it needs, and wake it."""
        self.slots = slots
        self.wake()

    def fail(self, error: Exception) -> None:
        """Wake it with an error to raise."""
        self.error = error
        self.wake()


async def _by(until: float, future: Future) -> None:
    with anyio.CancelScope(deadline=until):
        await future


Entry = tuple[int, int, int, Waiter[T]]
"""Urgency, ticket, serial number, and the waiter. Void without its serial in `WaitQueue._places`."""


class WaitQueue(Generic[T]):
    """Waiters, the most urgent and oldest first."""

    def __init__(self) -> None:
        self._heap: list[Entry[T]] = []
        self._old: list[Entry[T]] = []  # another heap, being emptied into the first one without its void entries
        self._places: dict[Waiter[T], int] = {}
        self._serial = itertools.count()
        self.first: Waiter[T] | None = None
        """The next waiter, stored because it is read far more often than it changes. May be read in any thread."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter(tuple(self._places))

    def join(self, waiter: Waiter[T]) -> None:
        """Add a waiter at the place that its rank gives. Joining twice changes nothing."""
        if waiter in self._places:
            return
        serial = self._places[waiter] = next(self._serial)
        heapq.heappush(self._heap, (*waiter.rank, serial, waiter))
        if self.first is None or waiter.rank < self.first.rank:
            self.first = waiter

    def leave(self, waiter: Waiter[T]) -> bool:
        """Remove a waiter. Returns whether it was here."""
        if self._places.pop(waiter, None) is None:
            return False
        if self._old:
            self._sweep()
        elif len(self._heap) > 2 * len(self._places) + 64:
            self._heap, self._old = self._old, self._heap
        if waiter is self.first:
            self.first = self._find_first()
        return True

    def _sweep(self) -> None:
        """Move a few entries from the old heap: all at once would take 40 ms for 100,000."""
        for _ in range(min(SWEPT, len(self._old))):
            entry = self._old.pop()
            if self._places.get(entry[3]) == entry[2]:
                heapq.heappush(self._heap, entry)

    def _find_first(self) -> Waiter[T] | None:
        places, first = self._places, None
        for heap in (self._heap, self._old):
            while heap and places.get(heap[0][3]) != heap[0][2]:
                heapq.heappop(heap)
            if heap and (first is None or heap[0] < first):
                first = heap[0]
        return None if first is None else first[3]


class Waiters(WaitQueue[T]):
    """All waiters of one pool: callers in line for objects, and fillers, which wait until some are free."""

    def __init__(self, magazine: Magazine[T]) -> None:
        super().__init__()
        self._magazine = magazine
        self.untimed: dict[Waiter[T], None] = {}
        """Callers that sleep without a timer, in order: at the limit, or while their slab is being built."""
        self.undecided: dict[Waiter[T], None] = {}
        """Callers whose time is up, while one of them finds out whether growth is late."""
        self.fillers: dict[Waiter[T], Callable[[], bool]] = {}
        """Waiters that take nothing, in order, and each one's condition; growth aims at its ``need``."""
        self._sent_away: deque[Waiter[T]] = deque()  # they have their error, and are still to be woken

    def leave(self, waiter: Waiter[T]) -> bool:
        """Remove a waiter. Returns whether it was here."""
        was_here = super().leave(waiter)
        self._wake_next()
        return was_here

    def begin_to_fill(self, filler: Waiter[T], done: Callable[[], bool]) -> None:
        """Add a filler, to be woken once ``done`` returns True."""
        self.fillers[filler] = done
        self._magazine.set_watch(FILLERS, on=True)

    def end_to_fill(self, filler: Waiter[T]) -> None:
        """Remove a filler."""
        del self.fillers[filler]
        self._wake_next()
        self._magazine.set_watch(FILLERS, on=bool(self.fillers))

    def tell_fillers(self) -> None:
        """Wake the fillers whose condition holds."""
        for filler, done in self.fillers.items():
            if done():
                filler.wake()

    def wake_untimed(self, *, everybody: bool) -> None:
        """Wake the callers that sleep without a timer, or everybody, to set timers for the slab just asked for."""
        untimed, self.untimed = self.untimed, {}
        for waiter in list(self) if everybody else untimed:
            waiter.wake()

    def close(self, error: Exception) -> None:
        """Fail everybody with ``error``, as the pool is closed. `AT_ONCE` wake now, and as each leaves another."""
        everybody = [*self._places, *self.fillers]
        for waiter in everybody:
            waiter.error = error
        self._sent_away.extend(everybody)
        for _ in range(AT_ONCE):
            self._wake_next()

    def send_away(self, error: Exception, counters: Counters | None = None) -> None:
        """Fail everybody, or with ``counters`` the callers of that cache, with ``error``."""
        for waiter in (*self, *self.fillers):
            if counters is None or waiter.counters is counters:
                waiter.fail(error)

    def _wake_next(self) -> None:
        if self._sent_away:
            self._sent_away.popleft().wake()

    def check(self) -> None:
        """Check what is always true between calls.

        :raises AssertionError: naming what does not hold
        """
        ranks = sorted(waiter.rank for waiter in self)
        assert (self.first.rank if self.first else None) == (ranks[0] if ranks else None), "the first in line"
        assert not [waiter for waiter in self if waiter.slots is not None], "served waiters have left the line"
        self._magazine.check(FILLERS, self.fillers)
