"""A waiting caller: its states, its patience with growth, and what it is given.

It goes from state to state only as `WAITS` allows (`go`); a test keeps docs/states.md equal to that table.

Always true, between calls:

    1. a waiter with `slots` or an `error` has been woken or has not suspended yet: nobody sleeps on what is there
    2. the slots of a waiter belong to it alone: it uses them or gives them back

Where it waits for free objects is the line (_line.py). Event loop's thread only.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .._errors import ImpossibleTransition
from .._fastpath import Slot
from .._flags import KM, LEVEL
from .._stats import Counters
from ._clock import Future
from ._wakeup import Alarms, Entry

T = TypeVar("T")

LEAST, MOST = 0.01, 1.0
"""Bounds of a learned patience, in seconds."""
AT_FIRST = 0.1
"""Seconds of patience before any grow has ended: SPL's HZ/10."""
SLOW = 256 * 2**20
"""Bytes per second that even slow memory is assumed to deliver."""
TIMES = 4
"""A grow is late after this many times the usual duration."""
GROWS = 8
"""Durations of grows that are remembered."""


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


class Wait(enum.Enum):
    """The states of a waiting caller (_slowpath.py)."""

    LOOKING = "looking"
    """It runs, and decides what to do next."""
    UNTIMED = "untimed"
    """It sleeps without a timer."""
    TIMED = "timed"
    """It sleeps until its patience runs out."""
    JUDGING = "judging"
    """Its patience has run out: it lets the event loop catch up, to see whether growth is late."""
    MAKING = "making"
    """Emergency objects are being made for it."""
    REFUSED = "refused"
    """It sleeps until there is room for emergency objects."""
    BACKING_OFF = "backing off"
    """It sleeps, as the backend had no emergency object the last time."""
    SERVED = "served"
    """It has all the objects it needs."""
    FAILED = "failed"
    """Waiting longer cannot help."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # as in `KM`


WAITS: dict[Wait, dict[Wait, str]] = {
    Wait.LOOKING: {
        Wait.SERVED: "all the objects it needs were handed over",
        Wait.FAILED: "the cache was closed, or a backend broke its contract",
        Wait.UNTIMED: "only a free can help, or its slab is being built",
        Wait.TIMED: "a slab is on its way, and not late",
        Wait.JUDGING: "its patience has run out",
        Wait.MAKING: "growth is late, and there is room for emergency objects",
        Wait.REFUSED: "growth is late, and there is no room",
        Wait.BACKING_OFF: "growth is late, and the backend had no emergency object",
    },
    Wait.UNTIMED: {Wait.LOOKING: "woken by a free, a new grow, the end of its own grow, or an error"},
    Wait.TIMED: {Wait.LOOKING: "woken, or its patience has run out"},
    Wait.JUDGING: {Wait.LOOKING: "growth is late, or was not after all"},
    Wait.REFUSED: {Wait.LOOKING: "woken by room, by a free, or by the end of the grow"},
    Wait.BACKING_OFF: {Wait.LOOKING: "woken, or the pause is over and it is the first in line"},
    Wait.MAKING: {
        Wait.SERVED: "the emergency objects are made",
        Wait.LOOKING: "the backend had none, or objects were handed over meanwhile",
    },
    Wait.SERVED: {},
    Wait.FAILED: {},
}


def go(state: Wait, to: Wait) -> Wait:
    """Return ``to``, the next state of a waiting caller.

    :raises ImpossibleTransition: if the table does not lead there from ``state``
    """
    if to not in WAITS[state]:
        raise ImpossibleTransition(f"a caller that is {state.value} cannot be {to.value} next")
    return to


class Patience:
    """How long a caller waits for growth before it takes an emergency object: fixed, or learned from the grows.

    The usual duration of a grow is the median of the last few: a single stuck one changes nothing, a backend that
    has become slow is believed after a handful. A grow is late after four times that; a caller whose progress
    frees memory waits half as long. Nothing is late within a timer tick of 2012 (HZ=100), and everything is late
    after a second. Until the first grow has ended, SPL's HZ/10 is used, or if longer the time that slow memory
    takes for a slab.

    :param fixed: seconds for all callers; None to learn them
    """

    def __init__(self, fixed: float | None, slab_size: int) -> None:
        self._fixed = fixed
        self._at_first = slab_size / SLOW
        self._took: tuple[float, ...] = ()  # not a deque, whose first entry takes 0.6 KB
        self.of: tuple[float, ...] = ()
        """The current patience in seconds, by level."""
        self._look()

    def note(self, seconds: float) -> None:
        """Remember that the backend took this many seconds for a slab."""
        self._took = (*self._took, seconds)[-GROWS:]
        self._look()

    def _look(self) -> None:
        took, fixed = sorted(self._took), self._fixed
        if fixed is not None:
            ordinary = urgent = fixed
        elif not took or (len(took) == 1 and took[0] > MOST):  # nor does a first grow that was stuck
            ordinary, urgent = max(self._at_first, AT_FIRST), self._at_first
        else:
            ordinary = TIMES * took[(len(took) - 1) // 2]
            urgent = ordinary / 2
        if fixed is None:
            ordinary, urgent = (min(max(late, LEAST), MOST) for late in (ordinary, urgent))
        self.of = (urgent, urgent, ordinary)  # by level: FINISHES, URGENT, ORDINARY


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
