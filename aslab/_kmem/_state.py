"""The two state machines: the marks of a cache, and a caller that waits.

Four marks, with SPL's bit numbers, because ``/proc/spl/kmem/slab`` prints them:

    GROWING     a slab has been asked for and has not come yet
    DEADLOCKED  somebody waited for that slab for too long: callers stop waiting for it
    REAPING     free slabs are on their way back: nothing grows meanwhile
    DESTROY     the cache is closing or closed: nothing starts any more

Everything that happens to a cache is an event of `TABLE`, and a caller goes from state to state as `WAITS` says.
The code goes through `fire` and `go`, the tests walk all states that the tables can reach, and docs/states.md is
written from both by a test.

Always true: a state of either machine is one that its table can reach.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .._errors import ImpossibleTransition


class Mark(enum.Flag):
    """The marks of a cache; the bit numbers are SPL's."""

    DEADLOCKED = 1 << 14
    GROWING = 1 << 15
    REAPING = 1 << 16
    DESTROY = 1 << 17


class Rule(NamedTuple):
    """When an event may happen, and what it does to the marks."""

    needs: Mark
    forbids: Mark
    sets: Mark
    clears: Mark
    why: str


NONE = Mark(0)
TABLE: dict[str, Rule] = {
    "grow": Rule(
        NONE,
        Mark.GROWING | Mark.REAPING | Mark.DESTROY,
        Mark.GROWING,
        NONE,
        "a slab is asked for; one at a time, and not while slabs go back",
    ),
    "late": Rule(
        Mark.GROWING,
        Mark.DEADLOCKED | Mark.DESTROY,
        Mark.DEADLOCKED,
        NONE,
        "a caller's wait timed out while growing; counted once an episode",
    ),
    "grown": Rule(
        Mark.GROWING,
        NONE,
        NONE,
        Mark.GROWING | Mark.DEADLOCKED,
        "the grow ended, with a slab or without; normal operation resumes",
    ),
    "reap": Rule(
        NONE,
        Mark.REAPING | Mark.DESTROY,
        Mark.REAPING,
        NONE,
        "free slabs are taken off the lists and given back",
    ),
    "reaped": Rule(Mark.REAPING, NONE, NONE, Mark.REAPING, "the last of them is back"),
    "close": Rule(
        NONE,
        Mark.DESTROY,
        Mark.DESTROY,
        NONE,
        "the cache is closed; a grow or a reap under way may still end",
    ),
}


def fire(state: Mark, event: str) -> Mark:
    """The state after ``event``; raises `ImpossibleTransition` where the table has none."""
    rule = TABLE[event]
    if state & rule.needs != rule.needs or state & rule.forbids:
        raise ImpossibleTransition(
            f"event {event!r} in state {words(state)}: needs {words(rule.needs)}, forbids {words(rule.forbids)}"
        )
    return (state | rule.sets) & ~rule.clears


def words(state: Mark) -> str:
    """The marks by name, or ``-``."""
    return " ".join(mark.name or "" for mark in Mark if mark in state) or "-"


def reachable() -> dict[Mark, dict[str, Mark]]:
    """Every state that can come about from a fresh cache, with the events it allows and their ends."""
    found: dict[Mark, dict[str, Mark]] = {}
    todo = [NONE]
    while todo:
        state = todo.pop()
        if state in found:
            continue
        found[state] = {}
        for event in TABLE:
            try:
                found[state][event] = fire(state, event)
            except ImpossibleTransition:
                continue
        todo.extend(found[state].values())
    return found


class Marks:
    """The marks of one cache, changed by events alone."""

    __slots__ = ("bits", "observer")

    def __init__(self) -> None:
        self.bits: int = NONE.value
        """The same as `state`: operators of enum.Flag cost microseconds, too much where each caller asks."""
        self.observer: Callable[[str, Mark, Mark], object] | None = None
        """Told of each event, after it, with the state before and after."""

    @property
    def state(self) -> Mark:
        """The marks that are set."""
        return Mark(self.bits)

    @state.setter
    def state(self, state: Mark) -> None:
        self.bits = state.value

    def __contains__(self, mark: Mark) -> bool:
        return self.bits & mark._value_ != 0

    def __repr__(self) -> str:
        return words(self.state)

    def fire(self, event: str) -> None:
        """Go to the state after ``event``; raises `ImpossibleTransition` and stays where there is none."""
        before, self.state = self.state, fire(self.state, event)
        if self.observer is not None:
            self.observer(event, before, self.state)


class Wait(enum.Enum):
    """What a caller is about while it waits (_slowpath.py)."""

    LOOKING = "looking"
    """It runs, and decides what to do."""
    UNTIMED = "untimed"
    """It sleeps, and its time does not run."""
    TIMED = "timed"
    """It sleeps until its patience is over."""
    JUDGING = "judging"
    """Its time is up: it lets the event loop catch up, to see whether growth is late."""
    MAKING = "making"
    """An emergency object is being made for it."""
    REFUSED = "refused"
    """It sleeps until there is room for an emergency object."""
    BACKING_OFF = "backing off"
    """It sleeps, as the backend had no emergency object just now."""
    SERVED = "served"
    """It has what it needs."""
    FAILED = "failed"
    """Waiting longer makes no sense."""

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # as in `KM`


WAITS: dict[Wait, dict[Wait, str]] = {
    Wait.LOOKING: {
        Wait.SERVED: "all that it needs was handed over",
        Wait.FAILED: "the cache was closed, or a backend broke its contract",
        Wait.UNTIMED: "only a free can help, or its slab is being made",
        Wait.TIMED: "a slab is on its way, and not late",
        Wait.JUDGING: "its patience is over",
        Wait.MAKING: "growth is late, and there is room for emergency objects",
        Wait.REFUSED: "growth is late, and there is no room",
        Wait.BACKING_OFF: "growth is late, and the backend had none",
    },
    Wait.UNTIMED: {Wait.LOOKING: "woken by a free, a new grow, the end of its own, or an error"},
    Wait.TIMED: {Wait.LOOKING: "woken, or its patience is over"},
    Wait.JUDGING: {Wait.LOOKING: "growth is late, or was not after all"},
    Wait.REFUSED: {Wait.LOOKING: "woken by room, by a free, or by the end of the grow"},
    Wait.BACKING_OFF: {Wait.LOOKING: "woken, or the pause is over and it is the first in line"},
    Wait.MAKING: {
        Wait.SERVED: "they are made",
        Wait.LOOKING: "the backend had none, or something better came meanwhile",
    },
    Wait.SERVED: {},
    Wait.FAILED: {},
}


def go(state: Wait, to: Wait) -> Wait:
    """The next state of a caller that waits; raises `ImpossibleTransition` where the table has none."""
    if to not in WAITS[state]:
        raise ImpossibleTransition(f"a caller that is {state.value} cannot be {to.value} next")
    return to
