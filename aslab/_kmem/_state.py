"""The marks a cache can carry, and the one table of how they change.

Four marks, with SPL's bit numbers, because ``/proc/spl/kmem/slab`` prints them:

    GROWING     a slab has been asked for and has not come yet
    DEADLOCKED  somebody waited for that slab for too long: callers stop waiting for it
    REAPING     free slabs are on their way back: nothing grows meanwhile
    DESTROY     the cache is closing or closed: nothing starts any more

Everything that happens to a cache is an event of `TABLE`. The code goes through `fire`, the tests
walk all states that the table can reach, and docs/states.md is written from it by `as_markdown`.
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


def as_markdown() -> str:
    """Both tables of docs/states.md: the events, and every reachable state."""
    lines = [
        "| event | needs | forbids | sets | clears | what happened |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for event, rule in TABLE.items():
        marks = " | ".join(words(marks) for marks in rule[:4])
        lines.append(f"| `{event}` | {marks} | {rule.why} |")
    lines += ["", "| state | " + " | ".join(f"`{event}`" for event in TABLE) + " |"]
    lines.append("| --- |" + " --- |" * len(TABLE))
    for state, moves in sorted(reachable().items(), key=lambda item: item[0].value):
        cells = (words(moves[event]) if event in moves else "·" for event in TABLE)
        lines.append(f"| {words(state)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
