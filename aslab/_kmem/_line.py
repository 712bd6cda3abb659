"""Where callers wait: the line of one pool, and queues that they join in any order.

Always true of a line, between calls:

    1. `first` is the waiter with the smallest rank of those that have joined and not left
    2. the magazine is watched (WAITERS, FILLERS) while anyone waits, except from when the first in line is told of
       a free until it runs
    3. of very many that a closed pool sends away, or that are to look again, each has been woken or will be: by
       one that leaves, or by a walk

MEMALLOC comes before PUSHPAGE before SLEEP, and within each the oldest first. Callers come in the order of their
tickets, so the line is a ring for each level, linked through the waiters. Joining, leaving and closing cost the
same however long it is, and nothing is copied as it grows, as a heap or a dictionary would be.

Event loop's thread only; the `first` of a line or queue may be read, and a level walked, from any thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from .._fastpath import FILLERS, Magazine
from .._flags import FINISHES, ORDINARY
from .._stats import Counters
from ._waiters import Waiter
from ._wakeup import AT_ONCE, SWEPT, Alarms

T = TypeVar("T")
LEVELS = range(FINISHES, ORDINARY + 1)
LOOKS = 8
"""Waiters that a walk passes by for the price of one that it wakes."""


class End:
    """Where the ring of one level begins and ends."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: Any = self
        self.after: Any = self


class Walk(Generic[T]):
    """A walk along the line, from the first to the last."""

    __slots__ = ("again", "next", "visit")

    def __init__(self, first: Waiter[T] | None, visit: Callable[[Waiter[T]], bool]) -> None:
        self.next: Waiter[T] | None = first
        """Who comes next: kept up to date as waiters leave."""
        self.visit: Callable[[Waiter[T]], bool] = visit
        """Called with each; returns whether it woke that one."""
        self.again: bool = False
        """It was asked for again since it began."""


class Waiters(Generic[T]):
    """All waiters of one pool: callers in line for objects, and fillers, which wait until some are free."""

    def __init__(self, magazine: Magazine[T], alarms: Alarms) -> None:
        self._magazine = magazine
        self._alarms = alarms
        self._ends: dict[int, End] = {}  # those of levels that anyone has waited at
        self._sent_away: dict[int, End] = {}  # of a closed pool
        self._walks: dict[Hashable, Walk[T]] = {}
        self._count = 0
        self.first: Waiter[T] | None = None
        """The next waiter, stored because it is read far more often than it changes. May be read in any thread."""
        self.untimed: int = 0
        """The number of those that sleep without a timer, or have just been woken from that."""
        self.ended: Exception | None = None
        """What all are sent away with, as the pool is closed."""
        self.fillers: dict[Waiter[T], Callable[[], bool]] = {}
        """Waiters that take nothing, in order, and each one's condition; growth aims at its ``need``."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter([waiter for level in LEVELS for waiter in self.of_level(level)])

    def of_level(self, level: int) -> Iterator[Waiter[T]]:
        """Walk those of one level, the oldest first. Any thread; ends early where they leave meanwhile."""
        if level in self._ends:
            yield from _ring(self._ends[level])

    @property
    def everybody(self) -> list[Waiter[T]]:
        """Those in line, and those of a closed pool that are still to be woken."""
        return [waiter for end in (*self._ends.values(), *self._sent_away.values()) for waiter in _ring(end)]

    # -- coming and going

    def join(self, waiter: Waiter[T]) -> None:
        """Add a waiter at the place that its rank gives. Joining twice changes nothing.

        One that comes out of order passes those behind it one by one.
        """
        if waiter.after is not None:
            return
        end = self._ends.get(waiter.level)
        if end is None:
            end = self._ends[waiter.level] = End()
        before = end.before
        while before is not end and before.rank > waiter.rank:
            before = before.before
        after = before.after
        waiter.before, waiter.after = before, after
        before.after = after.before = waiter
        self._count += 1
        if self.first is None or waiter.rank < self.first.rank:
            self.first = waiter

    def leave(self, waiter: Waiter[T]) -> bool:
        """Remove a waiter. Returns whether it was here."""
        if waiter.after is None:
            return False
        if self._walks or waiter is self.first:
            behind = self._behind(waiter)
            for walk in self._walks.values():
                if walk.next is waiter:
                    walk.next = behind
            if waiter is self.first:
                self.first = behind
        _unlink(waiter)
        if self.ended is None:
            self._count -= 1
        return True

    def _behind(self, waiter: Waiter[T]) -> Waiter[T] | None:
        after: Any = waiter.after
        if after is not self._ends.get(waiter.level):
            return after  # type: ignore[no-any-return]
        for level in range(waiter.level + 1, ORDINARY + 1):
            end = self._ends.get(level)
            if end is not None and end.after is not end:
                return end.after  # type: ignore[no-any-return]
        return None

    # -- fillers

    def begin_to_fill(self, filler: Waiter[T], done: Callable[[], bool]) -> None:
        """Add a filler, to be woken once ``done`` returns True."""
        self.fillers[filler] = done
        self._magazine.set_watch(FILLERS, on=True)

    def end_to_fill(self, filler: Waiter[T]) -> None:
        """Remove a filler."""
        del self.fillers[filler]
        self._magazine.set_watch(FILLERS, on=bool(self.fillers))

    def tell_fillers(self) -> None:
        """Wake the fillers whose condition holds."""
        for filler, done in self.fillers.items():
            if done():
                filler.wake()

    # -- all of them

    def wake_untimed(self, *, everybody: bool) -> None:
        """Wake the callers that sleep without a timer, or everybody, to set timers for the slab just asked for."""

        def wake(waiter: Waiter[T]) -> bool:
            if waiter.untimed or everybody:
                waiter.wake()
            return waiter.untimed or everybody

        self.walk(wake, ("untimed", everybody))

    def wake_undecided(self) -> None:
        """Wake the callers that sleep while another found out whether growth is late."""

        def wake(waiter: Waiter[T]) -> bool:
            if waiter.undecided:
                waiter.wake()
            return waiter.undecided

        self.walk(wake, "undecided")

    def send_away(self, error: Exception, counters: Counters | None = None) -> None:
        """Fail all who wait now, or with ``counters`` the callers of that cache, with ``error``."""
        for filler in tuple(self.fillers):
            if counters is None or filler.counters is counters:
                filler.fail(error)
        last = max((end.before.rank[1] for end in self._ends.values() if end.before is not end), default=-1)

        def fail(waiter: Waiter[T]) -> bool:
            meant = waiter.rank[1] <= last and (counters is None or waiter.counters is counters)
            if meant:
                waiter.fail(error)
            return meant

        self.walk(fail, error)

    def walk(self, visit: Callable[[Waiter[T]], bool], name: Hashable) -> None:
        """Call ``visit`` with each in line: with some now, until it has woken `AT_ONCE`, and the rest in turns.

        While a walk of that ``name`` is under way, it visits the first, and begins again once it has ended: so
        however often it is asked for, it comes to the last.
        """
        walk = self._walks.get(name)
        if walk is None:
            walk = self._walks[name] = Walk(self.first, visit)
            steps = self._steps(walk, name)
            if next(steps, self) is not self:
                self._alarms.in_turns(steps)
        else:
            walk.visit, walk.again = visit, True
            if self.first is not None:
                visit(self.first)

    def _steps(self, walk: Walk[T], name: Hashable) -> Iterator[None]:
        cost = 0
        while True:
            while (waiter := walk.next) is not None:
                if cost >= AT_ONCE * LOOKS:
                    cost = 0
                    yield
                    continue
                walk.next = self._behind(waiter)
                cost += LOOKS if walk.visit(waiter) else 1
            if not walk.again:
                break
            walk.next, walk.again = self.first, False
        del self._walks[name]

    def close(self, error: Exception) -> None:
        """Fail everybody with ``error``, as the pool is closed. `AT_ONCE` wake now, and as each leaves another."""
        self.ended = error
        self._sent_away, self._ends = self._ends, {}
        self.first, self._count = None, 0
        for walk in self._walks.values():
            walk.next = None
        for filler in tuple(self.fillers):
            filler.fail(error)
        for _ in range(AT_ONCE):
            self.wake_next()

    def wake_next(self) -> None:
        """Wake another that a closed pool sends away. Called by each that leaves."""
        for end in self._sent_away.values():
            if end.after is not end:
                waiter = end.after
                _unlink(waiter)
                waiter.fail(self.ended)
                break

    def check(self) -> None:
        """Check what is always true between calls.

        :raises AssertionError: naming what does not hold
        """
        line = list(self)
        assert line == sorted(line, key=lambda waiter: waiter.rank), "the order of the line"
        assert self.first is (line[0] if line else None), "the first in line"
        assert len(self) == len(line), "the length of the line"
        assert not [waiter for waiter in line if waiter.slots is not None], "served waiters have left the line"
        self._magazine.check(FILLERS, self.fillers)


Place = tuple[int, int, int, Waiter[T]]
"""Urgency, ticket, serial number, and the waiter. Void without its serial in `WaitQueue._places`."""


class WaitQueue(Generic[T]):
    """Waiters that come in any order, the most urgent and oldest first: a heap by (urgency, ticket).

    Leaving only voids the entry, so joining and leaving cost O(log n).
    """

    def __init__(self) -> None:
        self._heap: list[Place[T]] = []
        self._old: list[Place[T]] = []  # another heap, being emptied into the first one without its void entries
        self._places: dict[Waiter[T], int] = {}
        self._serial = 0
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
        self._serial += 1
        self._places[waiter] = self._serial
        heapq.heappush(self._heap, (*waiter.rank, self._serial, waiter))
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


def _ring(end: End) -> Iterator[Waiter[Any]]:
    waiter = end.after
    while waiter is not end and waiter is not None:
        yield waiter
        waiter = waiter.after


def _unlink(waiter: Waiter[Any]) -> None:
    before, after = waiter.before, waiter.after
    before.after, after.before = after, before
    waiter.before = waiter.after = None
