"""Figures: what becomes of the values, which event is named, and how values are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab.lab._scenario._metrics import METRICS, Metric, Watch, Watches, format_seconds, in_words
from aslab.lab._simulation._log import Event


def event(time: float = 1.0, who: str = "writer-0", what: str = "got", detail: str = "io") -> Event:
    return Event(time, who, what, detail)


def fed(what: str, values: list[float], at_most: float | None = None, at_least: float | None = None) -> Watch:
    """A watch after these values, one a second."""
    watch = Watch(what, at_most=at_most, at_least=at_least)
    for number, value in enumerate(values):
        watch.feed(value, event(float(number)))
    return watch


BY_HOW = {
    "highest": ("emergency_max", 7.0),
    "lowest": ("lowest_free", 2.0),
    "sum": ("allocations", 14.0),
    "last": ("kicked", 5.0),
}


@pytest.mark.parametrize("how", BY_HOW)
def test_values_become_the_highest_the_lowest_their_sum_or_the_last(how: str) -> None:
    what, expected = BY_HOW[how]
    assert METRICS[what].how == how
    assert fed(what, [2, 7, 5]).value == expected


@pytest.mark.parametrize("what", METRICS)
def test_without_values_a_figure_is_0(what: str) -> None:
    assert Watch(what, at_most=None, at_least=None).value == 0


def test_a_lowest_value_is_not_0_because_nothing_came_before_it() -> None:
    assert fed("lowest_free", [100]).value == 100


@pytest.mark.parametrize("what", ["emergency_max", "allocations", "kicked", "lowest_free"])
def test_a_bound_holds_at_the_bound_itself(what: str) -> None:
    assert fed(what, [5], at_most=5, at_least=5).verdict().passed


@pytest.mark.parametrize(("what", "second"), [("emergency_max", 1), ("allocations", 2), ("kicked", 1)])
def test_the_first_event_that_passes_the_upper_bound_is_named(what: str, second: int) -> None:
    verdict = fed(what, [3, 6, 1, 9], at_most=9 if what == "allocations" else 5).verdict()
    assert verdict.broken_by == f"at {second:.6f} s by 'writer-0 got io'"
    assert not verdict.passed


def test_a_bound_that_was_passed_stays_broken() -> None:
    assert fed("kicked", [9, 0], at_most=5).verdict().broken_by == "at 0.000000 s by 'writer-0 got io'"


def test_a_lowest_value_passes_its_lower_bound_at_an_event() -> None:
    verdict = fed("lowest_free", [100, 40, 60], at_least=50).verdict()
    assert verdict.broken_by == "at 1.000000 s by 'writer-0 got io'"


def test_a_figure_that_must_be_reached_is_judged_at_the_end() -> None:
    watch = fed("allocations", [1, 1], at_least=3)
    assert watch.verdict().broken_by == "at the end: it was never reached"
    watch = fed("allocations", [1, 1, 1], at_least=3)
    assert watch.verdict().passed


def test_the_words_of_a_verdict() -> None:
    watch = Watch("longest_wait", at_most=0.15, at_least=0.001, tasks="writer", cache="io")
    watch.feed(0.0405, event(2.5))
    verdict = watch.verdict()
    assert verdict.expected == "longest_wait at least 1 ms at most 150 ms of tasks writer of cache io"
    assert verdict.came == "40.5 ms"
    assert verdict.broken_by is None
    assert fed("deadlocks", [1], at_most=0).verdict().expected == "deadlocks at most 0"


def test_an_event_without_a_detail_is_named_without_a_blank() -> None:
    watch = Watch("deadlocks", at_most=0, at_least=None)
    watch.feed(1, Event(0.5, "io", "late"))
    assert watch.verdict().broken_by == "at 0.500000 s by 'io late'"


# -- who watches what


def many() -> Watches:
    narrowed = [(None, None), ("writer", None), (None, "io"), ("writer", "io"), ("reader", "io")]
    return Watches([Watch("allocations", at_most=99, at_least=0, tasks=t, cache=c) for t, c in narrowed])


def test_a_watch_gets_the_values_of_its_tasks_and_its_cache_alone() -> None:
    watches = many()
    for tasks, cache, count in (("writer", "io", 1), ("writer", "meta", 10), ("reader", "io", 20)):
        watches.feed("allocations", count, event(), tasks, cache)
    assert [verdict.came for verdict in watches.verdicts()] == ["31", "11", "21", "1", "20"]
    assert watches.figures()["allocations"] == 31


def test_a_level_is_fed_for_each_cache_and_apart_for_the_whole() -> None:
    levels = [what for what, metric in METRICS.items() if metric.level]
    assert levels == ["emergency_max"]
    watches = Watches([Watch("emergency_max", at_most=9, at_least=0, cache=cache) for cache in (None, "io", "b")])
    watches.feed("emergency_max", 3, event(), cache="io")
    watches.feed("emergency_max", 2, event(), cache="b")
    watches.feed("emergency_max", 5, event())
    assert [verdict.came for verdict in watches.verdicts()] == ["5", "3", "2"]
    assert watches.figures()["emergency_max"] == 5


def test_a_value_of_one_figure_is_nothing_to_another() -> None:
    watches = Watches([])
    watches.feed("deadlocks", 1, event(), cache="io")
    assert {what: value for what, value in watches.figures().items() if value} == {"deadlocks": 1}
    assert watches.verdicts() == ()


def test_every_figure_has_words_and_is_narrowed_only_by_tasks_and_cache() -> None:
    for metric in METRICS.values():
        assert metric.about
        assert set(metric.by) <= {"tasks", "cache"}


# -- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (1, "1 s"),
        (1.5, "1.5 s"),
        (3600, "3600 s"),
        (0.15, "150 ms"),
        (0.001, "1 ms"),
        (0.0404, "40.4 ms"),
        (4e-5, "40 µs"),
        (1.5e-7, "0.15 µs"),
        (-0.25, "-250 ms"),
    ],
)
def test_seconds_are_written_with_a_unit_that_suits(value: float, text: str) -> None:
    assert format_seconds(value) == text


UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


@given(st.floats(1e-9, 1e6))
def test_seconds_that_were_written_are_read_as_the_same_to_six_digits(value: float) -> None:
    number, unit = format_seconds(value).split()
    assert float(number) * UNITS[unit] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (Metric("sum", "", time=False), 3.0, "3"),
        (Metric("sum", "", time=False), 1234567.0, "1234567"),
        (Metric("sum", "", time=True), 0.25, "250 ms"),
    ],
)
def test_a_figure_is_written_as_a_count_or_a_time(metric: Metric, value: float, text: str) -> None:
    assert metric.format(value) == text


def test_only_figures_that_are_not_0_are_put_into_words() -> None:
    figures = dict.fromkeys(METRICS, 0.0) | {"longest_wait": 0.1, "deadlocks": 2.0}
    assert in_words(figures) == {"longest_wait": "100 ms", "deadlocks": "2"}
