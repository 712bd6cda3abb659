"""Waiting: for growth, for a free, for an emergency object; in which order, and for how long."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, KM, CacheClosedError, CacheFlags
from aslab._cache import pool_of
from aslab._kmem._handover import Handover
from aslab._kmem._pool import Pool
from aslab.backends import Region
from aslab.faults import Deadlock, Failslab, Latency
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_first_object_waits_for_growth_and_the_rest_do_not() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        bufs = [await cache.alloc() for _ in range(8)]
        stats = cache.stats()
        assert (stats.slab_total, stats.obj_held, stats.waits, stats.timeouts) == (1, 8, 1, 0)
        for buf in bufs:
            buf.free()


async def test_pushpage_is_served_before_sleep_and_oldest_first_within_each() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = await cache.alloc()
        order: list[str] = []

        async def caller(name: str, flags: KM) -> None:
            async with cache.lease(flags):
                order.append(name)

        for name, flags in [("s1", KM.SLEEP), ("p1", KM.PUSHPAGE), ("s2", KM.SLEEP), ("p2", KM.PUSHPAGE)]:
            await start(tasks, caller, name, flags)
        held.free()
        await settle()
        assert order == ["p1", "p2", "s1", "s2"]


async def test_end_of_growth_serves_as_many_as_there_are_objects_in_order() -> None:
    gate = Gate()
    async with (
        allocator(slabs=gate, grow_timeout=math.nextafter(1e6, 0)) as kmem,
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2)
        served: list[int] = []
        go_on = anyio.Event()

        async def caller(number: int) -> None:
            async with cache.lease():
                served.append(number)
                await go_on.wait()

        for number in range(5):
            await start(tasks, caller, number)
        gate.open()
        await settle()
        # those served by one slab resume together, in whatever order the loop likes
        assert [set(served[n : n + 2]) for n in (0, 2, 4)] == [{0, 1}, {2, 3}, {4}]
        assert cache.stats().slab_total == 3
        go_on.set()


async def test_timeout_while_growing_takes_an_emergency_object_after_exactly_grow_timeout() -> None:
    async with allocator(slabs=Gate(), grow_timeout=0.1, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        begin = anyio.current_time()
        buf = await cache.alloc()
        assert anyio.current_time() - begin == pytest.approx(0.1)
        stats = cache.stats()
        assert buf.emergency
        assert (stats.timeouts, stats.obj_deadlock, stats.obj_emergency) == (1, 1, 1)
        assert stats.growing
        assert stats.deadlocked
        # SPL's counters: part of the total, not of what is out of the slabs
        assert (stats.obj_total, stats.obj_alloc, stats.obj_max, stats.obj_held) == (1, 0, 0, 1)
        buf.free()
        assert cache.stats().obj_emergency == 0
        assert cache.stats().obj_emergency_max == 1


async def test_stuck_for_good_eight_tasks_go_on_and_dlock_is_one() -> None:
    slabs = Deadlock(Instant())
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        progress = [0] * 8
        waited: list[float] = []

        async def caller(number: int) -> None:
            while True:
                begin = anyio.current_time()
                async with cache.lease() as buf:
                    waited.append(anyio.current_time() - begin)
                    assert buf.emergency or slabs.stuck == 0
                    progress[number] += 1
                    await anyio.sleep(0.01)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(caller, number)
            await anyio.sleep(20)
            assert min(progress) > 1_500
            stats = cache.stats()
            assert stats.obj_deadlock == 1
            assert stats.timeouts == stats.waits == 8
            assert sorted(waited)[-8:] == [pytest.approx(0.1)] * 8
            assert set(sorted(waited)[:-8]) == {0.0}
            slabs.let_go()
            await anyio.sleep(1)
            stats = cache.stats()
            assert not stats.growing
            assert not stats.deadlocked
            assert stats.obj_emergency == 0
            async with cache.lease() as buf:
                assert not buf.emergency
            tasks.cancel_scope.cancel()


async def test_grow_that_fails_after_a_timeout_leaves_no_mark() -> None:
    gate = Gate()
    async with allocator(slabs=gate, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        assert cache.stats().deadlocked
        await anyio.sleep(5)
        gate.error = MemoryError()
        gate.open()
        await settle()
        stats = cache.stats()
        assert not stats.growing
        assert not stats.deadlocked
        assert stats.slab_fail == 1
        gate.error = None
        buf.free()
        async with (
            cache.lease() as buf
        ):  # what was freed while slabs could not be had is kept, and slabs asked for
            assert buf.emergency
            await anyio.sleep(1)
        async with cache.lease() as buf:
            assert not buf.emergency


async def test_last_look_at_the_slabs_before_an_emergency_object() -> None:
    """An object freed by another thread, whose bell has not been heard yet when the time is up."""
    gate = Gate()
    gate.open()
    async with allocator(slabs=gate) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        held = await cache.alloc()
        gate.shut()
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                got.append(buf.emergency)

        await start(tasks, caller)
        await anyio.sleep(0.05)
        pool_of(cache).magazine.append(held._claim())
        await anyio.sleep(0.06)
        assert got == [False]
        assert cache.stats().obj_emergency_max == 0


async def test_want_of_memory_is_retried_with_growing_pauses_and_ends_in_an_emergency_object() -> None:
    slabs = Failslab(Instant(), probability=100)
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        begin = anyio.current_time()
        buf = await cache.alloc()
        assert buf.emergency
        assert anyio.current_time() - begin == pytest.approx(0.1)
        assert 3 <= cache.stats().slab_fail <= 5
        assert cache.stats().obj_deadlock == 0
        buf.free()


async def test_want_of_memory_everywhere_never_fails_a_sleeper_and_never_spins() -> None:
    slabs, emergency = Failslab(Instant(), probability=100), Failslab(Instant(), probability=100)
    async with allocator(slabs=slabs, emergency=emergency) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                got.append(buf.emergency)

        tasks.start_soon(caller)
        await anyio.sleep(60)
        assert not got
        assert slabs.failures < 80
        assert emergency.failures < 80
        slabs.probability = 0
        await anyio.sleep(2)
        assert got == [False]


async def test_at_max_objects_callers_wait_without_emergency_objects() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=2)
        held = [await cache.alloc() for _ in range(2)]
        done: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                done.append(buf.emergency)

        await start(tasks, caller)
        await anyio.sleep(60)
        assert not done
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        held.pop().free()
        await settle()
        assert done == [False]
        held.pop().free()
        assert cache.stats().obj_emergency_max == 0
        assert cache.stats().timeouts == 0


async def test_limit_is_backpressure_over_all_caches_and_room_elsewhere_ends_it() -> None:
    async with allocator(limit=8 * SIZE) as kmem, anyio.create_task_group() as tasks:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        held = await one.alloc()
        assert kmem.stats().slab_bytes == 8 * SIZE
        done = anyio.Event()

        async def caller() -> None:
            async with two.lease() as buf:
                assert not buf.emergency
                done.set()

        await start(tasks, caller)
        await anyio.sleep(4)
        assert not done.is_set()
        held.free()
        await settle()
        assert done.is_set()
        assert one.stats().slab_total == 0


async def test_waiter_at_the_limit_gets_its_timeout_when_growth_starts() -> None:
    gate = Gate()
    gate.open()
    async with allocator(slabs=gate, limit=8 * SIZE, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        held = await one.alloc()
        got: list[float] = []

        async def caller() -> None:
            async with two.lease() as buf:
                assert buf.emergency
                got.append(anyio.current_time())

        await start(tasks, caller)
        await anyio.sleep(10)
        gate.shut()
        held.free()
        await one.reap()
        begin = anyio.current_time()
        await anyio.sleep(1)
        assert got == [pytest.approx(begin + 0.1)]


async def test_limit_taken_by_a_stuck_grow_is_no_limit_reached() -> None:
    """Progress never hangs on the limit: the other cache's callers take emergency objects."""
    slabs = Deadlock(Instant())
    async with allocator(slabs=slabs, limit=8 * SIZE) as kmem:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        for cache in (one, two):
            with anyio.fail_after(0.2):
                (await cache.alloc()).free()
        await anyio.sleep(60)
        with anyio.fail_after(0.01):
            (await two.alloc()).free()
        assert two.stats().growing
        slabs.let_go()
        await anyio.sleep(1)
        assert not two.stats().growing
        assert kmem.stats().slab_bytes == 8 * SIZE


async def test_max_emergency_bounds_and_a_freed_one_lets_the_next_try() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_emergency=2)
        held = [await cache.alloc() for _ in range(2)]
        order: list[int] = []

        async def caller(number: int) -> None:
            async with cache.lease() as buf:
                assert buf.emergency
                order.append(number)

        for number in range(4):
            await start(tasks, caller, number)
        await anyio.sleep(100)
        assert not order
        assert cache.stats().obj_emergency == 2
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        begin = anyio.current_time()
        held.pop().free()
        await settle(60)
        assert order == [0, 1, 2, 3]
        assert anyio.current_time() == begin
        held.pop().free()
        assert cache.stats().obj_emergency_max == 2


async def test_who_was_told_to_try_and_is_cancelled_passes_the_chance_on() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        scope = anyio.CancelScope()
        got = anyio.Event()
        assert pool_of(cache).emergency.try_charge(1)

        async def first() -> None:
            with scope:
                await cache.alloc()

        async def second() -> None:
            async with cache.lease():
                got.set()

        await start(tasks, first)
        await start(tasks, second)
        await anyio.sleep(1)
        pool_of(cache).emergency.uncharge(1)
        while pool_of(cache).emergency.refused.first is not None and len(pool_of(cache).emergency.refused) == 2:
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        await settle(60)
        assert got.is_set()


async def test_attempt_that_is_cancelled_gives_its_permit_to_the_refused() -> None:
    gate, emergency = Gate(), Gate()
    options = {"slabs": gate, "emergency": emergency, "kick_after": None, "grow_timeout": 0.1}
    async with allocator(**options) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        scope = anyio.CancelScope()
        got = anyio.Event()

        async def first() -> None:
            with scope:
                await cache.alloc()

        async def second() -> None:
            async with cache.lease():
                got.set()

        await start(tasks, first)
        await anyio.sleep(0.2)
        assert emergency.waiting == 1
        await start(tasks, second)
        await anyio.sleep(1)
        assert emergency.waiting == 1
        scope.cancel()
        emergency.open()
        await settle()
        assert got.is_set()


async def test_noemergency_waits_for_growth_for_as_long_as_it_takes() -> None:
    slabs = Deadlock(Instant())
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, flags=CacheFlags.NOEMERGENCY)
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                got.append(buf.emergency)

        await start(tasks, caller)
        await anyio.sleep(1000)
        assert not got
        assert cache.stats().deadlocked
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        slabs.let_go()
        await settle()
        assert got == [False]


async def test_emergency_requests_are_noio_and_urgent_as_the_caller_and_growth_follows_the_most_urgent() -> None:
    slabs, emergency = Gate(), Instant()
    async with allocator(slabs=slabs, emergency=emergency, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        held = [await cache.alloc(flags) for flags in (KM.PUSHPAGE, KM.SLEEP)]
        held += [cache.alloc_nowait(flags) for flags in (KM.PUSHPAGE, KM.NOSLEEP)]
        for buf in held:
            buf.free()
        asked = [gfp for _, gfp in emergency.asked]
        assert asked == [GFP.NOIO | GFP.HIGH, GFP.NOIO, GFP.HIGH, GFP.NOWAIT]
        slabs.open()
        await settle()
    grown: list[GFP] = []
    for flags in (KM.SLEEP, KM.PUSHPAGE):
        instant = Instant()
        async with allocator(slabs=instant) as kmem:
            (await kmem.create_cache("c", SIZE).alloc(flags)).free()
        grown += [gfp for _, gfp in instant.asked]
    assert grown == [GFP.KERNEL, GFP.NOIO]


@pytest.mark.parametrize("options", [{"max_emergency": 0}, {"flags": CacheFlags.NOEMERGENCY}], ids=str)
async def test_growth_for_an_urgent_caller_may_use_the_reserve_where_there_is_nothing_else(
    options: dict[str, Any],
) -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem:
        (await kmem.create_cache("c", SIZE, **options).alloc(KM.PUSHPAGE)).free()
    assert [gfp for _, gfp in slabs.asked] == [GFP.NOIO | GFP.HIGH]


async def test_growth_is_as_urgent_as_the_most_urgent_of_many_waiters() -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)

        async def caller(flags: KM) -> None:
            async with cache.lease(flags):
                pass

        tasks.start_soon(caller, KM.SLEEP)
        tasks.start_soon(caller, KM.PUSHPAGE)
        await settle()
        assert slabs.asked[0][1] == GFP.NOIO


async def test_callers_own_timeout_raises_and_loses_nothing() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = await cache.alloc()
        begin = anyio.current_time()
        with pytest.raises(TimeoutError):
            await cache.alloc(timeout=7)
        assert anyio.current_time() - begin == pytest.approx(7)
        assert cache.stats().waiters == 0
        held.free()
        (await cache.alloc(timeout=0)).free()


async def test_two_thousand_waiters_half_of_them_cancelled_none_lost_and_order_kept() -> None:
    draw = random.Random(20121)
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=4)
        held = [await cache.alloc() for _ in range(4)]
        order: list[int] = []
        scopes = [anyio.CancelScope() for _ in range(2_000)]

        arrivals = itertools.count()

        async def caller() -> None:
            number = next(arrivals)
            with scopes[number]:
                async with cache.lease():
                    order.append(number)
                    await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            for _ in range(2_000):
                tasks.start_soon(caller)
            await settle(3)
            assert cache.stats().waiters == 2_000
            victims = draw.sample(range(2_000), 1_000)
            for number in victims[:500]:
                scopes[number].cancel()
            for buf in held:
                buf.free()
            for number in victims[500:]:
                scopes[number].cancel()
                if draw.random() < 0.01:
                    await anyio.sleep(0.001)
        assert set(range(2_000)) - set(victims) <= set(order)
        # In order, but for those who resume in the same moment: four objects are at work.
        assert all(abs(one - other) <= 8 for one, other in zip(_ranks(order), range(len(order)), strict=True))
        stats = cache.stats()
        assert (stats.waiters, stats.obj_held, stats.obj_handover) == (0, 0, 0)
        check_consistency(cache)


async def test_what_a_finaliser_frees_while_waiters_are_served_is_served_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1)
        one, other = await cache.alloc(), await cache.alloc()
        got: list[int] = []

        async def caller(number: int) -> None:
            async with cache.lease():
                got.append(number)
                await anyio.sleep(1)

        for number in range(2):
            await start(tasks, caller, number)
        take = pool_of(cache).depot.take

        def take_while_another_is_freed(**options: bool) -> object:
            monkeypatch.undo()
            other.free()
            assert not got
            return take(**options)

        monkeypatch.setattr(pool_of(cache).depot, "take", take_while_another_is_freed)
        one.free()
        await settle()
        assert sorted(got) == [0, 1]
        check_consistency(cache)


def _ranks(order: list[int]) -> list[int]:
    rank = {number: place for place, number in enumerate(sorted(order))}
    return [rank[number] for number in order]


async def test_deadlocked_mark_is_per_cache_and_others_are_served_by_the_next_worker() -> None:
    """A's grow is stuck for good. B and C: first objects within grow_timeout, slabs after kick_after."""

    class StuckForBig(Instant):
        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            if nbytes > 100 * SIZE:
                await anyio.sleep_forever()
            return await super().acquire(nbytes, align, gfp)

    with pytest.warns(ResourceWarning, match="stuck"):
        async with allocator(slabs=StuckForBig(), kick_after=5.0) as kmem:
            a = kmem.create_cache("a", 100 * SIZE)
            others = [kmem.create_cache(name, SIZE) for name in "bc"]
            (await a.alloc()).free()
            begin = anyio.current_time()
            for cache in others:
                with anyio.fail_after(0.1001):
                    buf = await cache.alloc()
                assert buf.emergency
                buf.free()
            await anyio.sleep(5.1 - (anyio.current_time() - begin))
            for cache in others:
                buf = await cache.alloc()
                assert not buf.emergency
                assert not cache.stats().growing
                buf.free()
            assert a.stats().growing
            assert a.stats().deadlocked
            assert kmem.stats().kicked == 1
            assert isinstance(kmem, aslab.Allocator)


async def test_attempt_under_way_is_overtaken_by_a_free() -> None:
    gate, emergency = Gate(), Gate()
    gate.open()
    async with (
        allocator(slabs=gate, emergency=emergency, kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        held = await cache.alloc()
        gate.shut()
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                got.append(buf.emergency)

        await start(tasks, caller)
        await anyio.sleep(0.2)
        assert emergency.waiting == 1
        assert cache.stats().waiters == 1
        held.free()
        await settle()
        assert got == [False]
        assert emergency.waiting == 1, "what is begun is the next caller's"
        held = await cache.alloc()
        waiting = anyio.Event()

        async def following() -> None:
            waiting.set()
            async with cache.lease() as buf:
                got.append(buf.emergency)

        tasks.start_soon(following)
        await settle()
        emergency.open()
        await settle()
        assert got == [False, True]
        assert len(emergency.asked) <= 2
        held.free()


async def test_emergency_object_in_the_making_is_outstanding_though_its_caller_has_gone() -> None:
    emergency = Gate()
    async with allocator(slabs=Gate(), emergency=emergency, kick_after=None, emergency_limit=3 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for _ in range(5):
            with anyio.move_on_after(1):
                await cache.alloc()
        assert emergency.waiting == 2
        assert kmem.stats().emergency_bytes == 2 * SIZE
        emergency.open()
        await settle()
        assert cache.stats().obj_emergency_spare == 2
        (await cache.alloc()).free()


async def test_emergency_object_that_comes_together_with_another_is_given_back() -> None:
    class Stubborn(Gate):
        """Does not let itself be cancelled."""

        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            with anyio.CancelScope(shield=True):
                region = await super().acquire(nbytes, align, gfp)
            return region  # noqa: RET504  (mypy thinks the scope may swallow a return)

    gate, emergency = Gate(), Stubborn()
    gate.open()
    async with (
        allocator(slabs=gate, emergency=emergency, kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        held = await cache.alloc()
        gate.shut()
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                got.append(buf.emergency)

        await start(tasks, caller)
        await anyio.sleep(0.2)
        held.free()
        emergency.open()
        await settle()
        assert got == [False]
        assert cache.stats().obj_emergency == 0


async def test_close_ends_an_attempt_under_way() -> None:
    gate, emergency = Gate(), Gate()
    async with (
        allocator(slabs=gate, emergency=emergency, kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("c", SIZE)
        ends: list[str] = []

        async def caller() -> None:
            try:
                await cache.alloc()
            except CacheClosedError:
                ends.append("closed")

        await start(tasks, caller)
        await anyio.sleep(0.2)
        assert emergency.waiting == 1
        await cache.aclose()
        await settle()
        assert ends == ["closed"]


@pytest.mark.parametrize("merge", [False, True], ids=["alone", "one of two that share a pool"])
async def test_close_hands_out_no_object_that_was_too_few_for_the_first_in_line(*, merge: bool) -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        options: dict[str, Any] = {"merge": merge, "max_objects": 8}
        cache, other = (kmem.create_cache(name, SIZE, **options) for name in ("c", "other"))
        held = await other.alloc_many(5) if merge else await cache.alloc_many(5)
        ends: list[str] = []

        async def caller(need: int) -> None:
            try:
                for buf in await cache.alloc_many(need):
                    buf.free()
                ends.append("served")
            except CacheClosedError:
                ends.append("closed")

        for need in (4, 1, 1):
            await start(tasks, caller, need)
        with contextlib.nullcontext() if merge else pytest.warns(ResourceWarning):
            await cache.aclose()
        await settle()
        assert ends == ["closed"] * 3
        for buf in held:
            buf.free()


@pytest.mark.parametrize("flags", [CacheFlags(0), CacheFlags.NOEMERGENCY])
async def test_cache_closed_while_a_caller_is_at_its_checkpoint_gives_nothing(flags: CacheFlags) -> None:
    options = {"slabs": Gate(), "emergency": Gate(), "kick_after": None, "grow_timeout": 0}
    async with allocator(**options, checkpoints=True) as kmem:
        cache = kmem.create_cache("c", SIZE, flags=flags, watermark=1)
        async with anyio.create_task_group() as tasks:
            ends: list[str] = []

            async def caller() -> None:
                try:
                    await cache.alloc()
                except CacheClosedError:
                    ends.append("closed")

            for steps in (3, 2, 1, 0):  # the last two are at their checkpoint, or before it
                tasks.start_soon(caller)
                await settle(steps)
            await cache.aclose()
            with anyio.fail_after(5):
                while len(ends) < 4:
                    await anyio.sleep(0.01)


async def test_late_waiters_are_not_woken_by_each_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A herd would look as often as there are grows: the cost of a waiter would grow with their number."""
    looks = 0
    serve = Handover.serve

    def counted(room: Handover[Any]) -> bool:
        nonlocal looks
        looks += 1
        return serve(room)

    monkeypatch.setattr(Handover, "serve", counted)
    slabs = Latency(Instant(), 0.01)
    options = {"slabs": slabs, "grow_timeout": 0.005}
    async with allocator(**options) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, flags=CacheFlags.NOEMERGENCY)
        held: list[Any] = []

        async def caller() -> None:
            held.append(await cache.alloc())

        for _ in range(100):
            tasks.start_soon(caller)
        await anyio.sleep(3)
        assert len(held) == 100
        assert looks < 10 * 100
        for buf in held:
            buf.free()


async def test_who_comes_before_those_whom_a_broken_backend_failed_have_left_does_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slabs, ends = Gate(), list[str]()
    slabs.error = ValueError()
    failing = anyio.Event()
    grow_failed = Pool.grow_failed

    def fails(pool: Pool[Any], error: Exception) -> float:
        failing.set()  # so the second caller runs before the first hears of it
        slabs.error = None
        return grow_failed(pool, error)

    monkeypatch.setattr(Pool, "grow_failed", fails)
    async with allocator(slabs=slabs, grow_timeout=1000.0) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)

        async def caller(begin: anyio.Event | None = None) -> None:
            if begin is not None:
                await begin.wait()
            try:
                (await cache.alloc()).free()
                ends.append("served")
            except aslab.BackendError:
                ends.append("failed")

        await start(tasks, caller, failing)
        await start(tasks, caller)
        slabs.open()
        await anyio.sleep(3)
        assert len(ends) == 2
        tasks.cancel_scope.cancel()


async def test_permit_is_back_when_a_ctor_raises_what_is_no_exception() -> None:
    class Ends(BaseException):
        pass

    ending = [True]

    def ctor(memory: memoryview) -> int:
        if ending[0]:
            raise Ends
        return 1

    async with allocator(slabs=Gate(), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=ctor, max_emergency=1)
        with pytest.raises(aslab.ConstructorError):
            cache.alloc_nowait()
        ending[0] = False
        await settle()  # until its region is back
        cache.alloc_nowait().free()


async def test_finaliser_that_frees_in_the_middle_of_a_join_disturbs_nothing() -> None:
    """The garbage collector may run one at any step, and it may free a buffer that others wait for."""
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = await cache.alloc()
        order: list[int] = []

        async def caller(number: int) -> None:
            async with cache.lease():
                order.append(number)

        await start(tasks, caller, 1)
        line: Any = pool_of(cache).waiters
        frees: list[bool] = []

        class InTheMiddle(dict[int, Any]):
            def get(self, level: int, _: Any = None) -> Any:
                if not frees:
                    frees.append(True)
                    held.free()
                    assert cache.stats().obj_handover == 0, "served in the middle of a join"
                return super().get(level)

        line._ends = InTheMiddle(line._ends)
        tasks.start_soon(caller, 2)
        await anyio.sleep(1)
        assert order == [1, 2]
        check_consistency(cache)
