"""Several objects at once: all or none, in the same line as everybody."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aslab import GFP, KM, CacheClosedError, ConfigError
from aslab.backends import Region
from aslab.faults import Deadlock, Failslab, Latency
from aslab.lab import Stuck, run
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_they_come_together_grown_if_need_be_each_with_memory_of_its_own() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        bufs = await cache.alloc_many(20)
        assert len({buf.address for buf in bufs}) == 20
        assert (cache.stats().obj_held, cache.stats().slab_total) == (20, 3)
        for number, buf in enumerate(bufs):
            buf.view[0] = number
        assert [buf.view[0] for buf in bufs] == list(range(20))
        for buf in bufs:
            buf.free()


async def test_nobody_gets_some_of_them_while_others_are_missing() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=4, objects_per_slab=1)
        held = await cache.alloc_many(4)
        got: list[int] = []

        async def caller() -> None:
            async with cache.lease_many(3) as bufs:
                got.append(len(bufs))

        await start(tasks, caller)
        for buf in held[:2]:
            buf.free()
            await settle()
        stats = cache.stats()
        assert (got, stats.obj_held, stats.obj_handover, stats.waiters) == ([], 2, 0, 1)
        held[2].free()
        await settle()
        assert got == [3]
        held[3].free()


async def test_who_comes_later_and_needs_less_does_not_overtake() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=3, objects_per_slab=1)
        held = await cache.alloc_many(3)
        order: list[str] = []

        async def caller(name: str, n: int, flags: KM) -> None:
            async with cache.lease_many(n, flags):
                order.append(name)

        await start(tasks, caller, "three", 3, KM.SLEEP)
        await start(tasks, caller, "one", 1, KM.SLEEP)
        await start(tasks, caller, "two, urgent", 2, KM.PUSHPAGE)
        for buf in held:
            buf.free()
            await settle()
        await settle(100)
        assert order == ["two, urgent", "three", "one"]


async def test_cancelled_in_line_it_leaves_what_was_gathered_to_the_next() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=3, objects_per_slab=1)
        held = await cache.alloc_many(3)
        scope = anyio.CancelScope()
        got: list[bool] = []

        async def three() -> None:
            with scope:
                await cache.alloc_many(3)

        async def one() -> None:
            async with cache.lease():
                got.append(True)

        await start(tasks, three)
        await start(tasks, one)
        held[0].free()
        await settle()
        assert not got
        scope.cancel()
        await settle()
        assert got == [True]
        for buf in held[1:]:
            buf.free()


async def test_cancelled_after_the_hand_over_loses_nothing() -> None:
    for steps in range(6):
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1)
            held = await cache.alloc_many(2)
            scope = anyio.CancelScope()

            async def caller(scope: anyio.CancelScope = scope, cache: Any = cache) -> None:
                with scope:
                    async with cache.lease_many(2):
                        await anyio.sleep(1)

            await start(tasks, caller)
            for buf in held:
                buf.free()
            await settle(steps)
            scope.cancel()
            await settle()
            assert (cache.stats().obj_held, cache.stats().obj_handover) == (0, 0)
            check_consistency(cache)


async def test_timeout_is_for_all_of_them_and_leaves_nothing_behind() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=4)
        buf = await cache.alloc()
        with pytest.raises(TimeoutError):
            await cache.alloc_many(4, timeout=3)
        assert (cache.stats().waiters, cache.stats().obj_held) == (0, 1)
        buf.free()
        for one in await cache.alloc_many(4):
            one.free()


async def test_closing_sends_it_away() -> None:
    async with allocator(slabs=Gate()) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)

        async def caller() -> None:
            with pytest.raises(CacheClosedError):
                await cache.alloc_many(2)

        await start(tasks, caller)
        await cache.aclose()


async def test_late_growth_what_is_missing_comes_as_emergency_objects() -> None:
    slabs = Deadlock(Instant(), at=2)
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        begin = anyio.current_time()
        bufs = await cache.alloc_many(11)
        assert anyio.current_time() - begin == pytest.approx(0.1)
        assert sorted(buf.emergency for buf in bufs) == [False] * 8 + [True] * 3
        check_consistency(cache)
        for buf in bufs:
            buf.free()


async def test_growth_that_is_slow_but_well_is_waited_for_however_many_slabs_it_takes() -> None:
    async with allocator(slabs=Latency(Instant(), 0.08)) as kmem:
        cache = kmem.create_cache("c", SIZE)
        bufs = await cache.alloc_many(80)
        assert (cache.stats().slab_create, cache.stats().obj_emergency_max) == (10, 0)
        for buf in bufs:
            buf.free()


async def test_emergency_objects_of_a_try_that_fails_half_way_serve_the_next() -> None:
    slabs, single = Gate(), Instant()
    async with (
        allocator(slabs=slabs, emergency=Failslab(single, interval=3, probability=100), kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("c", SIZE)
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease_many(5) as bufs:
                got.extend(buf.emergency for buf in bufs)

        await start(tasks, caller)
        await anyio.sleep(10)
        assert got == [True] * 5
        assert len(single.asked) == 5, "two of the first try, two of the second"
        slabs.open()
        await anyio.sleep(1)
        assert not single.outstanding


class Slow(Instant):
    """Emergency objects that come when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[anyio.Event] = []

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.attempts.append(anyio.Event())
        await self.attempts[-1].wait()
        return super().acquire_nowait(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        if not self.attempts:
            raise MemoryError
        return super().acquire_nowait(nbytes, align, gfp)


async def test_what_is_handed_over_in_the_moment_between_two_attempts_ends_them() -> None:
    slabs, single = Deadlock(Instant(), at=2), Slow()
    async with allocator(slabs=slabs, emergency=single, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2)
        held = await cache.alloc_many(2)
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease_many(2) as bufs:
                got.extend(buf.emergency for buf in bufs)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller)
                while not single.attempts:
                    await anyio.sleep(0.01)
                single.attempts[0].set()
                for buf in held:
                    buf.free()
        assert got == [False, False]
        assert len(single.attempts) == 1


async def test_max_emergency_holds_for_all_of_them_and_one_that_can_never_be_served_is_in_nobodys_way() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_emergency=3)
        got: list[int] = []

        async def caller(n: int, hold: float) -> None:
            async with cache.lease_many(n):
                got.append(n)
                await anyio.sleep(hold)

        for n, hold in ((4, 0), (2, 5), (3, 5), (1, 1)):
            await start(tasks, caller, n, hold)
            await anyio.sleep(0.01)
        await anyio.sleep(1)
        assert got == [2]
        assert cache.stats().obj_emergency == 2
        await anyio.sleep(6)
        assert got == [2, 3], "in order: the one that needs less does not overtake"
        await anyio.sleep(6)
        assert got == [2, 3, 1]
        assert cache.stats().obj_emergency_max <= 3
        slabs.open()
        await anyio.sleep(5)
        assert got[-1] == 4


async def test_a_pushpage_caller_may_use_the_reserve_for_what_is_missing() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=3, max_objects=8)
        await kmem.ready()
        with anyio.fail_after(0):
            bufs = await cache.alloc_many(8, KM.PUSHPAGE)
        for buf in bufs:
            buf.free()
        await settle()
        assert cache.stats().obj_reserved == 3


@pytest.mark.parametrize(
    ("n", "options", "flags"),
    [
        (0, {}, KM.SLEEP),
        (-1, {}, KM.SLEEP),
        (1.0, {}, KM.SLEEP),
        (9, {"max_objects": 8}, KM.SLEEP),
        (9, {"max_objects": 15, "objects_per_slab": 8}, KM.SLEEP),
        (7, {"max_objects": 8, "reserve": 2}, KM.SLEEP),
        (9, {"max_objects": 8, "reserve": 2}, KM.PUSHPAGE),
        (25, {}, KM.SLEEP),
    ],
    ids=str,
)
async def test_what_there_can_never_be_is_refused_at_once(n: Any, options: dict[str, Any], flags: KM) -> None:
    async with allocator(limit=3 * 8 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        with pytest.raises(ConfigError, match=rf"^n: {n} is not allowed; it must "):
            await cache.alloc_many(n, flags)
        assert cache.stats().waiters == 0


async def test_nosleep_is_refused() -> None:
    async with allocator() as kmem:
        with pytest.raises(ConfigError, match=r"flags: .*KM\.SLEEP, KM\.PUSHPAGE"):
            await kmem.create_cache("c", SIZE).alloc_many(2, KM.NOSLEEP)


async def test_lease_frees_the_others_where_one_is_still_in_use() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(BufferError):
            async with cache.lease_many(3) as bufs:
                part = bufs[1].view[:4]
        assert cache.stats().obj_held == 1
        part.release()
        bufs[1].free()


async def two_tasks_that_need_three_of_four(*, together: bool) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=4, objects_per_slab=1)

        async def one_by_one() -> None:
            bufs = []
            for _ in range(3):
                bufs.append(await cache.alloc())
                await anyio.sleep(0.01)
            for buf in bufs:
                buf.free()

        async def at_once() -> None:
            async with cache.lease_many(3):
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(at_once if together else one_by_one)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_tasks_that_take_one_by_one_lock_each_other_out_and_those_that_take_all_at_once_do_not(loop: str) -> None:
    with pytest.raises(Stuck, match="an object of cache 'c'"):
        run(partial(two_tasks_that_need_three_of_four, together=False), loop=loop)
    run(partial(two_tasks_that_need_three_of_four, together=True), loop=loop)


@settings(max_examples=20, deadline=None)
@given(
    needs=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    urgent=st.sets(st.integers(0, 11)),
    seed=st.integers(0, 2**32),
)
def test_any_mixture_of_needs_is_served_in_order_of_urgency_and_age_and_to_the_end(
    needs: list[int], urgent: set[int], seed: int
) -> None:
    async def main() -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=6, objects_per_slab=1)
            draw = random.Random(seed)
            held = await cache.alloc_many(6)
            order: list[int] = []

            async def caller(number: int) -> None:
                await anyio.sleep(number / 1000)
                flags = KM.PUSHPAGE if number in urgent else KM.SLEEP
                async with cache.lease_many(needs[number], flags):
                    order.append(number)
                    await anyio.sleep(draw.uniform(0, 1))

            async with anyio.create_task_group() as tasks:
                for number in range(len(needs)):
                    tasks.start_soon(caller, number)
                await anyio.sleep(1)
                check_consistency(cache)
                for buf in held:
                    buf.free()
            assert order == sorted(range(len(needs)), key=lambda number: (number not in urgent, number))
            check_consistency(cache)

    run(main, seed=seed)
