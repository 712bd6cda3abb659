"""The order of those who wait, and when they are woken."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab import KM
from aslab._fastpath import Magazine
from aslab._kmem._clock import clock_of_this_loop, futures_of_this_loop
from aslab._kmem._line import Waiters, WaitQueue
from aslab._kmem._waiters import Expired, Waiter
from aslab._kmem._wakeup import AT_ONCE, Alarms
from aslab._stats import Counters

from .helpers import Loop
from .support import settle

OPERATIONS = st.lists(st.tuples(st.sampled_from(["join", "leave", "pop"]), st.integers(0, 19)), max_size=150)
FLAGS = st.lists(st.sampled_from([KM.SLEEP, KM.PUSHPAGE]), min_size=20, max_size=20)


Queue = WaitQueue[object] | Waiters[object]


def never() -> Alarms:
    """Alarms that nobody waits for."""
    return Alarms(lambda: 0.0, asyncio.Future)


def a_waiter(flags: KM, ticket: int, alarms: Alarms | None = None) -> Waiter[object]:
    """One that never sleeps, unless ``alarms`` wake it."""
    return Waiter(alarms or never(), flags, ticket, 1, Counters(), 0.0)


def a_line() -> Waiters[object]:
    return Waiters(Magazine(8), never())


QUEUES = pytest.mark.parametrize("queue", [WaitQueue, a_line])


def rank(waiter: Waiter[object]) -> tuple[bool, int]:
    return waiter.flags is not KM.PUSHPAGE, waiter.rank[1]


def pop(line: Queue) -> Waiter[object] | None:
    waiter = line.first
    assert waiter is None or line.leave(waiter)
    return waiter


@QUEUES
@given(operations=OPERATIONS, flags=FLAGS)
def test_any_sequence_gives_the_order_of_a_sorted_list(
    queue: Callable[[], Queue], operations: list[tuple[str, int]], flags: list[KM]
) -> None:
    line = queue()
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


@QUEUES
def test_rejoining_keeps_the_old_place(queue: Callable[[], Queue]) -> None:
    line = queue()
    one, two, three = (a_waiter(KM.SLEEP, ticket) for ticket in range(3))
    for waiter in (one, two, three):
        line.join(waiter)
    line.leave(two)
    line.join(two)
    assert [pop(line) for _ in range(3)] == [one, two, three]


@QUEUES
def test_joining_twice_is_joining_once(queue: Callable[[], Queue]) -> None:
    line = queue()
    waiter = a_waiter(KM.SLEEP, 0)
    line.join(waiter)
    line.join(waiter)
    assert pop(line) is waiter
    assert pop(line) is None


@QUEUES
def test_leaving_without_a_place_changes_nothing(queue: Callable[[], Queue]) -> None:
    line = queue()
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


@QUEUES
def test_the_line_may_be_left_while_it_is_walked(queue: Callable[[], Queue]) -> None:
    line = queue()
    for ticket in range(3):
        line.join(a_waiter(KM.SLEEP, ticket))
    for waiter in line:
        line.leave(waiter)
    assert len(line) == 0


@asynccontextmanager
async def ringing() -> AsyncIterator[Alarms]:
    alarms = Alarms(clock_of_this_loop(), futures_of_this_loop())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alarms.run)
        yield alarms
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
class TestWaiting:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    async def test_a_wait_ends_at_its_time_and_not_before(self) -> None:
        async with ringing() as alarms:
            waiter = a_waiter(KM.SLEEP, 0, alarms)
            begin = anyio.current_time()
            await waiter.suspend(begin + 3)
            assert anyio.current_time() - begin == pytest.approx(3)
            assert waiter.counters.waits == 1
            waiter.wake()  # harmless, as it does not wait
            await waiter.suspend(begin + 5)
            assert anyio.current_time() - begin == pytest.approx(5)

    @pytest.mark.parametrize("until", [1000.0, math.inf])
    async def test_wake_ends_a_wait_at_once(self, until: float) -> None:
        async with ringing() as alarms, anyio.create_task_group() as tasks:
            waiter = a_waiter(KM.SLEEP, 0, alarms)
            begin = anyio.current_time()

            async def sleep() -> None:
                await waiter.suspend(until)

            tasks.start_soon(sleep)
            await settle()
            waiter.wake()
            await settle()
            assert anyio.current_time() == begin
        assert not tasks.cancel_scope.cancel_called

    async def test_times_are_kept_whatever_was_set_before(self) -> None:
        ends: dict[str, float] = {}
        async with ringing() as alarms, anyio.create_task_group() as tasks:
            begin = anyio.current_time()

            async def sleep(name: str, *until: float) -> None:
                waiter = a_waiter(KM.SLEEP, 0, alarms)
                for time in until:
                    await waiter.suspend(begin + time)
                    ends.setdefault(name, anyio.current_time() - begin)

            tasks.start_soon(sleep, "late", 100)
            await settle()
            tasks.start_soon(sleep, "early", 1)
            woken = a_waiter(KM.SLEEP, 0, alarms)
            woken.suspend(begin + 2)
            alarms.set(woken, begin + 50)  # the entry of before is too early, and put back
            await anyio.sleep(10)
            assert not woken.resumes
            await woken.suspend(begin + 50)
            ends["put back"] = anyio.current_time() - begin
        assert ends == {"early": pytest.approx(1), "put back": pytest.approx(50), "late": pytest.approx(100)}

    async def test_at_its_deadline_a_waiter_fails_unless_it_has_been_served(self) -> None:
        async with ringing() as alarms:
            begin = anyio.current_time()
            late, served = (a_waiter(KM.SLEEP, ticket, alarms) for ticket in range(2))
            late.deadline = served.deadline = begin + 1
            served.suspend(math.inf)
            served.slots = []
            await late.suspend(begin + 5)
            await anyio.sleep(1)
            assert isinstance(late.error, Expired)
            assert served.error is None

    async def test_very_many_that_are_due_at_once_are_woken_a_few_at_a_time(self) -> None:
        async with ringing() as alarms:
            waiters = [a_waiter(KM.SLEEP, ticket, alarms) for ticket in range(4 * AT_ONCE)]
            due = anyio.current_time() + 1
            for waiter in waiters:
                waiter.suspend(due, idle=True)
            await anyio.sleep(1)
            seen = [0]
            while seen[-1] < len(waiters):
                await anyio.lowlevel.checkpoint()
                seen.append(sum(waiter.resumes for waiter in waiters))
            assert max(after - before for before, after in itertools.pairwise(seen)) <= 2 * AT_ONCE
            assert len(seen) > 2

    async def test_those_sent_away_in_turns_are_all_that_waited_then_and_no_others(self) -> None:
        async with ringing() as alarms:
            line: Waiters[object] = Waiters(Magazine(8), alarms)
            waiters = [a_waiter(KM.SLEEP, ticket, alarms) for ticket in range(3 * AT_ONCE + 1)]
            for waiter in waiters[:-1]:
                line.join(waiter)
            line.send_away(ValueError())
            assert [bool(waiter.error) for waiter in waiters] == [True] * AT_ONCE + [False] * (2 * AT_ONCE + 1)
            line.leave(waiters[AT_ONCE])  # where the walk goes on
            line.join(waiters[-1])
            await settle()
            failed = [waiter.error is not None for waiter in waiters]
            assert failed == [True] * AT_ONCE + [False] + [True] * (2 * AT_ONCE - 1) + [False]


def test_a_walk_that_is_asked_for_meanwhile_comes_to_the_last_and_begins_again() -> None:
    line = a_line()
    for ticket in range(3 * AT_ONCE):
        line.join(a_waiter(KM.SLEEP, ticket))
    visits: list[int] = []

    def visit(waiter: Waiter[object]) -> bool:
        visits.append(waiter.rank[1])
        return True

    steps: list[Any] = []
    line._alarms.in_turns = steps.append  # type: ignore[method-assign, assignment]
    line.walk(visit, "a name")
    line.walk(visit, "a name")
    for _ in steps[0]:
        pass
    once = list(range(3 * AT_ONCE))
    assert visits == [*once[:AT_ONCE], 0, *once[AT_ONCE:], *once]
    assert not line._walks


def test_those_who_set_times_and_leave_for_ever_leave_no_trace() -> None:
    alarms = never()
    for number in range(3_000):
        waiter = a_waiter(KM.SLEEP, number, alarms)
        alarms.set(waiter, 1000.0 + number)
        alarms.forget(waiter)
    left = alarms._heap + alarms._old
    assert len(left) <= 2 * 64
    assert not any(entry[-1] for entry in left), "what it was given stays in memory"


@pytest.mark.anyio
async def test_what_is_given_just_before_the_wait_begins_ends_it_at_once() -> None:
    """As by a finaliser, in the moment between the last look and the wait."""
    alarms = Alarms(clock_of_this_loop(), futures_of_this_loop())
    given, failed = (a_waiter(KM.SLEEP, ticket, alarms) for ticket in range(2))
    given.give([])
    failed.fail(ValueError())
    with anyio.fail_after(60):
        await given.suspend(math.inf)
        await failed.suspend(math.inf)


@QUEUES
def test_a_waiter_that_leaves_costs_no_more_where_very_many_have_left_the_middle_of_the_line(
    queue: Callable[[], Queue],
) -> None:
    line = queue()
    everybody = [a_waiter(KM.SLEEP, number) for number in range(2_000)]
    for waiter in everybody:
        line.join(waiter)
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
            line.leave(waiter)
            sys.settrace(before)
            most = max(most, steps)
    finally:
        sys.settrace(before)
    assert most < 100
    assert line.first is everybody[0]
    line.leave(everybody[0])
    assert line.first is everybody[1_800]
