"""Faults: slow, stuck and refused memory, to the second and to the call."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from aslab import GFP, ConfigError
from aslab.backends import Backend, Callback, Heap, Mmap
from aslab.faults import Deadlock, Exponential, Failslab, Latency, Uniform
from aslab.testing import check_backend

from .helpers import Loop
from .support import SIZE, Instant, start

pytestmark = pytest.mark.anyio

BACKENDS: dict[str, Callable[[], Backend]] = {
    "mmap": Mmap,
    "heap": Heap,
    "callback": lambda: Callback(lambda nbytes, align, gfp: bytearray(nbytes + align), lambda given: None),
    "instant": Instant,
}
WRAPPERS: dict[str, Callable[[Backend], Backend]] = {
    "latency": lambda backend: Latency(backend, 1e-5, 1e-5),
    "random latency": lambda backend: Latency(backend, Exponential(1e-5), Uniform(0, 1e-5)),
    "failslab": lambda backend: Failslab(backend, probability=20),
    "deadlock to come": lambda backend: Deadlock(backend, at=10**9),
    "deadlock that ends": lambda backend: Deadlock(backend, duration=1e-4),
    "deadlock by chance": lambda backend: Deadlock(backend, probability=20, duration=1e-5),
    "deadlock in a window": lambda backend: Deadlock(backend, window=(0, 1e-4)),
    "latency of failslab": lambda backend: Latency(Failslab(backend, probability=20), [0.0, 1e-5]),
    "failslab of deadlock of latency": lambda backend: Failslab(
        Deadlock(Latency(backend, 1e-5), duration=1e-4), probability=20, seed=7
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS.keys())
async def test_every_wrapper_around_every_backend_keeps_the_contract(
    make: Callable[[], Backend], wrap: Callable[[Backend], Backend]
) -> None:
    await check_backend(lambda: wrap(make()))


async def took(call: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    begin = anyio.current_time()
    answer = await call(*args)
    return anyio.current_time() - begin, answer


async def acquires(backend: Backend, count: int) -> list[bool]:
    """Which of so many acquires came."""
    came = []
    for _ in range(count):
        try:
            region = await backend.acquire(SIZE, 64, GFP.KERNEL)
        except MemoryError:
            came.append(False)
        else:
            await backend.release(region)
            came.append(True)
    return came


class Simulated:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual


class TestLatency(Simulated):
    async def delays(self, backend: Latency, count: int) -> list[float]:
        return [(await took(backend.acquire, 64, 8, GFP.KERNEL))[0] for _ in range(count)]

    @pytest.mark.parametrize(
        ("delay", "expected"),
        [(0.25, [0.25] * 3), (2, [2, 2, 2]), (0, [0, 0, 0]), ([1.0, 0.0, 3.0], [1, 0, 3, 1, 0])],
    )
    async def test_each_acquire_takes_exactly_its_delay(self, delay: Any, expected: list[float]) -> None:
        found = await self.delays(Latency(Instant(), delay), len(expected))
        assert found == [pytest.approx(one) for one in expected]

    @pytest.mark.parametrize("delay", [Uniform(1, 2), Exponential(1)])
    async def test_same_seed_same_delays_another_seed_others(self, delay: Uniform | Exponential) -> None:
        one, same, other = [await self.delays(Latency(Instant(), delay, seed=seed), 8) for seed in (5, 5, 6)]
        assert one == [pytest.approx(each) for each in same]
        assert one != [pytest.approx(each) for each in other]
        assert len(set(one)) == 8

    async def test_uniform_stays_within_its_bounds_and_uses_them(self) -> None:
        found = await self.delays(Latency(Instant(), Uniform(1, 2)), 200)
        assert all(1 <= round(one, 9) <= 2 for one in found)
        assert min(found) < 1.1
        assert max(found) > 1.9

    async def test_exponential_has_its_mean_and_a_tail(self) -> None:
        found = await self.delays(Latency(Instant(), Exponential(3)), 2000)
        assert sum(found) / 2000 == pytest.approx(3, rel=0.1)
        assert max(found) > 12

    async def test_release_takes_its_own_delay(self) -> None:
        backend = Latency(Instant(), 0, 0.5)
        passed, region = await took(backend.acquire, 64, 8, GFP.KERNEL)
        assert passed == 0
        passed, _ = await took(backend.release, region)
        assert passed == pytest.approx(0.5)

    async def test_a_cancelled_release_still_releases(self) -> None:
        inner = Instant()
        backend = Latency(inner, 0, 1000)
        region = await backend.acquire(64, 8, GFP.KERNEL)
        with anyio.move_on_after(1) as scope:
            await backend.release(region)
        assert scope.cancelled_caught
        assert not inner.outstanding

    async def test_a_cancelled_acquire_has_not_asked_yet(self) -> None:
        inner = Instant()
        with anyio.move_on_after(1):
            await Latency(inner, 2).acquire(64, 8, GFP.KERNEL)
        assert not inner.asked

    async def test_acquire_nowait_is_refused_where_there_is_a_delay(self) -> None:
        backend = Latency(Instant(), [0.0, 1.0])
        backend.acquire_nowait(64, 8, GFP.NOWAIT)
        with pytest.raises(anyio.WouldBlock):
            backend.acquire_nowait(64, 8, GFP.NOWAIT)
        backend.acquire_nowait(64, 8, GFP.NOWAIT)

    @pytest.mark.parametrize(
        "make",
        [
            *(
                lambda bad=bad: Latency(Instant(), bad)
                for bad in (-1, math.nan, math.inf, "12", [], [1, -1], None, True)
            ),
            lambda: Latency(Instant(), 0, -1),
            lambda: Uniform(2, 1),
            lambda: Uniform(-1, 1),
            lambda: Uniform(0, math.inf),
            lambda: Exponential(-1),
            lambda: Exponential(math.nan),
        ],
    )
    async def test_bad_delays_are_refused(self, make: Callable[[], object]) -> None:
        with pytest.raises(ConfigError, match="it must"):
            make()


class TestDeadlock(Simulated):
    async def test_calls_before_at_work_and_later_ones_are_stuck(self) -> None:
        backend = Deadlock(Instant(), at=3)
        assert await acquires(backend, 2) == [True, True]
        with anyio.move_on_after(1000) as scope:
            await backend.acquire(SIZE, 64, GFP.KERNEL)
        assert scope.cancelled_caught
        assert backend.calls == 3

    async def test_all_come_free_when_duration_has_passed_since_the_first(self) -> None:
        backend = Deadlock(Instant(), duration=5)
        ends: list[float] = []
        begin = anyio.current_time()

        async def call(delay: float) -> None:
            await anyio.sleep(delay)
            await backend.acquire(SIZE, 64, GFP.KERNEL)
            ends.append(anyio.current_time() - begin)

        async with anyio.create_task_group() as tasks:
            for delay in (0, 2, 6):
                tasks.start_soon(call, delay)
            await anyio.sleep(3)
            assert backend.stuck == 2
        assert ends == [pytest.approx(5), pytest.approx(5), pytest.approx(6)]
        assert backend.stuck == 0

    async def test_let_go_ends_it_at_once_and_for_good(self) -> None:
        backend = Deadlock(Instant(), duration=1000)
        begin = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                await start(tasks, acquires, backend, 1)
            assert backend.stuck == 3
            backend.let_go()
        await acquires(backend, 1)
        backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)
        assert anyio.current_time() == begin
        assert backend.stuck == 0

    async def test_a_stuck_call_can_be_cancelled_and_the_deadlock_goes_on(self) -> None:
        inner = Instant()
        backend = Deadlock(inner)
        for _ in range(2):
            with anyio.move_on_after(1) as scope:
                await backend.acquire(SIZE, 64, GFP.KERNEL)
            assert scope.cancelled_caught
            assert backend.stuck == 0
        assert not inner.asked

    async def test_releases_work_meanwhile(self) -> None:
        inner = Instant()
        backend = Deadlock(inner, at=2)
        region = await backend.acquire(SIZE, 64, GFP.KERNEL)
        async with anyio.create_task_group() as tasks:
            await start(tasks, acquires, backend, 1)
            await backend.release(region)
            assert not inner.outstanding
            tasks.cancel_scope.cancel()

    async def test_acquire_nowait_would_block_while_calls_are_stuck(self) -> None:
        backend = Deadlock(Instant(), at=2)
        backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)
        with pytest.raises(anyio.WouldBlock):
            backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)
        assert backend.calls == 2

    async def test_acquire_nowait_works_when_duration_has_passed_though_nobody_waited_it_out(self) -> None:
        backend = Deadlock(Instant(), duration=5)
        with anyio.move_on_after(1):
            await backend.acquire(SIZE, 64, GFP.KERNEL)
        await anyio.sleep(10)
        backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)

    async def stuck_calls(self, backend: Deadlock, count: int) -> list[bool]:
        """Which of so many acquires, one at a time, took any time."""
        return [(await took(backend.acquire, SIZE, 64, GFP.KERNEL))[0] > 0 for _ in range(count)]

    async def test_with_a_probability_each_call_is_stuck_by_chance_and_the_seed_decides_which(self) -> None:
        one, same, other = [
            await self.stuck_calls(Deadlock(Instant(), probability=20, duration=1, seed=seed), 1000)
            for seed in (3, 3, 4)
        ]
        assert one == same != other
        assert 150 < one.count(True) < 250

    async def test_with_a_probability_each_call_is_stuck_for_a_duration_of_its_own(self) -> None:
        backend = Deadlock(Instant(), at=2, probability=100, duration=5)
        ends: list[float] = []
        begin = anyio.current_time()

        async def call() -> None:
            await backend.acquire(SIZE, 64, GFP.KERNEL)
            ends.append(round(anyio.current_time() - begin, 6))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call)
                await anyio.sleep(1)
        assert ends == [0, 6, 7]
        assert await self.stuck_calls(backend, 1) == [True]

    async def test_with_a_probability_a_call_that_may_not_wait_is_refused_by_the_same_chance(self) -> None:
        backend = Deadlock(Instant(), probability=50, seed=1)
        stuck = await self.stuck_calls(Deadlock(Instant(), probability=50, duration=1, seed=1), 50)
        for expected in stuck:
            if expected:
                with pytest.raises(anyio.WouldBlock):
                    backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)
            else:
                backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)

    async def test_with_a_window_calls_made_inside_are_stuck_until_its_end(self) -> None:
        backend = Deadlock(Instant(), window=(3, 5))
        ends: list[float] = []
        begin = anyio.current_time()

        async def call(delay: float) -> None:
            await anyio.sleep(delay)
            await backend.acquire(SIZE, 64, GFP.KERNEL)
            ends.append(round(anyio.current_time() - begin, 6))

        async with anyio.create_task_group() as tasks:
            for delay in (0, 2.5, 3.5, 4.5, 5.5):
                tasks.start_soon(call, delay)
            await anyio.sleep(4)
            with pytest.raises(anyio.WouldBlock):
                backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)
        assert ends == [0, 2.5, 5, 5, 5.5]
        backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)

    async def test_a_window_is_counted_from_the_making_in_a_loop(self) -> None:
        backend = Deadlock(Instant(), window=(0, 5))
        await anyio.sleep(4)
        assert (await took(backend.acquire, SIZE, 64, GFP.KERNEL))[0] == pytest.approx(1)

    @pytest.mark.parametrize("options", [{}, {"probability": 100, "duration": 1000}, {"window": (0, 1000)}])
    async def test_let_go_wakes_in_the_order_of_the_calls_and_ends_every_mode(
        self, options: dict[str, Any], virtual: Loop
    ) -> None:
        backend = Deadlock(Instant(), **options)
        woken: list[int] = []

        async def call(number: int) -> None:
            await backend.acquire(SIZE, 64, GFP.KERNEL)
            woken.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                await start(tasks, call, number)
            assert backend.stuck == 20
            backend.let_go()
        if virtual[0] == "trio":  # it runs those that are ready in random order
            woken.sort()
        assert woken == list(range(20))
        assert not any(await self.stuck_calls(backend, 3))
        assert backend.stuck == 0

    @pytest.mark.parametrize(
        ("field", "options"),
        [
            ("at", {"at": 0}),
            ("at", {"at": 1.5}),
            ("duration", {"duration": 0}),
            ("duration", {"duration": math.inf}),
            *(("probability", {"probability": bad}) for bad in (-1, 101, math.nan, "1", True)),
            ("seed", {"seed": 1}),
            *(("window", {"window": bad}) for bad in ((1,), (1, 2, 3), [1, 2], "12", (2, 1), (1, 1))),
            *(("window", {"window": bad}) for bad in ((-1, 1), (0, math.inf), (0, None))),
            ("window", {"window": (1, 2), "at": 2}),
            ("window", {"window": (1, 2), "duration": 1}),
            ("window", {"window": (1, 2), "probability": 1}),
        ],
    )
    async def test_bad_options_are_refused(self, field: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            Deadlock(Instant(), **options)


def test_a_window_of_a_deadlock_made_outside_a_loop_is_counted_from_its_first_call(virtual: Loop) -> None:
    backend = Deadlock(Instant(), window=(1, 5))
    backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)  # a thread without a loop cannot know the time

    async def main() -> None:
        await anyio.sleep(3)
        assert (await took(backend.acquire, SIZE, 64, GFP.KERNEL))[0] == 0
        await anyio.sleep(1)
        assert (await took(backend.acquire, SIZE, 64, GFP.KERNEL))[0] == pytest.approx(4)

    anyio.run(main, backend=virtual[0], backend_options=virtual[1])


async def test_a_thread_without_a_loop_is_refused_while_calls_are_stuck_in_a_window() -> None:
    backend = Deadlock(Instant(), window=(0, 1000))
    async with anyio.create_task_group() as tasks:
        await start(tasks, acquires, backend, 1)
        with pytest.raises(anyio.WouldBlock), ThreadPoolExecutor(1) as pool:
            pool.submit(backend.acquire_nowait, SIZE, 64, GFP.NOWAIT).result()
        backend.let_go()


class TestFailslab(Simulated):
    @pytest.mark.parametrize(
        ("knobs", "expected"),
        [
            ({}, "++++"),
            ({"probability": 100}, "----"),
            ({"probability": 100, "times": 0}, "++++"),
            ({"probability": 100, "times": 2}, "--++"),
            ({"probability": 100, "interval": 3}, "++-++-+"),
            ({"probability": 100, "space": SIZE}, "---"),
            ({"probability": 100, "space": SIZE + 1}, "+--"),
            ({"probability": 100, "space": 3 * SIZE}, "++--"),
            # space first: its calls are not counted by interval
            ({"probability": 100, "space": 2 * SIZE, "interval": 2}, "++-+-"),
            # interval before times: calls that interval lets pass cost no failure
            ({"probability": 100, "interval": 2, "times": 2}, "+-+-+++"),
            # no probability, nothing is counted
            ({"space": SIZE, "interval": 2, "times": 1}, "+++"),
            ({"fail_nth": 1}, "-+++"),
            ({"fail_nth": 3}, "++-+++"),
            # fail_nth decides alone until it has fired
            ({"fail_nth": 3, "probability": 100, "times": 1}, "++--+"),
            ({"fail_nth": 2, "probability": 100, "space": 2 * SIZE}, "+-+--"),
        ],
        ids=repr,
    )
    async def test_knobs_mean_what_linux_means(self, knobs: dict[str, int], expected: str) -> None:
        backend = Failslab(Instant(), **knobs)
        came = await acquires(backend, len(expected))
        assert "".join("-+"[one] for one in came) == expected
        assert backend.failures == expected.count("-")

    async def test_probability_comes_before_times(self) -> None:
        backend = Failslab(Instant(), probability=20, times=30)
        came = await acquires(backend, 1000)
        assert came.count(False) == 30
        assert not all(came[:40])
        assert any(came[:40])

    async def test_probability_is_percent_and_the_seed_decides_which(self) -> None:
        one, same, other = [
            await acquires(Failslab(Instant(), probability=20, seed=seed), 2000) for seed in (3, 3, 4)
        ]
        assert one == same
        assert one != other
        assert 340 < one.count(False) < 460

    async def test_running_for_n_1_2_3_until_nothing_fails_meets_every_call(self) -> None:
        backend = Failslab(Instant())
        for nth in range(1, 6):
            backend.fail_nth = nth
            came = await acquires(backend, 4)
            assert came == [call != nth for call in range(1, 5)]
        assert backend.fail_nth == 1, "what was left over when nothing failed"

    async def test_knobs_may_be_turned_while_it_runs(self) -> None:
        backend = Failslab(Instant(), probability=100)
        assert await acquires(backend, 1) == [False]
        backend.probability = 0
        assert await acquires(backend, 1) == [True]

    async def test_calls_that_may_not_wait_fail_too(self) -> None:
        backend = Failslab(Instant(), probability=100, times=1)
        with pytest.raises(MemoryError, match="failslab: failure 1 injected, 4096 bytes"):
            backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)
        backend.acquire_nowait(SIZE, 64, GFP.NOWAIT)

    @pytest.mark.parametrize(("verbose", "records", "stack"), [(0, 0, False), (1, 2, False), (2, 2, True)])
    async def test_verbose_logs_failures_and_then_their_stacks(
        self, caplog: pytest.LogCaptureFixture, verbose: int, records: int, stack: bool
    ) -> None:
        with caplog.at_level(logging.WARNING, "aslab.faults"):
            await acquires(Failslab(Instant(), probability=100, times=2, verbose=verbose), 3)
        assert len(caplog.records) == records
        for number, record in enumerate(caplog.records, 1):
            assert record.getMessage() == f"failslab: failure {number} injected, {SIZE} bytes"
            assert bool(record.stack_info) == stack

    @pytest.mark.parametrize(
        ("knob", "bad"),
        [
            *(("probability", bad) for bad in (-1, 101, 0.5, True)),
            *(("interval", bad) for bad in (0, -1)),
            ("times", -2),
            ("space", -1),
            ("fail_nth", -1),
            *(("verbose", bad) for bad in (-1, 3)),
        ],
    )
    async def test_bad_knobs_are_refused(self, knob: str, bad: Any) -> None:
        with pytest.raises(ConfigError, match=f"^{knob}: "):
            Failslab(Instant(), **{knob: bad})
