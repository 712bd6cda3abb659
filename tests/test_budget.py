"""The limit over all caches: what is held, and what is promised to grows under way."""

from __future__ import annotations

from aslab._budget import Budget


def test_without_a_limit_nothing_is_full() -> None:
    budget = Budget(None)
    assert budget.promise(2**60)
    budget.keep(2**60)
    assert not budget.full(2**60)
    assert (budget.used, budget.promised) == (2**60, 0)


def test_a_promise_is_kept_up_to_the_last_byte_and_refused_beyond() -> None:
    budget = Budget(100)
    assert budget.promise(60)
    assert not budget.promise(41)
    assert budget.promise(40)
    assert (budget.used, budget.promised) == (0, 100)


def test_what_is_promised_blocks_others_but_is_no_limit_reached() -> None:
    budget = Budget(100)
    assert budget.promise(100)
    assert not budget.promise(1)
    assert not budget.full(100)


def test_what_is_held_is_the_limit_reached() -> None:
    budget = Budget(100)
    assert budget.promise(60)
    budget.keep(60)
    assert (budget.used, budget.promised) == (60, 0)
    assert not budget.full(40)
    assert budget.full(41)


def test_a_refused_promise_takes_nothing() -> None:
    budget = Budget(100)
    assert not budget.promise(101)
    assert budget.promise(100)
