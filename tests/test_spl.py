"""The caches of SPL: who grows them, how long a caller waits, and what it gets instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from aslab import GFP
from aslab.backends import Region
from aslab.lab._simulation._waits import WaitGraph
from aslab.lab._story._spl import Growth, SplCache, SplObject, SplQueue, magazine_for

from .helpers import Loop
from .support import Gate, Instant, settle

pytestmark = pytest.mark.anyio

SIZE = 128
OBJECTS, RETRY = 8, 0.01
TICK = 0.01
CALLER = Growth("caller")
WORKER = Growth("worker", TICK)
MARKED = Growth("worker", 0.1, mark=True, index="tree", looks_again=True)
URGENT = GFP.NOIO | GFP.HIGH


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


class Refusing(Instant):
    """Fails so many times before it gives memory."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        if self.times:
            self.times -= 1
            raise MemoryError
        return await super().acquire(nbytes, align, gfp)


class Kit:
    """A cache, what it stands on, and the objects that came of it."""

    def __init__(self, growth: Growth, slabs: Instant, single: Instant, **options: Any) -> None:
        self.options = {"magazine": 2 * OBJECTS, **options}
        self.slabs, self.single, self.waits = slabs, single, WaitGraph()
        self.queue = SplQueue(self.waits)
        self.got: list[SplObject] = []
        self.times: list[float] = []
        self.cache = self.another("io", growth)

    def another(self, name: str, growth: Growth) -> SplCache:
        options = {"slabs": self.slabs, "emergency": self.single, "queue": self.queue, **self.options}
        return SplCache(name, SIZE, growth, gfp=URGENT, **options)

    async def take(self, count: int = 1) -> None:
        """Allocate, and note how long each took."""
        for _ in range(count):
            begin = anyio.current_time()
            self.got.append(await self.cache.alloc())
            self.times.append(round(anyio.current_time() - begin, 6))


@asynccontextmanager
async def kit(
    growth: Growth, slabs: Instant | None = None, single: Instant | None = None, **options: Any
) -> AsyncIterator[Kit]:
    """With its work queue running; once all objects are freed, nothing but slabs may be left."""
    made = Kit(growth, slabs or Instant(), single or Instant(), **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.queue.run)
        yield made
        if isinstance(made.slabs, Gate):
            made.slabs.open()
        await settle()
        for obj in made.got:
            await made.cache.free(obj)
        assert not made.single.outstanding
        assert made.cache.emergency == 0
        await made.cache.shrink()
        assert not made.slabs.outstanding
        tasks.cancel_scope.cancel()


async def test_caller_makes_the_slab_itself_and_waits_for_as_long_as_it_takes() -> None:
    slabs = Gate()
    async with kit(CALLER, slabs) as k, anyio.create_task_group() as tasks:
        k.waits.be("txg_sync")
        tasks.start_soon(k.take)
        await anyio.sleep(1000)
        assert (slabs.waiting, k.got) == (1, [])
        assert k.waits.edges() == {"txg_sync": ["cache io"]}, "no worker, and nothing else to wait for"
        slabs.open()
        await settle()
        assert k.times == [1000]
        assert k.cache.longest_wait == 1000
        assert (k.single.asked, k.cache.deadlocks) == ([], 0)


async def test_callers_that_find_nothing_each_make_a_slab() -> None:
    slabs = Gate()
    async with kit(CALLER, slabs) as k, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(k.take)
        await settle()
        assert slabs.waiting == 3
        slabs.open()


@pytest.mark.parametrize("growth", [CALLER, WORKER])
async def test_slab_has_its_objects_and_is_asked_for_with_the_flags_of_the_cache(growth: Growth) -> None:
    async with kit(growth) as k:
        await k.take(OBJECTS)
        assert k.slabs.asked == [(SIZE * OBJECTS, URGENT)]
        await k.take()
        assert len(k.slabs.asked) == 2
        assert len({id(obj.region) for obj in k.got}) == 2
        assert not any(obj.emergency for obj in k.got)


async def test_free_object_is_taken_again_without_a_new_slab() -> None:
    async with kit(WORKER) as k:
        await k.take()
        await k.cache.free(k.got.pop())
        await k.take(OBJECTS)
        assert len(k.slabs.asked) == 1
        assert k.times[1:] == [0] * OBJECTS


async def test_worker_makes_the_slab_and_the_caller_waits_for_it() -> None:
    slabs = Gate()
    async with kit(Growth("worker"), slabs) as k, anyio.create_task_group() as tasks:
        k.waits.be("txg_sync")
        tasks.start_soon(k.take)
        await anyio.sleep(1000)
        assert k.waits.edges() == {"cache io": ["growth worker"], "txg_sync": ["cache io"]}
        assert (k.got, k.single.asked) == ([], []), "without patience there is no emergency path"
        slabs.open()
        await settle()
        assert [obj.emergency for obj in k.got] == [False]


async def test_one_grow_at_a_time_however_many_callers_wait() -> None:
    slabs = Gate()
    async with kit(WORKER, slabs) as k, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(k.take)
        await settle()
        assert slabs.waiting == 1
        await anyio.sleep(10 * TICK)
        tasks.start_soon(k.take)
        await settle()
        assert slabs.waiting == 1
        slabs.open()
        await settle()
        assert len(slabs.asked) == 1


async def test_one_queue_for_all_caches_does_one_job_after_the_other() -> None:
    slabs = Gate()
    async with kit(WORKER, slabs) as k, anyio.create_task_group() as tasks:
        other = k.another("data", Growth("worker"))
        tasks.start_soon(k.take)
        tasks.start_soon(other.alloc)
        await settle()
        assert slabs.waiting == 1
        slabs.open()
        await settle()
        assert len(slabs.asked) == 2
        slabs.outstanding.discard(id(next(iter(other._slabs_free))))


async def test_patience_over_the_caller_takes_an_emergency_object() -> None:
    slabs = Gate()
    async with kit(WORKER, slabs) as k:
        await k.take(3)
        assert k.times == [TICK] * 3, "without a mark each waits anew"
        assert all(obj.emergency for obj in k.got)
        assert k.single.asked == [(SIZE, URGENT)] * 3
        assert (k.cache.emergency, k.cache.emergency_max, k.cache.deadlocks) == (3, 3, 3)
        assert k.cache.longest_wait == pytest.approx(TICK)
        for _ in range(2):
            await k.cache.free(k.got.pop(0))
        assert (k.cache.emergency, k.cache.emergency_max) == (1, 3)
        assert len(k.single.outstanding) == 1


async def test_slab_within_patience_makes_no_emergency_object() -> None:
    slabs = Gate()
    async with kit(WORKER, slabs) as k, anyio.create_task_group() as tasks:
        tasks.start_soon(k.take)
        await anyio.sleep(TICK / 2)
        slabs.open()
        await settle()
        assert k.times == [TICK / 2]
        assert (k.single.asked, k.cache.deadlocks) == ([], 0)


async def test_mark_spares_the_wait_to_all_after_the_first() -> None:
    slabs = Gate()
    async with kit(MARKED, slabs) as k:
        await k.take(4)
        assert k.times == [0.1, 0, 0, 0]
        assert (k.cache.deadlocks, k.cache.emergency) == (1, 4)


async def test_mark_is_cleared_by_the_grow_and_the_next_waits_again() -> None:
    slabs = Gate()
    async with kit(MARKED, slabs) as k:
        await k.take(2)
        slabs.open()
        await settle()
        slabs.shut()
        await k.take(OBJECTS)
        assert not any(obj.emergency for obj in k.got[2:])
        await k.take(2)
        assert k.times == [0.1, 0, *[0] * OBJECTS, 0.1, 0]
        assert k.cache.deadlocks == 2


@pytest.mark.parametrize("growth", [WORKER, MARKED])
async def test_refused_an_emergency_object_the_caller_tries_again(growth: Growth) -> None:
    async with kit(growth, Gate(), Refusing(3)) as k:
        await k.take()
        pauses = 3 * RETRY + (growth.patience or 0) * (1 if growth.mark else 4)
        assert k.times == [pytest.approx(pauses)]
        assert (k.cache.failures, k.cache.emergency) == (3, 1)


async def test_refused_caller_takes_from_a_slab_that_came_meanwhile() -> None:
    slabs = Gate()
    async with kit(WORKER, slabs, Refusing(1000)) as k, anyio.create_task_group() as tasks:
        tasks.start_soon(k.take)
        await anyio.sleep(1)
        assert k.cache.failures > 10
        slabs.open()
        await settle()
        await anyio.sleep(RETRY)
        assert [obj.emergency for obj in k.got] == [False]


@pytest.mark.parametrize("growth", [CALLER, WORKER])
async def test_refused_slab_is_tried_again_after_a_pause(growth: Growth) -> None:
    async with kit(Growth(growth.by), Refusing(3)) as k:
        await k.take()
        assert k.times == [pytest.approx(3 * RETRY)]
        assert k.cache.failures == 3


@pytest.mark.parametrize("growth", [CALLER, WORKER])
async def test_cancelled_caller_leaves_nothing_and_the_grow_goes_on(growth: Growth) -> None:
    slabs = Gate()
    async with kit(growth, slabs) as k:
        with anyio.move_on_after(TICK / 2):
            await k.take()
        assert slabs.waiting == (growth.by == "worker")
        slabs.open()
        await settle()
        await k.take()
        assert k.times == [0]
        assert len(slabs.asked) == 1


async def test_prefill_makes_slabs_until_there_are_enough_objects() -> None:
    async with kit(WORKER) as k:
        await k.cache.prefill(2 * OBJECTS + 1)
        assert len(k.slabs.asked) == 3
        await k.cache.prefill(3 * OBJECTS)
        await k.take(3 * OBJECTS)
        assert len(k.slabs.asked) == 3


async def test_shrink_releases_the_slabs_without_an_object_in_use_and_no_others() -> None:
    async with kit(WORKER, magazine=1) as k:
        assert not await k.cache.shrink()
        await k.cache.prefill(3 * OBJECTS)
        await k.take()
        assert await k.cache.shrink()
        assert len(k.slabs.outstanding) == 1
        assert not await k.cache.shrink()
        await k.take(OBJECTS - 1)
        assert len(k.slabs.asked) == 3, "what is left of the slab in use"
        await k.take()
        assert len(k.slabs.asked) == 4, "what was released is not given out"


@pytest.mark.parametrize(("reserve", "left"), [(1, 1), (OBJECTS, 1), (OBJECTS + 1, 2), (9 * OBJECTS, 3)])
async def test_shrink_leaves_the_slabs_of_the_reserve(reserve: int, left: int) -> None:
    async with kit(WORKER, reserve=reserve) as k:
        await k.cache.prefill(3 * OBJECTS)
        assert await k.cache.shrink() == (left < 3)
        assert len(k.slabs.outstanding) == left
        await k.take(left * OBJECTS)
        assert len(k.slabs.asked) == 3
        k.cache._reserve = 0  # in the end nothing may be left


async def test_slab_has_so_many_objects_and_a_failed_one_is_tried_again_after_a_while() -> None:
    slabs = Refusing(2)
    async with kit(CALLER, slabs, objects=3, retry=0.25, magazine=6) as k:
        await k.take(3)
        assert slabs.asked == [(3 * SIZE, URGENT)]
        assert k.times == [0.5, 0, 0]


async def test_objects_are_taken_from_the_fullest_slab_so_that_others_become_empty() -> None:
    async with kit(WORKER, magazine=1) as k:
        await k.cache.prefill(2 * OBJECTS)
        await k.take(OBJECTS + 2)
        for _ in range(5):
            await k.cache.free(k.got.pop(0))  # the full slab has 5 free now, the other one 6
        await k.take(5)
        assert len({id(obj.region) for obj in k.got[-5:]}) == 1
        others = [obj for obj in k.got if obj.region is not k.got[-1].region]
        assert len(others) == 2
        for obj in others:
            k.got.remove(obj)
            await k.cache.free(obj)
        assert await k.cache.shrink()
        assert len(k.slabs.outstanding) == 1


class TestMagazine:
    @pytest.mark.parametrize(("size", "objects"), [(2**14, 64), (2**17, 16), (2**19, 16), (2**20, 4), (2**21, 4)])
    def test_is_the_smaller_the_larger_its_objects_are(self, size: int, objects: int) -> None:
        assert magazine_for(size) == objects

    async def test_a_refill_takes_half_a_magazine_and_the_newest_goes_out_first(self) -> None:
        async with kit(WORKER, magazine=4) as k:
            await k.cache.prefill(OBJECTS)
            await k.take()
            assert (k.cache._free, len(k.cache._magazine)) == (OBJECTS - 2, 1)
            await k.take(OBJECTS)
            last = k.got.pop(0)
            await k.cache.free(last)
            await k.cache.free(k.got.pop())
            await k.take(2)
            assert k.got[-1].region is last.region
            assert len(k.slabs.asked) == 2

    async def test_a_full_one_gives_its_oldest_half_back_to_the_slabs(self) -> None:
        async with kit(WORKER, magazine=4) as k:
            await k.take(OBJECTS)
            for _ in range(4):
                await k.cache.free(k.got.pop())
            assert (k.cache._free, len(k.cache._magazine)) == (0, 4)
            await k.cache.free(k.got.pop())
            assert (k.cache._free, len(k.cache._magazine)) == (2, 3)

    async def test_what_it_holds_keeps_a_slab_until_it_is_shrunk(self) -> None:
        async with kit(CALLER, magazine=2 * OBJECTS) as k:
            await k.take()
            await k.cache.free(k.got.pop())
            assert len(k.cache._magazine) == OBJECTS
            assert await k.cache.shrink()
            assert not k.slabs.outstanding

    @pytest.mark.parametrize("growth", [CALLER, WORKER])
    async def test_who_finds_less_than_a_batch_waits_for_a_slab_all_the_same(self, growth: Growth) -> None:
        slabs = Gate()
        async with kit(growth, slabs, magazine=6) as k, anyio.create_task_group() as tasks:
            slabs.open()
            await k.take(6)  # two are left
            slabs.shut()
            tasks.start_soon(k.take)
            await anyio.sleep(TICK / 2)
            assert (len(k.got), slabs.waiting, len(k.cache._magazine)) == (6, 1, 2)
            slabs.open()

    async def test_the_others_of_a_slab_are_found_by_who_looks_again_and_by_no_one_else(self) -> None:
        asked: dict[str, int] = {}
        for growth in (WORKER, MARKED):
            slabs = Gate()
            async with kit(growth, slabs) as k:
                async with anyio.create_task_group() as tasks:
                    for _ in range(OBJECTS):
                        tasks.start_soon(k.take)
                    await settle()
                    slabs.open()
                asked[growth.index] = len(slabs.asked)
                assert not any(obj.emergency for obj in k.got)
        assert asked["tree"] == 1
        assert asked["list"] > 1


class TestFlags:
    """Who asks with flags of its own, as KM_SLEEP's."""

    @pytest.mark.parametrize("growth", [CALLER, WORKER])
    async def test_go_with_the_slab_that_it_asks_for(self, growth: Growth) -> None:
        async with kit(growth) as k:
            k.got.append(await k.cache.alloc(GFP.KERNEL))
            await k.take(OBJECTS)
            assert k.slabs.asked == [(SIZE * OBJECTS, GFP.KERNEL), (SIZE * OBJECTS, URGENT)]

    async def test_go_with_its_emergency_object_and_not_with_those_of_others(self) -> None:
        async with kit(MARKED, Gate()) as k:
            k.got.append(await k.cache.alloc(GFP.KERNEL))
            await k.take()
            assert k.single.asked == [(SIZE, GFP.KERNEL), (SIZE, URGENT)]

    async def test_lose_io_where_emergency_objects_are_to_be_without(self) -> None:
        async with kit(Growth("worker", TICK, noio=True), Gate()) as k:
            k.got.append(await k.cache.alloc(GFP.KERNEL))
            await k.take()
            assert k.single.asked == [(SIZE, GFP.NOIO), (SIZE, URGENT)]


async def test_refused_an_emergency_object_the_caller_looks_into_the_magazine_before_it_waits_again() -> None:
    slabs = Gate()
    async with kit(WORKER, slabs, Refusing(1000)) as k:
        slabs.open()
        await k.take(OBJECTS)
        slabs.shut()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(k.take)
            await anyio.sleep(TICK + RETRY / 2)  # it was refused, and pauses
            await k.cache.free(k.got.pop(0))
        assert k.times[-1] == pytest.approx(TICK + RETRY)
        assert (k.cache.failures, k.cache.emergency) == (1, 0)
