"""The marks of a cache: a state machine.

There are four, with SPL's bit numbers, because ``/proc/spl/kmem/slab`` prints them:

    GROWING     a slab has been asked for and has not arrived yet
    DEADLOCKED  a caller has waited too long for that slab: callers stop waiting for it
    REAPING     free slabs are on their way back: nothing grows meanwhile
    DESTROY     the cache is closing or closed: nothing new starts

They change only by the events of `TABLE`. The code goes through `Marks.fire`, the tests walk all states that the
table can reach, and a test keeps docs/states.md equal to it. The other state machine, a waiting caller, is in
_waiters.py.

Always true: they are in a state that the table can reach.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

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
        "a slab is asked for; one at a time, and not while slabs are given back",
    ),
    "late": Rule(
        Mark.GROWING,
        Mark.DEADLOCKED | Mark.DESTROY,
        Mark.DEADLOCKED,
        NONE,
        "a caller's patience ran out while growing; counted once an episode",
    ),
    "grown": Rule(
        Mark.GROWING,
        NONE,
        NONE,
        Mark.GROWING | Mark.DEADLOCKED,
        "the grow ended, with or without a slab; normal operation resumes",
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
    """Return the state after ``event``.

    :raises ImpossibleTransition: if the table does not allow the event in this state
    """
    rule = TABLE[event]
    if state & rule.needs != rule.needs or state & rule.forbids:
        raise ImpossibleTransition(
            f"event {event!r} in state {words(state)}: needs {words(rule.needs)}, forbids {words(rule.forbids)}"
        )
    return (state | rule.sets) & ~rule.clears


def words(state: Mark) -> str:
    """Return the names of the marks that are set, or ``-``."""
    return " ".join(mark.name or "" for mark in Mark if mark in state) or "-"


def reachable() -> dict[Mark, dict[str, Mark]]:
    """Return every state reachable from a new cache, with the events it allows and where they lead."""
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


_BITS = {event: tuple(marks.value for marks in rule[:4]) for event, rule in TABLE.items()}
"""The table as ints; see `Marks.bits`."""


class Marks:
    """The marks of one cache, changed only by events."""

    __slots__ = ("bits", "observer")

    def __init__(self) -> None:
        self.bits: int = NONE.value
        """`state` as an int: operators of enum.Flag take microseconds, too long where every caller looks."""
        self.observer: Callable[[str, Mark, Mark], object] | None = None
        """Called after each event with its name and the states before and after."""

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
        """Go to the state after ``event``.

        :raises ImpossibleTransition: if the table does not allow the event; the state stays
        """
        needs, forbids, sets, clears = _BITS[event]
        before = self.bits
        if before & needs != needs or before & forbids:
            fire(self.state, event)  # it says what is wrong
        self.bits = (before | sets) & ~clears
        if self.observer is not None:
            self.observer(event, Mark(before), self.state)
