"""Waking the event loop from anywhere, in real time."""

from __future__ import annotations

import threading

import anyio
import pytest
from anyio import to_thread

from aslab._kmem._wakeup import Wakeup

from .support import settle

pytestmark = pytest.mark.anyio


async def test_ring_from_a_thread_wakes_the_waiter() -> None:
    with Wakeup() as bell:
        async with anyio.create_task_group() as tasks:
            heard = anyio.Event()

            async def waiter() -> None:
                await bell.wait()
                heard.set()

            tasks.start_soon(waiter)
            await settle(3)
            assert not heard.is_set()
            thread = threading.Thread(target=bell.wake)
            thread.start()
            with anyio.fail_after(10):
                await heard.wait()
            thread.join()


async def test_ring_from_the_loops_own_thread_wakes_the_waiter() -> None:
    with Wakeup() as bell:
        bell.wake()
        with anyio.fail_after(10):
            await bell.wait()


async def test_many_rings_are_one_wake_up() -> None:
    with Wakeup() as bell:
        for _ in range(100_000):  # more bytes than a socket pair takes, if each were one
            bell.wake()
        with anyio.fail_after(10):
            await bell.wait()
        with anyio.move_on_after(0.002) as scope:
            await bell.wait()
        assert scope.cancelled_caught, "one wait has heard them all"


async def test_a_ring_after_a_wake_up_is_heard_again() -> None:
    with Wakeup() as bell:
        for _ in range(3):
            bell.wake()
            with anyio.fail_after(10):
                await bell.wait()


async def test_a_cancelled_wait_loses_no_ring() -> None:
    with Wakeup() as bell:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bell.wait()
        assert scope.cancelled_caught
        bell.wake()
        with anyio.fail_after(10):
            await bell.wait()


async def test_no_work_is_missed_however_threads_ring() -> None:
    """Each thread puts its work in place, then rings; the loop looks after each wake-up."""
    done: list[int] = []
    with Wakeup() as bell:

        def work() -> None:
            for number in range(500):
                done.append(number)
                bell.wake()

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        with anyio.fail_after(20):
            seen = 0
            while seen < 1500:
                await bell.wait()
                seen = len(done)
        for thread in threads:
            await to_thread.run_sync(thread.join)


async def test_ring_after_close_is_harmless() -> None:
    with Wakeup() as bell:
        pass
    bell.wake()
    bell.wake()
