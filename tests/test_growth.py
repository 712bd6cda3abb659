"""Growth: one slab at a time, the worker, what is set aside, what is tried again."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, KM, BackendError, CacheClosedError, ConstructorError
from aslab._allocator import tasks_of
from aslab._cache import pool_of
from aslab._kmem._waiters import AT_FIRST
from aslab.backends import Region
from aslab.faults import Deadlock, Failslab, Latency
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Watched(Latency):
    """Counts how many acquires run at the same time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(Instant(), seconds)
        self.now = self.most = 0

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await super().acquire(nbytes, align, gfp)
        finally:
            self.now -= 1


@pytest.mark.parametrize("workers", [1, 3])
async def test_as_many_grows_at_a_time_as_there_are_workers(workers: int) -> None:
    slabs = Watched(0.01)
    async with allocator(slabs=slabs, growth_workers=workers) as kmem, anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(kmem.create_cache(f"{number}", SIZE).prefill, 16)
        await anyio.sleep(1)
        assert slabs.most == workers
        assert all(stats.slab_total == 2 for stats in kmem.stats().caches)


async def test_many_callers_of_one_cache_ask_for_one_slab() -> None:
    slabs = Watched(0.01)
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)

        async def caller() -> None:
            async with cache.lease():
                await anyio.sleep(0.001)

        for _ in range(8):
            tasks.start_soon(caller)
        await anyio.sleep(1)
        assert cache.stats().slab_create == 1


async def test_caches_are_grown_in_the_order_in_which_they_asked() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        caches = [kmem.create_cache(f"{n}", n * SIZE, objects_per_slab=1) for n in (3, 1, 2)]
        for cache in caches:
            await start(tasks, cache.prefill, 1)
        slabs.open()
        await settle()
        assert [nbytes // SIZE for nbytes, _ in slabs.asked] == [3, 1, 2]


class StuckFirst(Instant):
    """The first acquire never returns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.let_go = anyio.Event()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.calls += 1
        if self.calls == 1:
            await self.let_go.wait()
        return await super().acquire(nbytes, align, gfp)


async def test_stuck_grow_is_set_aside_its_cache_keeps_its_marks_and_the_slab_is_taken_when_it_comes() -> None:
    slabs = StuckFirst()
    async with allocator(slabs=slabs, kick_after=5) as kmem:
        stuck, other = kmem.create_cache("stuck", SIZE), kmem.create_cache("other", SIZE)
        held = await stuck.alloc()
        assert held.emergency
        begin = anyio.current_time()
        await other.prefill(1)
        assert anyio.current_time() - begin == pytest.approx(4.9)
        assert kmem.stats().kicked == 1
        assert stuck.stats().growing
        assert stuck.stats().deadlocked
        slabs.let_go.set()
        await settle()
        assert not stuck.stats().growing
        assert not stuck.stats().deadlocked
        assert stuck.stats().slab_total == 1
        held.free()


async def test_without_kick_after_a_stuck_grow_holds_up_the_others() -> None:
    slabs = StuckFirst()
    async with allocator(slabs=slabs, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        stuck, other = kmem.create_cache("stuck", SIZE), kmem.create_cache("other", SIZE)
        await start(tasks, stuck.prefill, 1)
        await start(tasks, other.prefill, 1)
        await anyio.sleep(1000)
        assert other.stats().slab_total == 0
        slabs.let_go.set()
        await settle()
        assert other.stats().slab_total == 1


@pytest.mark.parametrize("before", [False, True], ids=["its cache is queued by it", "its cache is queued before"])
async def test_the_grow_of_a_pushpage_caller_overtakes_those_of_sleep_callers(before: bool) -> None:
    async with (
        allocator(slabs=Latency(Instant(), 1.0), grow_timeout=60, kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        caches = [kmem.create_cache(f"{number}", SIZE) for number in range(11)]
        ended: list[tuple[str, KM]] = []

        async def call(cache: aslab.Cache[Any], flags: KM) -> None:
            async with cache.lease(flags):
                ended.append((cache.name, flags))
                await anyio.sleep(60)

        for cache in caches[:10]:
            await start(tasks, call, cache, KM.SLEEP)
        if before:
            await start(tasks, call, caches[10], KM.SLEEP)
        await anyio.sleep(0.5)
        await start(tasks, call, caches[10], KM.PUSHPAGE)
        await anyio.sleep(1.6)  # the grow under way, and one more
        assert ended[0] == ("0", KM.SLEEP)
        assert ("10", KM.PUSHPAGE) in ended
        assert {name for name, _ in ended} == {"0", "10"}
        await anyio.sleep(20)
        first_of_each = list(dict.fromkeys(name for name, _ in ended))
        assert first_of_each == ["0", "10", *map(str, range(1, 10))], "the others go on by age"


async def test_a_cache_whose_pushpage_caller_goes_away_is_queued_by_its_age_again() -> None:
    async with (
        allocator(slabs=Latency(Instant(), 1.0), grow_timeout=60, kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        caches = [kmem.create_cache(f"{number}", SIZE) for number in range(4)]
        served: list[str] = []

        async def call(cache: aslab.Cache[Any]) -> None:
            async with cache.lease():
                served.append(cache.name)

        for cache in caches:
            await start(tasks, call, cache)
        with anyio.move_on_after(0.5):
            await caches[3].alloc(KM.PUSHPAGE)
        await anyio.sleep(10)
        assert served == ["0", "1", "2", "3"]


async def test_a_pushpage_grow_neither_takes_what_is_guaranteed_to_another_nor_holds_it_up() -> None:
    slab = SIZE
    async with (
        allocator(slabs=Latency(Instant(), 1.0), limit=4 * slab, grow_timeout=60) as kmem,
        anyio.create_task_group() as tasks,
    ):
        own = kmem.create_cache("own", SIZE, objects_per_slab=1, min_objects=2)
        other = kmem.create_cache("other", SIZE, objects_per_slab=1)
        held = [await other.alloc() for _ in range(2)]
        served: list[str] = []

        async def call(cache: aslab.Cache[Any], flags: KM) -> None:
            buf = await cache.alloc(flags)
            served.append(cache.name)
            await anyio.sleep(100)
            buf.free()

        await start(tasks, call, other, KM.PUSHPAGE)
        await start(tasks, call, own, KM.SLEEP)
        await start(tasks, call, own, KM.SLEEP)
        await anyio.sleep(10)
        assert served == ["own", "own"]
        assert kmem.stats().slab_bytes == 4 * slab
        held.pop().free()
        await settle()
        assert served == ["own", "own", "other"]
        held.pop().free()


async def test_limit_reached_while_queued_calls_the_grow_off() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs, limit=8 * SIZE, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        go_on = anyio.Event()

        async def hold() -> None:
            async with one.lease():
                await go_on.wait()

        await start(tasks, hold)
        await start(tasks, two.prefill, 1)
        assert not two.stats().growing, "the other has asked for all the room there is"
        await anyio.sleep(0.7 * AT_FIRST)
        assert two.stats().growing, "the other's grow is late, though not yet for its own caller"
        slabs.open()
        await settle()
        assert one.stats().slab_total == 1
        assert not two.stats().growing
        assert two.stats().slab_fail == 0
        assert kmem.stats().slab_bytes == 8 * SIZE
        go_on.set()
        await settle()
        assert two.stats().slab_total == 1, "what is idle is taken at once"


async def test_who_was_called_off_has_what_is_idle_elsewhere_at_once() -> None:
    options: dict[str, Any] = {"flags": aslab.CacheFlags.NOEMERGENCY, "objects_per_slab": 1}
    slabs = Latency(Instant(), 1.0)
    async with allocator(slabs=slabs, limit=2 * SIZE, expire=3600.0) as kmem, anyio.create_task_group() as tasks:
        one, two, three = (kmem.create_cache(name, SIZE, **options) for name in ("one", "two", "three"))
        held = await two.alloc()
        got: list[str] = []

        async def caller(cache: aslab.Cache[Any], hold: float) -> None:
            async with cache.lease():
                got.append(cache.name)
                await anyio.sleep(hold)

        await start(tasks, caller, one, 100)
        await start(tasks, caller, three, 0)
        await anyio.sleep(0.5)
        held.free()
        await anyio.sleep(3)
        assert got == ["one", "three"]


async def test_slab_is_given_back_before_its_bytes_count_as_free() -> None:
    slabs = Latency(Instant(), 0, 5.0)
    async with allocator(slabs=slabs, limit=8 * SIZE) as kmem, anyio.create_task_group() as tasks:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        await one.prefill(8)
        tasks.start_soon(one.reap)
        await start(tasks, two.prefill, 1)
        await anyio.sleep(4.9)
        assert two.stats().slab_total == 0
        await anyio.sleep(0.2)
        assert two.stats().slab_total == 1
        await two.reap()


async def test_watermark_grows_in_the_background_before_anybody_waits() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, watermark=3)
        await settle()
        assert cache.stats().slab_total == 1
        bufs = [await cache.alloc()]
        await settle()
        assert cache.stats().slab_total == 1
        for _ in range(40):
            bufs.append(cache.alloc_nowait())
            await settle()
        stats = cache.stats()
        assert stats.waits == 0
        assert stats.obj_emergency_max == 0
        assert 3 <= stats.obj_total - stats.obj_held < 3 + 4
        for buf in bufs:
            buf.free()


async def test_prefill_grows_until_so_many_are_free_and_no_further() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        held = await cache.alloc()
        await cache.prefill(20)
        assert cache.stats().slab_total == 3
        await cache.prefill(0)
        await cache.prefill(20)
        assert cache.stats().slab_total == 3
        bufs = [cache.alloc_nowait() for _ in range(20)]
        assert cache.stats().obj_emergency_max == 0
        for buf in [*bufs, held]:
            buf.free()


async def test_prefill_survives_want_of_memory() -> None:
    async with allocator(slabs=Failslab(Instant(), probability=100, times=5)) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        assert cache.stats().slab_fail == 5
        assert cache.stats().slab_total == 1


async def test_pause_after_a_failure_doubles_and_starts_anew_after_a_success() -> None:
    slabs = Failslab(Instant(), probability=100, times=4)
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for total in (8, 16):
            begin = anyio.current_time()
            await cache.prefill(total)
            assert anyio.current_time() - begin == pytest.approx(0.01 + 0.02 + 0.04 + 0.08)
            slabs.times = 4


class Broken(Instant):
    """Raises what it is told to, as often as it is told to."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__()
        self.error = error
        self.times = times

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        if self.times:
            self.times -= 1
            raise self.error
        return await super().acquire(nbytes, align, gfp)


async def test_broken_backend_is_told_to_everybody_who_waits_and_the_next_caller_starts_anew() -> None:
    async with allocator(slabs=Broken(RuntimeError("boom"), 1)) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        told: list[BaseException] = []

        async def caller(call: Any) -> None:
            try:
                (await call()).free()
            except BackendError as exc:
                told.append(exc)

        tasks.start_soon(caller, cache.alloc)
        tasks.start_soon(caller, cache.alloc)
        tasks.start_soon(caller, lambda: cache.prefill(3))
        await settle()
        assert len({id(exc) for exc in told}) == 3 or len(told) == 3
        assert all("boom" in str(exc) and isinstance(exc.__cause__, RuntimeError) for exc in told)
        assert not cache.stats().growing
        assert cache.stats().slab_fail == 1
        (await cache.alloc()).free()
        check_consistency(cache)


async def test_ctor_that_raises_in_the_middle_of_a_slab_destroys_what_was_built() -> None:
    built: list[int] = []
    destroyed: list[int] = []

    def ctor(memory: memoryview) -> int:
        if len(built) == 3:
            built.append(-1)
            raise RuntimeError("fourth")
        built.append(len(built))
        return built[-1]

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=ctor, dtor=destroyed.append)
        with pytest.raises(ConstructorError, match="fourth"):
            await cache.alloc()
        await settle()
        assert destroyed == [0, 1, 2]
        assert kmem.stats().slab_bytes == 0
        buf = await cache.alloc()
        buf.free()
        check_consistency(cache)


async def test_ctor_that_raises_for_an_emergency_object_leaves_nothing_behind() -> None:
    broken = [True]

    def ctor(memory: memoryview) -> int:
        if broken[0]:
            raise RuntimeError("no")
        return len(memory)

    slabs, emergency = Gate(), Instant()
    async with allocator(slabs=slabs, emergency=emergency, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=ctor, max_emergency=1)
        with pytest.raises(ConstructorError, match="no"):
            await cache.alloc()
        await settle()  # until its region is back
        assert cache.stats().obj_emergency == 0
        broken[0] = False
        buf = await cache.alloc()
        assert buf.obj == SIZE
        buf.free()
        pool_of(cache).emergency.clear()  # else it would be had again, as it is
        await settle()
        broken[0] = True
        with pytest.raises(ConstructorError, match="no"):
            cache.alloc_nowait()
        broken[0] = False
        await settle()


async def test_ctor_lets_other_tasks_run_between_two_objects() -> None:
    seen: list[str] = []

    async def other() -> None:
        for _ in range(100):
            seen.append("other")
            await anyio.lowlevel.checkpoint()

    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, ctor=lambda _: seen.append("ctor"))
        tasks.start_soon(other)
        await cache.prefill(1)
        tasks.cancel_scope.cancel()
    first, last = seen.index("ctor"), len(seen) - seen[::-1].index("ctor")
    assert "other" in seen[first:last]


async def test_closing_a_cache_ends_its_waits_and_drops_a_slab_that_comes_late() -> None:
    gate = Gate()
    async with allocator(slabs=gate, kick_after=None, grow_timeout=100) as kmem:
        cache = kmem.create_cache("c", SIZE)
        ends: list[str] = []

        async def caller(call: Any, *args: Any) -> None:
            try:
                await call(*args)
            except CacheClosedError:
                ends.append("closed")

        async with anyio.create_task_group() as tasks:
            await start(tasks, caller, cache.alloc)
            await start(tasks, caller, cache.prefill, 3)
            await cache.aclose()
        assert ends == ["closed", "closed"]
        gate.open()
        await settle()
        assert not gate.outstanding
        assert kmem.stats().slab_bytes == 0
        with pytest.raises(CacheClosedError):
            await cache.alloc()
        with pytest.raises(CacheClosedError):
            cache.alloc_nowait()
        await cache.aclose()
        again = kmem.create_cache("c", SIZE)
        (await again.alloc()).free()


async def test_a_cache_that_is_closed_while_growth_is_stuck_leaves_its_queue_and_the_memory_at_once() -> None:
    gate = Gate()
    async with (
        allocator(slabs=gate, limit=2 * 8 * SIZE, kick_after=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        stuck = kmem.create_cache("stuck", SIZE)
        await start(tasks, stuck.alloc)
        pools = []
        for number in range(100):
            cache = kmem.create_cache(str(number), SIZE, watermark=1)
            pools.append(weakref.ref(pool_of(cache)))
            await cache.aclose()
            del cache
        grows = tasks_of(kmem).arena.grows
        assert not grows.places
        await tasks_of(kmem).age()
        gc.collect()
        assert sum(pool() is not None for pool in pools) <= 66, "void entries of the queue are few"
        tasks.cancel_scope.cancel()


async def test_alloc_nowait_never_suspends_asks_for_growth_and_falls_back_to_one_emergency_attempt() -> None:
    gate, emergency = Gate(), Gate()
    async with allocator(slabs=gate, emergency=emergency, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        assert cache.stats().growing
        emergency.error = MemoryError()
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait(KM.PUSHPAGE)
        emergency.error = None
        emergency.open()
        buf = cache.alloc_nowait()
        assert buf.emergency
        assert emergency.asked == [(SIZE, GFP.NOWAIT)]
        gate.open()
        await settle()
        second = await cache.alloc(KM.NOSLEEP)
        assert not second.emergency
        second.free()
        buf.free()


async def test_emergency_backend_that_breaks_its_contract_is_told_to_the_caller() -> None:
    def emergency_of(errors: Sequence[Exception]) -> Instant:
        class Bad(Instant):
            def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
                raise errors[0]

        return Bad()

    gate = Gate()
    async with allocator(slabs=gate, emergency=emergency_of([OSError("no")]), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(BackendError, match="OSError"):
            await cache.alloc()
        with pytest.raises(BackendError, match="OSError"):
            cache.alloc_nowait()
        assert cache.stats().obj_emergency == 0
        assert cache.stats().waiters == 0


async def test_deadlock_with_an_end_clears_by_itself() -> None:
    async with allocator(slabs=Deadlock(Instant(), duration=3.0)) as kmem:
        cache = kmem.create_cache("c", SIZE)
        begin = anyio.current_time()
        (await cache.alloc()).free()
        await cache.prefill(1)
        assert anyio.current_time() - begin == pytest.approx(3.0)
        stats = cache.stats()
        assert (stats.growing, stats.deadlocked, stats.obj_deadlock) == (False, False, 1)
        assert isinstance(kmem, aslab.Allocator)


async def test_prefill_ends_when_frees_bring_what_it_waits_for() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=8)
        held = [await cache.alloc() for _ in range(8)]
        await start(tasks, cache.prefill, 4)
        for count, buf in enumerate(held):
            assert len(pool_of(cache).waiters.fillers) == (count < 4)
            buf.free()
            await settle()


@pytest.mark.parametrize("virtual", ["asyncio"], indirect=True)
async def test_acquire_that_is_cancelled_from_inside_leaves_no_mark() -> None:
    """As a backend does that awaits a future which somebody else cancels: asyncio's way."""

    class Cancels(Instant):
        cancel = True

        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            if self.cancel:
                self.cancel = False
                raise anyio.get_cancelled_exc_class()
            return await super().acquire(nbytes, align, gfp)

    async with allocator(slabs=Cancels()) as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(BackendError, match="cancelled"):
            await cache.alloc()
        assert not cache.stats().growing
        (await cache.alloc()).free()


async def test_a_slot_of_a_slab_of_many_objects_is_made_when_it_is_first_handed_out() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", 64, objects_per_slab=10_000, magazine_size=2)
        await cache.prefill(10_000)
        (slab,) = pool_of(cache).depot.slabs.partial
        assert len(slab.slots) == 0
        assert cache.stats().obj_total == 10_000
        bufs = [await cache.alloc() for _ in range(10)]
        assert len(slab.slots) == 10
        assert [buf.address for buf in bufs] == [slab.region.address + 64 * number for number in range(10)]
        for buf in bufs:
            buf.free()
        check_consistency(cache)


async def turns_of_another(call: Callable[[], Awaitable[object]]) -> int:
    """How often another task has its turn meanwhile."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        await call()
        tasks.cancel_scope.cancel()
    return turns


async def test_a_slab_of_many_objects_is_built_and_taken_apart_with_turns_for_other_tasks() -> None:
    alive: set[int] = set()

    def ctor(memory: memoryview) -> int:
        alive.add(len(alive))
        return len(alive) - 1

    async with allocator(expire=None) as kmem:
        plain = kmem.create_cache("plain", 64, objects_per_slab=10_000)
        built = kmem.create_cache("built", 64, objects_per_slab=2_000, ctor=ctor, dtor=alive.remove)
        assert await turns_of_another(lambda: built.prefill(1)) >= 2_000
        assert len(alive) == 2_000
        assert await turns_of_another(built.reap) > 2_000 // 256
        assert not alive
        bufs = [await plain.alloc() for _ in range(10_000)]
        for buf in bufs:
            buf.free()
        assert await turns_of_another(plain.reap) > 10_000 // 256


@pytest.mark.parametrize("object_takes", [0.0, 0.001], ids=["quick", "slow"])
def test_on_a_busy_loop_some_objects_are_built_at_a_stretch_and_not_all(object_takes: float) -> None:
    """Else each object would wait for all other tasks once, or they for all objects."""
    objects, turns = 60, 0

    async def other() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            time.sleep(0.005)  # noqa: ASYNC251
            turns += 1

    async def build() -> None:
        nonlocal turns
        async with allocator(grow_timeout=60.0) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache(
                "c", 64, objects_per_slab=objects, ctor=lambda _: time.sleep(object_takes), max_emergency=0
            )
            tasks.start_soon(other)
            await settle()
            turns = 0
            await cache.prefill(1)
            tasks.cancel_scope.cancel()

    anyio.run(build)  # time that passes
    # A stretch is 2 ms: of the slow objects, two.
    assert turns > objects // 4 if object_takes else turns < objects // 2
