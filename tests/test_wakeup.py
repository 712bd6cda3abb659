"""Waking the event loop from anywhere, in real time."""

from __future__ import annotations

import threading

import anyio
import pytest
from anyio import to_thread

from aslab._kmem._wakeup import UrgentWork, Wakeup, WorkQueue

from .support import settle, start

pytestmark = pytest.mark.anyio


async def test_wake_up_from_a_thread_wakes_the_waiter() -> None:
    with Wakeup() as wakeup:
        async with anyio.create_task_group() as tasks:
            heard = anyio.Event()

            async def waiter() -> None:
                await wakeup.wait()
                heard.set()

            tasks.start_soon(waiter)
            await settle(3)
            assert not heard.is_set()
            thread = threading.Thread(target=wakeup.wake)
            thread.start()
            with anyio.fail_after(60):
                await heard.wait()
            thread.join()


async def test_wake_up_from_the_loops_own_thread_wakes_the_waiter() -> None:
    with Wakeup() as wakeup:
        wakeup.wake()
        with anyio.fail_after(60):
            await wakeup.wait()


async def test_many_wake_ups_are_one() -> None:
    with Wakeup() as wakeup:
        for _ in range(100_000):  # more bytes than a socket pair takes, if each were one
            wakeup.wake()
        with anyio.fail_after(60):
            await wakeup.wait()
        with anyio.move_on_after(0.002) as scope:
            await wakeup.wait()
        assert scope.cancelled_caught, "one wait has heard them all"


async def test_a_wake_up_after_a_wait_is_heard_again() -> None:
    with Wakeup() as wakeup:
        for _ in range(3):
            wakeup.wake()
            with anyio.fail_after(60):
                await wakeup.wait()


async def test_a_cancelled_wait_loses_no_wake_up() -> None:
    with Wakeup() as wakeup:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await wakeup.wait()
        assert scope.cancelled_caught
        wakeup.wake()
        with anyio.fail_after(60):
            await wakeup.wait()


async def test_no_work_is_missed_however_threads_wake() -> None:
    """Each thread puts its work in place, then wake_ups; the loop looks after each wake-up."""
    done: list[int] = []
    with Wakeup() as wakeup:

        def work() -> None:
            for number in range(500):
                done.append(number)
                wakeup.wake()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        with anyio.fail_after(60):
            seen = 0
            while seen < 1500:
                await wakeup.wait()
                seen = len(done)
        for thread in threads:
            await to_thread.run_sync(thread.join)


async def test_wake_up_after_close_is_harmless() -> None:
    with Wakeup() as wakeup:
        pass
    wakeup.wake()
    wakeup.wake()


class TestWorkQueue:
    async def test_work_is_taken_in_order_and_a_taker_sleeps_until_there_is_some(self) -> None:
        queue: WorkQueue[int] = WorkQueue()
        taken: list[int] = []

        async def take() -> None:
            while True:
                taken.append(await queue.take())

        async with anyio.create_task_group() as tasks:
            await start(tasks, take)
            assert not taken
            queue.put(1)
            queue.put(2)
            await settle()
            assert taken == [1, 2]
            tasks.cancel_scope.cancel()
        assert not queue

    async def test_what_was_left_is_taken_once_somebody_wakes(self) -> None:
        queue: WorkQueue[int] = WorkQueue()
        taken: list[int] = []

        async def take() -> None:
            taken.append(await queue.take())

        async with anyio.create_task_group() as tasks:
            await start(tasks, take)
            queue.leave(1)
            await settle()
            assert not taken
            queue.wake()
        assert taken == [1]

    async def test_of_several_takers_each_piece_wakes_one_to_do_it(self) -> None:
        queue: WorkQueue[int] = WorkQueue()
        taken: list[tuple[str, int]] = []

        async def take(name: str) -> None:
            while True:
                taken.append((name, await queue.take()))
                await anyio.sleep(1)

        async with anyio.create_task_group() as tasks:
            for name in "ab":
                await start(tasks, take, name)
            for number in range(2):
                queue.put(number)
            await settle()
            assert sorted(number for _, number in taken) == [0, 1]
            assert {name for name, _ in taken} == {"a", "b"}
            tasks.cancel_scope.cancel()

    async def test_a_piece_that_was_not_done_comes_first_again(self) -> None:
        queue: WorkQueue[int] = WorkQueue()
        queue.put(1)
        queue.put(2)
        work = queue.take_nowait()
        assert work == 1
        queue.return_first(work)
        assert [queue.take_nowait() for _ in range(3)] == [1, 2, None]

    async def test_a_wake_up_before_the_look_is_no_reason_to_look_again(self) -> None:
        queue: WorkQueue[int] = WorkQueue()
        queue.wake()
        with anyio.move_on_after(0.01) as scope:
            await queue.more()
        assert scope.cancelled_caught


class TestUrgentWork:
    async def test_the_most_urgent_comes_first_and_within_a_level_the_oldest(self) -> None:
        queue: UrgentWork[str] = UrgentWork()
        for name, level in (("slow", 2), ("quick", 0), ("slower", 2), ("quicker", 0)):
            queue.put(name, level)
        seen = []
        while (work := queue.look()) is not None:
            seen.append(work)
            queue.take_out(work)
        assert seen == ["quick", "quicker", "slow", "slower"]
        assert not queue.places

    async def test_what_becomes_more_urgent_keeps_its_age_and_is_there_once(self) -> None:
        queue: UrgentWork[str] = UrgentWork()
        for name in ("one", "two", "three"):
            queue.put(name, 2)
        queue.note("three", 0)
        queue.note("three", 2)
        queue.note("two", 0)
        queue.note("nobody", 0)
        seen = []
        while (work := queue.look()) is not None:
            seen.append(work)
            queue.take_out(work)
        assert seen == ["two", "one", "three"]

    async def test_what_is_put_back_stays_where_it_was(self) -> None:
        queue: UrgentWork[str] = UrgentWork()
        queue.put("blocked", 1)
        queue.put("fits", 1)
        blocked, fits = queue.look(), queue.look()
        assert (blocked, fits, queue.look()) == ("blocked", "fits", None)
        queue.take_out("fits")
        queue.put("later", 1)
        queue.put_back(["blocked"])
        assert queue.look() == "blocked"
        queue.take_out("blocked")
        queue.put_back(["blocked"])
        assert (queue.look(), queue.look()) == ("later", None), "what was taken out meanwhile stays out"
