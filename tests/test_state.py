"""The table of marks: every event in every state that can come about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aslab import ImpossibleTransition
from aslab._kmem._state import NONE, TABLE, Mark, Marks, fire, reachable, words
from aslab._kmem._waiters import WAITS, Wait, go

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


def as_mermaid() -> str:
    """The diagram of a caller that waits, and its table."""
    names = {state: state.value.replace(" ", "_") for state in Wait}
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state.value}" as {name}' for state, name in names.items()]
    lines.append(f"    [*] --> {names[Wait.LOOKING]}")
    for state, ways in WAITS.items():
        lines += [f"    {names[state]} --> {names[to]}" for to in ways]
        if not ways:
            lines.append(f"    {names[state]} --> [*]")
    lines += ["```", "", "| from | to | when |", "| --- | --- | --- |"]
    lines += [
        f"| {state.value} | {to.value} | {why} |" for state, ways in WAITS.items() for to, why in ways.items()
    ]
    return "\n".join(lines) + "\n"


def generated(name: str) -> str:
    """What docs/states.md holds under that name."""
    found = re.search(rf"<!-- generated: {re.escape(name)} -->\n(.*?)<!-- end -->", DOCS.read_text(), re.DOTALL)
    assert found is not None
    return found[1].strip("\n") + "\n"


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
    assert generated("from _state.TABLE") == as_markdown()
    assert generated("from _waiters.WAITS") == as_mermaid()


def test_a_caller_that_waits_can_reach_each_state_and_always_an_end() -> None:
    reached, todo = {Wait.LOOKING}, [Wait.LOOKING]
    while todo:
        for to in WAITS[todo.pop()]:
            if to not in reached:
                reached.add(to)
                todo.append(to)
    assert reached == set(Wait) == set(WAITS)
    assert [state for state, ways in WAITS.items() if not ways] == [Wait.SERVED, Wait.FAILED]
    sleeping = set(Wait) - {Wait.LOOKING, Wait.SERVED, Wait.FAILED}
    assert all(Wait.LOOKING in WAITS[state] for state in sleeping), "whoever sleeps or tries looks again"


@pytest.mark.parametrize("state", Wait)
@pytest.mark.parametrize("to", Wait)
def test_a_caller_goes_where_the_table_says_and_nowhere_else(state: Wait, to: Wait) -> None:
    if to in WAITS[state]:
        assert go(state, to) is to
    else:
        with pytest.raises(ImpossibleTransition, match=f"{state.value} cannot be {to.value} next"):
            go(state, to)
