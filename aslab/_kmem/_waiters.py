"""One waiting caller, and a queue of them in any order.

Always true, between calls:

    1. a waiter with `slots` or an `error` has been woken or has not suspended yet: nobody sleeps on what is there
    2. the slots of a waiter belong to it alone: it uses them or gives them back

Where they wait for free objects is the line (_line.py).

Event loop's thread only; `WaitQueue.first` may be read from any thread.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Awaitable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from .._fastpath import Slot
from .._flags import KM, LEVEL
from .._stats import Counters
from ._clock import Future
from ._wakeup import SWEPT, Alarms, Entry

T = TypeVar("T")


class Expired(Exception):
    """The time of a waiter with a ``deadline`` is over. Its cache says more (`TimeoutError`)."""


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
        "_alarms",
        "_future",
        "after",
        "alarm",
        "before",
        "beside",
        "counters",
        "deadline",
        "due",
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
        "undecided",
        "until",
        "untimed",
    )

    def __init__(
        self, alarms: Alarms, flags: KM, ticket: int, need: int, counters: Counters, since: float = 0.0
    ) -> None:
        self._alarms = alarms
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
        """When its patience with growth ends."""
        self.deadline: float = math.inf
        """When it gives up (`Expired`), unless it has been served."""
        self.due: float = math.inf
        """When it is woken: its `Alarms` know."""
        self.alarm: Entry | None = None
        self.before: Any = None
        """Its neighbours in line; None while it is not in line."""
        self.after: Any = None
        self.untimed: bool = False
        """It sleeps without a timer: at the limit, or while its slab is being built."""
        self.undecided: bool = False
        """Its time is up, and it sleeps while another finds out whether growth is late."""
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
        self._future = future = self._alarms.make_future()
        self.idle = idle  # not before: `tell` would wake nobody, and the free that it is for would be lost
        if self.slots is not None or self.error is not None:
            self.wake()  # a finaliser served it just now, and found no future yet
        if self.deadline < until:
            until = self.deadline
        if until < math.inf:
            self._alarms.set(self, until)
        else:
            self.due = math.inf
        return future

    def ring(self, now: float) -> None:
        """Wake it, as its time has come; with `Expired` if that is its deadline, and it has not been served."""
        if now >= self.deadline and self.slots is None and self.error is None:
            self.fail(Expired())
        else:
            self.wake()

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
