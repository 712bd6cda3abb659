"""The table of marks: every event in every state that can come about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aslab import ImpossibleTransition
from aslab._kmem._state import NONE, TABLE, Mark, Marks, fire, reachable, words

G, D, R, X = Mark.GROWING, Mark.DEADLOCKED, Mark.REAPING, Mark.DESTROY
EVENTS = ["grow", "late", "grown", "reap", "reaped", "close"]
STATES = [NONE, G, G | D, R, G | R, G | D | R, X, G | X, G | D | X, R | X, G | R | X, G | D | R | X]
DOCS = Path(__file__).parent.parent / "docs" / "states.md"


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


def expected(state: Mark, event: str) -> Mark | None:
    """The rules again, in another form than the table's; None where the event may not happen."""
    match event:
        case "grow" if state == NONE:
            return G
        case "late" if state in (G, G | R):
            return state | D
        case "grown" if G in state:
            return state & (R | X)
        case "reap" if R not in state and X not in state:
            return state | R
        case "reaped" if R in state:
            return state & ~R
        case "close" if X not in state:
            return state | X
        case _:
            return None


def test_the_reachable_states_are_these_twelve() -> None:
    assert set(reachable()) == set(STATES)


def test_the_events_are_these_six() -> None:
    assert list(TABLE) == EVENTS


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES, ids=words)
def test_every_event_in_every_state_does_what_the_rules_say_or_is_refused(state: Mark, event: str) -> None:
    marks = Marks()
    marks.state = state
    after = expected(state, event)
    if after is None:
        with pytest.raises(
            ImpossibleTransition, match=re.escape(f"event {event!r} in state {words(state)}: needs")
        ):
            marks.fire(event)
        assert marks.state == state
        assert event not in reachable()[state]
    else:
        marks.fire(event)
        assert marks.state == after == fire(state, event)
        assert reachable()[state][event] == after


def test_deadlocked_never_comes_about_without_growing() -> None:
    assert all(G in state for state in reachable() if D in state)


def test_an_unknown_event_is_an_error_and_changes_nothing() -> None:
    marks = Marks()
    with pytest.raises(KeyError):
        marks.fire("explode")
    assert marks.state == NONE


def test_bit_numbers_are_spls() -> None:
    bits = {mark.name: mark.value.bit_length() - 1 for mark in Mark}
    assert bits == {"DEADLOCKED": 14, "GROWING": 15, "REAPING": 16, "DESTROY": 17}


def test_marks_say_what_they_are() -> None:
    marks = Marks()
    assert repr(marks) == "-"
    marks.fire("grow")
    marks.fire("late")
    assert repr(marks) == "DEADLOCKED GROWING"
    assert G in marks
    assert R not in marks


def test_the_docs_hold_the_generated_tables_verbatim() -> None:
    found = re.search(
        r"<!-- generated: aslab\._state\.as_markdown\(\) -->\n(.*)<!-- end -->", DOCS.read_text(), re.DOTALL
    )
    assert found is not None
    assert found[1].strip("\n") + "\n" == as_markdown()
