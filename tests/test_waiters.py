"""The order of those who wait."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab import KM
from aslab._kmem._alarms import Alarms
from aslab._kmem._clock import clock_of_this_loop, futures_of_this_loop
from aslab._kmem._waiters import Waiter, WaitQueue
from aslab._stats import Counters

from .helpers import Loop
from .support import settle

OPERATIONS = st.lists(st.tuples(st.sampled_from(["join", "leave", "pop"]), st.integers(0, 19)), max_size=150)
FLAGS = st.lists(st.sampled_from([KM.SLEEP, KM.PUSHPAGE]), min_size=20, max_size=20)


def a_waiter(flags: KM, ticket: int) -> Waiter[object]:
    """One that never sleeps."""
    return Waiter(Alarms(lambda: 0.0, asyncio.Future), flags, ticket, 1, Counters(), 0.0)


def a_sleeper() -> Waiter[object]:
    return Waiter(Alarms(clock_of_this_loop(), futures_of_this_loop()), KM.SLEEP, 0, 1, Counters(), 0.0)


def rank(waiter: Waiter[object]) -> tuple[bool, int]:
    return waiter.flags is not KM.PUSHPAGE, waiter.rank[1]


def pop(line: WaitQueue[object]) -> Waiter[object] | None:
    waiter = line.first
    assert waiter is None or line.leave(waiter)
    return waiter


@given(OPERATIONS, FLAGS)
def test_any_sequence_gives_the_order_of_a_sorted_list(operations: list[tuple[str, int]], flags: list[KM]) -> None:
    line: WaitQueue[object] = WaitQueue()
    waiters = [a_waiter(flag, ticket) for ticket, flag in enumerate(flags)]
    model: set[Waiter[object]] = set()
    for what, number in operations:
        waiter = waiters[number]
        if what == "join":
            line.join(waiter)
            model.add(waiter)
        elif what == "leave":
            line.leave(waiter)
            model.discard(waiter)
        else:
            first = min(model, key=rank, default=None)
            assert line.first is first
            assert pop(line) is first
            model.discard(first)
        assert len(line) == len(model)
        assert set(line) == model
    assert [pop(line) for _ in range(len(model))] == sorted(model, key=rank)
    assert pop(line) is None


def test_rejoining_keeps_the_old_place() -> None:
    line: WaitQueue[object] = WaitQueue()
    one, two, three = (a_waiter(KM.SLEEP, ticket) for ticket in range(3))
    for waiter in (one, two, three):
        line.join(waiter)
    line.leave(two)
    line.join(two)
    assert [pop(line) for _ in range(3)] == [one, two, three]


def test_joining_twice_is_joining_once() -> None:
    line: WaitQueue[object] = WaitQueue()
    waiter = a_waiter(KM.SLEEP, 0)
    line.join(waiter)
    line.join(waiter)
    assert pop(line) is waiter
    assert pop(line) is None


def test_leaving_without_a_place_changes_nothing() -> None:
    line: WaitQueue[object] = WaitQueue()
    line.leave(a_waiter(KM.SLEEP, 0))
    assert len(line) == 0


def test_those_who_join_and_leave_for_ever_leave_no_trace() -> None:
    line: WaitQueue[object] = WaitQueue()
    first = a_waiter(KM.SLEEP, 0)
    line.join(first)
    restless = [a_waiter(KM.SLEEP, ticket) for ticket in range(1, 11)]
    for _ in range(300):
        for waiter in restless:
            line.join(waiter)
        for waiter in restless:
            line.leave(waiter)
        assert len(line._heap) <= 2 * 11 + 64
    assert pop(line) is first


def test_the_line_may_be_left_while_it_is_walked() -> None:
    line: WaitQueue[object] = WaitQueue()
    for ticket in range(3):
        line.join(a_waiter(KM.SLEEP, ticket))
    for waiter in line:
        line.leave(waiter)
    assert len(line) == 0


async def sleep(waiter: Waiter[object], until: float) -> None:
    await waiter.suspend(until)


@pytest.mark.anyio
class TestWaiting:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    async def test_a_wait_ends_at_its_time_and_not_before(self) -> None:
        waiter = a_sleeper()
        begin = anyio.current_time()
        await waiter.suspend(begin + 3)
        assert anyio.current_time() - begin == pytest.approx(3)
        assert waiter.counters.waits == 1

    @pytest.mark.parametrize("until", [1000.0, math.inf])
    async def test_wake_ends_a_wait_at_once(self, until: float) -> None:
        waiter = a_sleeper()
        begin = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleep, waiter, until)
            await settle()
            waiter.wake()
        assert anyio.current_time() == begin

    async def test_wake_of_one_who_does_not_wait_is_harmless(self) -> None:
        waiter = a_sleeper()
        waiter.wake()
        begin = anyio.current_time()
        await waiter.suspend(begin + 1)
        assert anyio.current_time() - begin == pytest.approx(1)


@pytest.mark.anyio
async def test_what_is_given_just_before_the_wait_begins_ends_it_at_once() -> None:
    """As by a finaliser, in the moment between the last look and the wait."""
    given, failed = a_sleeper(), a_sleeper()
    given.give([])
    failed.fail(ValueError())
    with anyio.fail_after(1):
        await given.suspend(math.inf)
        await failed.suspend(math.inf)


def test_a_waiter_that_leaves_costs_no_more_where_very_many_have_left_the_middle_of_the_line() -> None:
    queue: WaitQueue[object] = WaitQueue()
    everybody = [a_waiter(KM.SLEEP, number) for number in range(2_000)]
    for waiter in everybody:
        queue.join(waiter)
    steps, most = 0, 0

    def count(frame: Any, event: str, _: object) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    try:
        for waiter in everybody[1:1_800]:
            steps = 0
            sys.settrace(count)
            queue.leave(waiter)
            sys.settrace(before)
            most = max(most, steps)
    finally:
        sys.settrace(before)
    assert most < 100
    assert queue.first is everybody[0]
    queue.leave(everybody[0])
    assert queue.first is everybody[1_800]
