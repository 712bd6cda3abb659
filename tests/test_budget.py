"""The limit over all caches: what is held, promised and set aside, and who comes first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from aslab._fastpath import Magazine
from aslab._kmem._account import Account, Claim, Tenant
from aslab._kmem._budget import Budget
from aslab._kmem._wakeup import Wakeup

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    with Wakeup() as made:
        yield made


class Nobody:
    """A pool that does nothing when it is asked."""

    waiting_since: float | None = None
    magazine: Magazine[Any] = Magazine(2)

    def ask(self) -> bool:
        return False


def account(budget: Budget, slab_size: int, guaranteed: int = 0, claim: Claim | None = None) -> Account:
    """A pool's account, with a caller that waits or none."""
    made = Account(slab_size, guaranteed, cast("Tenant", Nobody()))
    budget.open(made)
    if claim is not None:
        budget.note(made, claim)
    return made


def hold(budget: Budget, one: Account, slabs: int = 1) -> None:
    for _ in range(slabs):
        assert budget.try_charge(one)
        budget.commit(one)


async def test_without_a_limit_nothing_is_full(wakeup: Wakeup) -> None:
    budget = Budget(None, wakeup)
    one = account(budget, 2**60)
    hold(budget, one)
    assert not budget.full(one)
    assert not budget.yields(one)
    assert (budget.used, one.promised, budget.unpromised) == (2**60, 0, None)


async def test_a_promise_is_kept_up_to_the_last_byte_and_refused_beyond(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    large, small, tiny = account(budget, 60), account(budget, 40), account(budget, 1)
    assert budget.try_charge(large)
    assert budget.try_charge(small)
    assert not budget.try_charge(tiny)
    assert (budget.used, tiny.promised) == (0, 0)


async def test_what_is_promised_or_broken_blocks_others_but_is_no_limit_reached(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    stuck, other = account(budget, 100), account(budget, 1)
    assert budget.try_charge(stuck)
    assert not budget.try_charge(other)
    assert not budget.full(other)
    budget.cancel(stuck)
    assert budget.try_charge(other)


async def test_what_is_held_is_the_limit_reached_until_it_is_on_its_way_back(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    one, other = account(budget, 60), account(budget, 41)
    hold(budget, one)
    assert budget.missing(other) == 1
    budget.give_back(one)
    assert not budget.full(other), "room is on its way"
    assert not budget.try_charge(other), "it has not arrived"
    budget.uncharge(one)
    assert budget.try_charge(other)


async def test_what_one_was_guaranteed_nobody_else_may_have(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    one, other = account(budget, 10, guaranteed=30), account(budget, 10)
    hold(budget, other, 7)
    assert budget.full(other)
    assert not budget.try_charge(other)
    assert not budget.full(one)
    hold(budget, one, 3)
    assert budget.full(one), "beyond it, it is one of many"
    assert budget.unpromised == 70


async def test_room_set_aside_shrinks_as_it_is_used_and_goes_with_its_pool(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    one, other = account(budget, 10, guaranteed=30), account(budget, 10)
    hold(budget, one, 3)
    hold(budget, other, 7)
    assert budget.full(other)
    budget.give_back(one)
    budget.uncharge(one)
    assert budget.full(other), "set aside again"
    budget.close(one)
    assert not budget.full(other)


async def test_closed_account_counts_until_its_last_slab_is_back_and_is_then_forgotten(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    one = account(budget, 100)
    hold(budget, one)
    budget.close(one)
    assert budget.used == 100
    budget.give_back(one)
    budget.uncharge(one)
    assert budget.used == 0


async def test_who_came_later_yields_to_who_waits_longer_and_only_then(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    older, younger, nobody = (
        account(budget, 90, claim=(1, 5)),
        account(budget, 10, claim=(1, 6)),
        account(budget, 10),
    )
    assert budget.yields(younger)
    budget.note(younger, (1, 7))
    before = budget.asking
    budget.note(older, None)
    assert (before, budget.asking) == (False, True), "they ask again, soon, as another comes first"
    budget.note(older, (1, 5))
    assert budget.yields(nobody), "growth in advance comes last"
    assert not budget.yields(older)
    account(budget, 10, claim=(0, 7))
    assert budget.yields(older), "PUSHPAGE comes before SLEEP"


async def test_nobody_yields_what_was_guaranteed(wakeup: Wakeup) -> None:
    budget = Budget(100, wakeup)
    account(budget, 90, claim=(1, 5))
    younger = account(budget, 10, guaranteed=10, claim=(1, 6))
    assert not budget.yields(younger)
    hold(budget, younger)
    assert budget.yields(younger)
