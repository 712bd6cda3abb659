"""Under one limit: what each cache is guaranteed, who is next, and what others do not use."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from aslab import KM, Buffer, Cache, ConfigError
from aslab._cache import pool_of
from aslab.backends import Region
from aslab.faults import Latency
from aslab.testing import check_consistency

from .support import SIZE, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio
SLAB = 8 * SIZE


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_a_cache_has_what_it_is_guaranteed_however_much_another_wants() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        greedy = kmem.create_cache("greedy", SIZE)
        modest = kmem.create_cache("modest", SIZE, min_objects=9)

        async def hold() -> None:
            async with greedy.lease():
                await anyio.sleep(1000)

        for _ in range(100):
            tasks.start_soon(hold)
        await anyio.sleep(1)
        assert greedy.stats().slab_total == 2, "two slabs are set aside"
        with anyio.fail_after(0.05):
            bufs = await modest.alloc_many(16)
        for buf in bufs:
            buf.free()
        tasks.cancel_scope.cancel()


async def test_beyond_its_minimum_a_cache_is_one_of_many() -> None:
    async with allocator(limit=4 * SLAB) as kmem:
        one = kmem.create_cache("one", SIZE, min_objects=8)
        other = kmem.create_cache("other", SIZE, min_objects=8)
        bufs = await one.alloc_many(24)
        with pytest.raises(TimeoutError):
            await one.alloc(timeout=1)
        bufs += await other.alloc_many(8)
        for buf in bufs:
            buf.free()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_objects": -1}, "it must be a whole number of at least 0"),
        ({"min_objects": 33}, "it must be at most 32, the objects that fit limit and max_objects"),
        ({"min_objects": 9, "max_objects": 8}, "it must be at most 8,"),
        ({"min_objects": 24}, f"it must fit into the limit less other guarantees, {2 * SLAB} bytes"),
    ],
    ids=str,
)
async def test_what_can_not_be_guaranteed_is_refused(options: dict[str, Any], words: str) -> None:
    async with allocator(limit=4 * SLAB) as kmem:
        kmem.create_cache("first", SIZE, min_objects=10)
        with pytest.raises(
            ConfigError, match=rf"^min_objects: {options['min_objects']} is not allowed; .*{words}"
        ):
            kmem.create_cache("c", SIZE, **options)
        assert len(kmem.caches) == 1


async def waiting_in_turn(caches: list[Cache[memoryview]], tasks: Any) -> list[str]:
    """Callers that come one after the other, one of each cache."""
    order: list[str] = []

    async def caller(cache: Cache[memoryview]) -> None:
        async with cache.lease():
            order.append(cache.name)
            await anyio.sleep(1)
        await cache.reap()

    for cache in caches:
        await start(tasks, caller, cache)
        await anyio.sleep(0.01)
    return order


async def test_room_goes_to_who_has_waited_longest_whatever_the_order_of_creation() -> None:
    async with allocator(limit=SLAB) as kmem, anyio.create_task_group() as tasks:
        caches = [kmem.create_cache(name, SIZE) for name in "abcd"]
        buf = await caches[0].alloc()
        order = await waiting_in_turn([caches[2], caches[3], caches[1]], tasks)
        buf.free()
        await caches[0].reap()
        await anyio.sleep(10)
        assert order == ["c", "d", "b"]


async def test_a_cache_with_large_slabs_is_not_starved_by_those_whose_small_ones_always_fit() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        small = [kmem.create_cache(f"small {number}", SIZE) for number in range(4)]
        large = kmem.create_cache("large", 4 * SIZE)
        held = [await cache.alloc() for cache in small]
        order = await waiting_in_turn([large], tasks)
        late = await waiting_in_turn([kmem.create_cache("late", SIZE)], tasks)
        for buf in held:
            buf.free()
            await buf.cache.reap()
            await settle()
            assert late == [], "it would have fitted, but another has waited longer"
        await anyio.sleep(10)
        assert (order, late) == (["large"], ["late"])


async def test_those_that_came_later_go_on_when_who_waited_longer_is_served_by_a_free() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        large = kmem.create_cache("large", 2 * SIZE)
        small = kmem.create_cache("small", SIZE)
        held = await large.alloc_many(8)
        more = await small.alloc_many(8)
        order = await waiting_in_turn([large], tasks)
        late = await waiting_in_turn([kmem.create_cache("late", SIZE)], tasks)
        await anyio.sleep(1)
        assert (order, late) == ([], [])
        held.pop().free()
        await settle()
        assert (order, late) == (["large"], ["late"])
        await anyio.sleep(10)
        for buf in [*held, *more]:
            buf.free()


async def test_empty_slabs_of_others_are_taken_before_anybody_waits_and_no_more_than_needed() -> None:
    async with allocator(limit=4 * SLAB) as kmem:
        idle, busy = kmem.create_cache("idle", SIZE), kmem.create_cache("busy", SIZE)
        await idle.prefill(32)
        begin = anyio.current_time()
        bufs = await busy.alloc_many(8)
        assert anyio.current_time() == begin
        assert (idle.stats().slab_total, busy.stats().slab_total) == (3, 1)
        for buf in bufs:
            buf.free()


async def test_what_is_guaranteed_is_not_taken_from_a_cache_though_it_is_idle() -> None:
    async with allocator(limit=4 * SLAB) as kmem:
        idle = kmem.create_cache("idle", SIZE, min_objects=16)
        busy = kmem.create_cache("busy", SIZE)
        await idle.prefill(32)
        bufs = await busy.alloc_many(16)
        with pytest.raises(TimeoutError):
            await busy.alloc(timeout=5)
        assert (idle.stats().slab_total, busy.stats().slab_total) == (2, 2)
        for buf in bufs:
            buf.free()


async def test_the_callers_of_a_cache_at_the_limit_are_asked_for_what_they_can_free() -> None:
    held: list[Any] = []

    def give_up(objects: int) -> int:
        given = [held.pop() for _ in range(min(objects, len(held)))]
        for buf in given:
            buf.free()
        return len(given)

    async with allocator(limit=2 * SLAB) as kmem:
        hoarder = kmem.create_cache("hoarder", SIZE, reclaim=give_up, objects_per_slab=1)
        other = kmem.create_cache("other", SIZE)
        held += await hoarder.alloc_many(16)
        begin = anyio.current_time()
        bufs = await other.alloc_many(8)
        assert anyio.current_time() - begin < 0.01
        assert (hoarder.stats().obj_reclaimed, hoarder.stats().slab_total) == (8, 8)
        for buf in [*bufs, *held]:
            buf.free()
        check_consistency(hoarder)


async def test_a_cache_at_the_limit_has_its_own_clients_asked_too() -> None:
    held: list[Any] = []
    asked: list[int] = []

    def give_up(objects: int) -> int:
        asked.append(objects)
        held.pop().free()
        return 1

    async with allocator(slabs=Latency(Instant(), 0.001), limit=SLAB) as kmem:
        cache = kmem.create_cache("c", SIZE, reclaim=give_up)
        held += await cache.alloc_many(8)
        async with cache.lease():
            assert asked == [8]
        for buf in held:
            buf.free()


async def test_clients_are_asked_once_an_interval_however_many_wait() -> None:
    asked: list[float] = []

    def refuse(objects: int) -> int:
        asked.append(anyio.current_time())
        return 0

    async with allocator(limit=SLAB, expire=30.0) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, reclaim=refuse)
        held = await cache.alloc_many(8)

        async def caller() -> None:
            async with cache.lease():
                pass

        for _ in range(5):
            for _ in range(5):
                await start(tasks, caller)
            await anyio.sleep(5)
        assert 2 <= len(asked) <= 3
        for buf in held:
            buf.free()


class Crowd:
    """Many callers of a cache, so that some always wait, and each holds its object for a moment."""

    def __init__(self, cache: Cache[memoryview], callers: int, tasks: Any) -> None:
        self.cache = cache
        self.served = 0
        for _ in range(callers):
            tasks.start_soon(self._call)

    async def _call(self) -> None:
        while True:
            async with self.cache.lease():
                self.served += 1
                await anyio.sleep(0.1)


@pytest.mark.parametrize("min_objects", [0, 8])
async def test_a_cache_that_comes_late_to_a_full_limit_is_not_starved(min_objects: int) -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        busy = kmem.create_cache("busy", SIZE)
        crowd = Crowd(busy, 100, tasks)
        await anyio.sleep(10)
        late = kmem.create_cache("late", SIZE, min_objects=min_objects)
        with anyio.fail_after(2 * 5.0 + 0.2):
            buf = await late.alloc()
        assert (busy.stats().slab_total, late.stats().slab_total) == (3, 1)
        check_consistency(busy)
        before = crowd.served
        await anyio.sleep(10)
        assert crowd.served - before == pytest.approx(24 * 100, rel=0.02), "the others go on with what is left"
        buf.free()
        tasks.cancel_scope.cancel()


async def test_two_crowds_share_the_limit_and_neither_waits_for_ever() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        one, other = kmem.create_cache("one", SIZE), kmem.create_cache("other", SIZE)
        crowds = [Crowd(one, 200, tasks)]
        await anyio.sleep(1)
        crowds.append(Crowd(other, 20, tasks))
        await anyio.sleep(60)
        assert all(crowd.served > 1000 for crowd in crowds)
        check_consistency(one)
        check_consistency(other)
        tasks.cancel_scope.cancel()


async def test_nobody_loses_what_it_was_guaranteed_to_the_starved() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        busy = kmem.create_cache("busy", SIZE, min_objects=24)
        Crowd(busy, 100, tasks)
        await anyio.sleep(1)
        late = kmem.create_cache("late", SIZE)
        held = await late.alloc_many(8)
        with pytest.raises(TimeoutError):
            await late.alloc(timeout=60)
        assert busy.stats().slab_total == 3
        for buf in held:
            buf.free()
        tasks.cancel_scope.cancel()


async def test_a_slab_that_can_not_be_emptied_is_used_again_and_its_cache_spared_for_longer_each_time() -> None:
    async with allocator(limit=2 * SLAB, expire=None) as kmem, anyio.create_task_group() as tasks:
        busy, late = kmem.create_cache("busy", SIZE), kmem.create_cache("late", SIZE)
        held = await busy.alloc_many(16)
        await start(tasks, late.alloc)
        condemned = []
        for interval in range(40):
            await anyio.sleep(5.0)
            await settle()
            if pool_of(busy).depot.slabs.condemned:
                condemned.append(interval)
            check_consistency(busy)
        pauses = [two - one for one, two in itertools.pairwise(condemned)]
        assert len(pauses) >= 3
        assert all(two > one for one, two in itertools.pairwise(pauses))
        if pool_of(busy).depot.slabs.condemned:
            await anyio.sleep(5.0)
        held.pop(0).free()
        with anyio.fail_after(0):
            held.append(await busy.alloc())
        tasks.cancel_scope.cancel()
        for buf in held:
            buf.free()


async def test_what_is_freed_of_a_slab_that_is_to_go_is_handed_to_nobody() -> None:
    async with allocator(limit=2 * SLAB) as kmem, anyio.create_task_group() as tasks:
        busy, late = kmem.create_cache("busy", SIZE), kmem.create_cache("late", SIZE)
        held = await busy.alloc_many(16)
        got: list[bool] = []

        async def caller() -> None:
            async with late.lease():
                got.append(True)

        await start(tasks, caller)
        await anyio.sleep(5.2)
        slab = pool_of(busy).depot.slabs.condemned
        assert slab is not None
        for buf in [buf for buf in held if buf._slot.slab is slab]:
            held.remove(buf)
            buf.free()
            check_consistency(busy)
        await settle()
        assert got == [True]
        for buf in held:
            buf.free()


async def test_who_waits_is_told_when_a_cache_with_an_unused_guarantee_closes() -> None:
    async with allocator(limit=2 * SLAB) as kmem, anyio.create_task_group() as tasks:
        modest = kmem.create_cache("modest", SIZE, min_objects=8)
        other = kmem.create_cache("other", SIZE)
        held = await other.alloc_many(8)
        order = await waiting_in_turn([other], tasks)
        await modest.aclose()
        await settle()
        assert order == ["other"]
        await anyio.sleep(2)
        for buf in held:
            buf.free()


async def test_letting_others_go_first_is_no_work_while_nothing_happens() -> None:
    async with allocator(limit=100 * SIZE, expire=None) as kmem, anyio.create_task_group() as tasks:
        small = kmem.create_cache("small", SIZE, objects_per_slab=1)
        large = kmem.create_cache("large", SIZE, objects_per_slab=60)
        held = await small.alloc_many(50)
        await waiting_in_turn([large, small, small, small], tasks)
        held.pop().free()  # for the first of those who wait; the others let `large` go first
        await settle()
        looks = 0
        attend = pool_of(small).attend

        def count() -> None:
            nonlocal looks
            looks += 1
            attend()

        pool_of(small).attend = count  # type: ignore[method-assign]
        await settle(200)
        assert looks == 0
        tasks.cancel_scope.cancel()
        for buf in held:
            buf.free()


class StuckRelease(Instant):
    """The first region is not taken back until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = anyio.Event()

    async def release(self, region: Region) -> None:
        await self.let_go.wait()
        await super().release(region)


async def test_a_cache_whose_slab_is_stuck_on_its_way_back_keeps_nobody_from_growing() -> None:
    slabs = StuckRelease()
    async with allocator(slabs=slabs, limit=100 * SLAB) as kmem, anyio.create_task_group() as tasks:
        one, other = kmem.create_cache("one", SIZE, max_emergency=0), kmem.create_cache("other", SIZE)
        (await one.alloc()).free()
        await start(tasks, one.reap)
        await start(tasks, one.alloc)
        with anyio.fail_after(1):
            (await other.alloc()).free()
        tasks.cancel_scope.cancel()
        slabs.let_go.set()


async def test_no_slab_goes_for_others_once_the_allocator_is_sealed() -> None:
    async with allocator(limit=2 * SLAB) as kmem, anyio.create_task_group() as tasks:
        one, other = (kmem.create_cache(name, SIZE, objects_per_slab=1) for name in ("one", "other"))
        held = await one.alloc_many(16)
        await start(tasks, other.alloc)
        await anyio.sleep(5.2)
        assert pool_of(one).depot.slabs.condemned
        kmem.seal()
        assert not pool_of(one).depot.slabs.condemned
        await anyio.sleep(20)
        for buf in held:
            buf.free()
        await settle()
        assert (one.stats().slab_total, pool_of(one).depot.slabs.condemned) == (16, None)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_callers_of_several_in_two_caches_do_not_take_from_each_other_what_gathers_for_them(
    order: str,
) -> None:
    slabs = Latency(Instant(), 0.02, 0.01)
    async with allocator(slabs=slabs, limit=2 * SIZE, expire=0.3) as kmem:
        caches = {name: kmem.create_cache(name, SIZE, objects_per_slab=1) for name in order}
        held = [await cache.alloc() for cache in caches.values()]
        served: list[str] = []

        async def caller(cache: Cache[memoryview]) -> None:
            async with cache.lease_many(2) as bufs:
                assert not any(buf.emergency for buf in bufs)
                served.append(cache.name)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for name in "ba":
                    await start(tasks, caller, caches[name])
                    await anyio.sleep(0.01)
                for buf in held:
                    buf.free()
        assert served == ["b", "a"]
        assert sum(cache.stats().slab_create for cache in caches.values()) <= 6


async def test_what_gathers_for_a_caller_of_several_does_not_expire() -> None:
    async with allocator(limit=2 * SLAB, expire=3.0) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        held = await cache.alloc_many(16)
        await start(tasks, cache.alloc_many, 10)
        for buf in held[:9]:
            buf.free()
        await anyio.sleep(30)
        await cache.reap()
        assert (cache.stats().slab_total, cache.stats().slab_destroy) == (16, 0)
        tasks.cancel_scope.cancel()
        for buf in held[9:]:
            buf.free()


async def test_slabs_that_become_idle_while_another_cache_waits_are_taken_at_once() -> None:
    async with allocator(limit=2 * SLAB) as kmem, anyio.create_task_group() as tasks:
        busy, late = kmem.create_cache("busy", SIZE), kmem.create_cache("late", SIZE)
        held = await busy.alloc_many(16)
        order = await waiting_in_turn([late], tasks)
        await anyio.sleep(1)
        for buf in held:
            buf.free()
        await settle()
        assert order == ["late"]
        await anyio.sleep(2)


async def test_what_is_set_aside_is_not_given_to_the_starved() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        one, other = kmem.create_cache("one", SIZE, reserve=2), kmem.create_cache("other", SIZE)
        await kmem.ready()
        held = await one.alloc_many(14)
        more = await other.alloc_many(16)
        order = await waiting_in_turn([other], tasks)
        for _ in range(6):
            await anyio.sleep(5.1)
            assert one.stats().obj_reserved == 2
            held.append(one.alloc_nowait(KM.PUSHPAGE))
            held.pop().free()
        check_consistency(one)
        assert order == []
        tasks.cancel_scope.cancel()
        for buf in [*held, *more]:
            buf.free()


async def test_a_reserve_that_is_spread_over_idle_slabs_keeps_nobody_waiting() -> None:
    async with allocator(limit=3 * 2 * SIZE) as kmem:
        one = kmem.create_cache("one", SIZE, objects_per_slab=2, reserve=2, max_objects=4)
        other = kmem.create_cache("other", SIZE, objects_per_slab=4)
        await kmem.ready()
        held = [*await one.alloc_many(2), one.alloc_nowait(KM.PUSHPAGE)]
        for buf in held[0], held[1], held[2]:  # the reserve is refilled from the slab of the first one freed
            buf.free()
            await anyio.sleep(0.1)
        assert len({slot.slab for slot in pool_of(one).reserve}) == 2
        with anyio.fail_after(2 * 5.0 + 0.2):
            (await other.alloc()).free()
        assert (one.stats().obj_reserved, one.stats().slab_total) == (2, 1)
        check_consistency(one)


async def test_a_watermark_yields_to_a_caller_that_waits_for_a_slab() -> None:
    async with allocator(limit=9 * SIZE) as kmem:
        one = kmem.create_cache("one", SIZE, objects_per_slab=4, watermark=2)
        other = kmem.create_cache("other", SIZE, objects_per_slab=8)
        (await one.alloc()).free()
        with anyio.fail_after(1):
            buf = await other.alloc()
        assert (one.stats().slab_total, other.stats().slab_total) == (0, 1)
        buf.free()
        await anyio.sleep(1)
        assert one.stats().slab_total == 1, "nobody waits: it grows ahead again"


async def test_several_that_others_guarantees_leave_no_room_for_are_refused() -> None:
    async with allocator(limit=4 * SLAB) as kmem:
        kmem.create_cache("one", SIZE, min_objects=24)
        other = kmem.create_cache("other", SIZE)
        for call in (other.alloc_many, other.prefill):
            with pytest.raises(
                ConfigError, match=rf"fit into the limit less other guarantees, {SLAB} bytes, in whole slabs"
            ):
                await call(9)
        for buf in await other.alloc_many(8):
            buf.free()


async def test_who_waits_for_what_is_then_guaranteed_to_another_cache_is_told_that_it_can_not_be() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        one, large = kmem.create_cache("one", SIZE), kmem.create_cache("large", SIZE, objects_per_slab=32)
        held, refused = await one.alloc_many(8), list[str]()

        async def caller(call: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(ConfigError, match="must fit into the limit less other guarantees"):
                await call()
            refused.append(str(call))

        for call in large.alloc, large.alloc, partial(large.prefill, 1):
            await start(tasks, caller, call)
        kmem.create_cache("late", SIZE, min_objects=8)
        await anyio.sleep(5.1)
        assert len(refused) == 3
        for buf in held:
            buf.free()


async def test_who_then_waits_for_slabs_that_its_cache_has_goes_on_until_these_go() -> None:
    async with allocator(limit=4 * SLAB) as kmem, anyio.create_task_group() as tasks:
        large = kmem.create_cache("large", SIZE, objects_per_slab=32)
        held, refused = await large.alloc_many(32), list[int]()

        async def caller(n: int) -> None:
            try:
                for buf in await large.alloc_many(n):
                    buf.free()
            except ConfigError:
                refused.append(n)

        async def urgent(cache: Cache[memoryview]) -> None:
            (await cache.alloc(KM.PUSHPAGE)).free()

        for n in 2, 32:
            await start(tasks, caller, n)
        late = kmem.create_cache("late", SIZE, min_objects=8)
        await anyio.sleep(1)
        for _ in range(2):
            held.pop().free()
        await settle()
        assert (refused, large.stats().waiters) == ([], 1), "the first is served, and the second may be"
        await start(tasks, urgent, late)
        await anyio.sleep(2 * 5.0)
        for buf in held:
            buf.free()
        await anyio.sleep(1)
        assert (refused, late.stats().waiters) == ([32], 0), "the slab has gone to the other"


async def test_a_slab_that_another_thread_leaves_idle_goes_at_once_to_who_waits_for_one() -> None:
    async with allocator(limit=2 * SLAB, emergency_limit=0) as kmem, anyio.create_task_group() as tasks:
        one = kmem.create_cache("one", SIZE, objects_per_slab=8, magazine_size=2)
        other = kmem.create_cache("other", SIZE, objects_per_slab=8)
        bufs = await one.alloc_many(16)
        bufs.sort(key=lambda buf: buf.address)  # one slab, then the other
        served: list[float] = []

        async def wait() -> None:
            async with other.lease():
                served.append(anyio.current_time())

        await start(tasks, wait)
        began = anyio.current_time()
        thread = threading.Thread(target=lambda: list(map(Buffer.free, bufs[:11])))
        thread.start()
        thread.join()  # the loop hears of it when all of the first slab is past the magazine
        await anyio.sleep(10)
        assert served
        assert served[0] - began < 0.1
        for buf in bufs[11:]:
            buf.free()


async def test_nothing_goes_to_the_starved_from_a_cache_whose_callers_come_before_them() -> None:
    async with allocator(limit=2 * SLAB, emergency_limit=0) as kmem, anyio.create_task_group() as tasks:
        urgent = kmem.create_cache("urgent", SIZE, objects_per_slab=8)
        bufs = await urgent.alloc_many(16)
        bufs.sort(key=lambda buf: buf.address)
        late = kmem.create_cache("late", SIZE, objects_per_slab=8)
        served = 0

        async def wait() -> None:
            async with late.lease():
                pass

        async def call() -> None:
            """Somebody always waits, and never for long."""
            nonlocal served
            while True:
                try:
                    bufs.append(await urgent.alloc(KM.PUSHPAGE, timeout=0.5))
                except TimeoutError:
                    continue
                served += 1

        await start(tasks, wait)
        await start(tasks, call)
        await anyio.sleep(20.25)  # not just as one gives up
        for buf in (bufs[0], bufs[8]):  # of either slab
            buf.free()
            await settle()
        assert (served, late.stats().waiters) == (2, 1)
        del bufs[8], bufs[0]
        tasks.cancel_scope.cancel()
        for buf in bufs:
            buf.free()


async def use(cache: Cache[memoryview], timeout: float | None = None) -> None:
    """Get one and free it, or give up."""
    with contextlib.suppress(TimeoutError):
        (await cache.alloc(timeout=timeout)).free()


async def test_callers_that_let_another_go_first_ask_again_once_that_gives_up() -> None:
    async with allocator(limit=4 * SIZE, emergency_limit=0) as kmem, anyio.create_task_group() as tasks:
        caches = {name: kmem.create_cache(name, SIZE, objects_per_slab=1) for name in ("some", "small", "late")}
        large = kmem.create_cache("large", 2 * SIZE, objects_per_slab=1)
        bufs = await caches["some"].alloc_many(3)
        await start(tasks, use, large, 2.0)  # there is no room for that
        await start(tasks, use, caches["small"])  # there is, but the other came first
        await start(tasks, use, caches["late"], 1.0)
        await anyio.sleep(1.5)
        assert caches["small"].stats().waiters == 1
        await anyio.sleep(1)
        assert not caches["small"].stats().waiters
        for buf in bufs:
            buf.free()
