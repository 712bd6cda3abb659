"""What a cache has needed lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aslab._kmem._working_set import WorkingSet


def test_what_was_needed_since_a_time_is_the_highest_peak_of_intervals_that_ended_after_it() -> None:
    demand = WorkingSet(15)
    for now, peak in ((5, 30), (10, 20), (15, 10)):
        demand.roll(now, peak)
    assert [demand.needed(since) for since in (4, 5, 10, 15)] == [30, 20, 10, 0]


def test_what_is_older_than_the_ageing_time_is_forgotten() -> None:
    demand = WorkingSet(15)
    demand.roll(0, 100)
    demand.roll(14, 1)
    assert demand.needed(-1) == 100
    demand.roll(15, 1)
    assert demand.needed(-1) == 1


def test_growing_again_within_the_ageing_time_makes_it_cautious_and_is_counted_once() -> None:
    demand = WorkingSet(15)
    demand.roll(1, 50)
    demand.roll(6, 3)
    assert demand.needed(5) == 3
    demand.gave_back(6)
    demand.grows(20)
    demand.grows(20.5)
    assert (demand.cautious, demand.regrets) == (True, 1)
    demand.roll(16, 50)
    demand.roll(21, 3)
    assert demand.needed(20) == 50


def test_growing_later_is_no_regret() -> None:
    demand = WorkingSet(15)
    demand.gave_back(0)
    demand.grows(15)
    assert (demand.cautious, demand.regrets) == (False, 0)


def test_caution_ends_when_slabs_could_go_all_the_same() -> None:
    demand = WorkingSet(15)
    demand.gave_back(0)
    demand.grows(1)
    demand.gave_back(100)
    assert not demand.cautious


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 100)), max_size=30), st.floats(0, 300))
def test_it_is_what_a_plain_list_of_all_intervals_gives(steps: list[tuple[float, int]], since: float) -> None:
    demand, now = WorkingSet(15), 0.0
    every: list[tuple[float, int]] = []
    for pause, peak in steps:
        now += pause
        demand.roll(now, peak)
        every.append((now, peak))
    known = [peak for end, peak in every if end > since and end > now - 15]
    assert demand.needed(since) == max(known, default=0)
