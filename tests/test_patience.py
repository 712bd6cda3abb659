"""How long callers wait for growth where nobody has said: learned from what slabs take."""

from __future__ import annotations

from statistics import median_low
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aslab import GFP, KM, Cache
from aslab._cache import pool_of
from aslab._flags import FINISHES, ORDINARY, URGENT
from aslab._kmem._waiters import AT_FIRST, GROWS, LEAST, MOST, SLOW, TIMES, Patience
from aslab.backends import Region, _threads
from aslab.backends._threads import LAG, run_blocking

from .support import SIZE, Gate, Instant, allocator, start

STUCK = 30.0


class Slabs(Instant):
    """Memory of which each slab takes so many seconds."""

    def __init__(self, takes: float) -> None:
        super().__init__()
        self.takes = takes
        self.error: Exception | None = None

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        await anyio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return await super().acquire(nbytes, align, gfp)


def learning(slabs: Instant, **options: Any) -> Any:
    """An allocator that learns its timeout, and never leaves a stuck grow behind."""
    return allocator(slabs=slabs, grow_timeout=None, kick_after=None, expire=None, **options)


async def grow(cache: Cache[memoryview], slabs: int) -> None:
    """Have it grow so often; whoever waits for that is served by a free, or by a slab."""
    before = cache.stats().slab_total
    await cache.prefill((before + slabs) * pool_of(cache).config.shape.objects)
    assert cache.stats().slab_total == before + slabs


async def waits(cache: Cache[memoryview], flags: KM = KM.SLEEP) -> tuple[float, bool]:
    """Seconds until an object comes, and whether it is an emergency object."""
    began = anyio.current_time()
    async with cache.lease(flags) as buf:
        return anyio.current_time() - began, buf.emergency


def learned(*took: float, slab_size: int = SIZE) -> Patience:
    patience = Patience(None, slab_size)
    for seconds in took:
        patience.note(seconds)
    return patience


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=3 * GROWS))
def test_it_is_a_multiple_of_the_median_of_the_last_grows_within_bounds(took: list[float]) -> None:
    late = TIMES * median_low(took[-GROWS:])
    assume(len(took) > 1 or took[0] <= MOST)
    patience = learned(*took)
    assert patience.of[ORDINARY] == min(max(late, LEAST), MOST)
    for level in (URGENT, FINISHES):
        assert patience.of[level] == min(max(late / 2, LEAST), MOST)


def test_a_first_one_that_was_stuck_teaches_nothing_and_two_do() -> None:
    assert learned(100.0).of[ORDINARY] == AT_FIRST
    assert learned(100.0, 100.0).of[ORDINARY] == MOST
    assert learned(100.0, 0.001).of[ORDINARY] == LEAST


def test_whose_progress_frees_memory_waits_half_as_long() -> None:
    patience = learned(0.02)
    assert [patience.of[level] for level in (ORDINARY, URGENT, FINISHES)] == [0.08, 0.04, 0.04]


@pytest.mark.parametrize(
    ("slab_size", "ordinary", "urgent"),
    [
        (SIZE, AT_FIRST, LEAST),
        (2**24, AT_FIRST, 2**24 / SLOW),
        (200 * 2**20, 0.78125, 0.78125),
        (2**30, MOST, MOST),
    ],
)
def test_before_the_first_grow_it_goes_by_the_size_of_a_slab(
    slab_size: int, ordinary: float, urgent: float
) -> None:
    patience = learned(slab_size=slab_size)
    assert [patience.of[level] for level in (ORDINARY, URGENT, FINISHES)] == [ordinary, urgent, urgent]


def test_what_was_given_is_for_all_and_learns_nothing() -> None:
    patience = Patience(0.3, 2**30)
    patience.note(0.001)
    assert [patience.of[level] for level in (ORDINARY, URGENT, FINISHES)] == [0.3] * 3


@pytest.mark.anyio
class TestLearned:
    @pytest.fixture
    def anyio_backend(self, virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        return virtual

    async def test_a_stuck_grow_costs_a_tick_where_slabs_usually_come_at_once(self) -> None:
        slabs = Slabs(0.001)
        async with learning(slabs) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            held = [await cache.alloc() for _ in range(3)]
            slabs.takes = STUCK
            took, emergency = await waits(cache)
            assert took == pytest.approx(LEAST)
            assert emergency
            for buf in held:
                buf.free()
            await anyio.sleep(STUCK)

    async def test_before_any_slab_has_come_it_costs_as_in_2012(self) -> None:
        async with learning(Gate()) as kmem:
            cache = kmem.create_cache("c", SIZE)
            assert cache.stats().grow_timeout == AT_FIRST
            took, emergency = await waits(cache)
            assert took == pytest.approx(AT_FIRST)
            assert emergency

    @pytest.mark.parametrize(("takes", "late"), [(0.2, False), (0.75, False), (0.9, True)])
    async def test_a_slab_of_200_mib_has_the_time_that_slow_memory_takes(
        self, takes: float, *, late: bool
    ) -> None:
        async with learning(Slabs(takes)) as kmem:
            cache = kmem.create_cache("c", 200 * 2**20)
            took, emergency = await waits(cache)
            assert took == pytest.approx(min(takes, 0.78125))
            assert emergency == late
            assert cache.stats().timeouts == cache.stats().obj_deadlock == late

    async def test_an_urgent_caller_goes_on_after_half_of_it_and_the_others_after_all_of_it(self) -> None:
        slabs = Slabs(0.02)
        async with learning(slabs) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            held = [await cache.alloc() for _ in range(3)]
            slabs.takes = STUCK
            found: dict[KM, float] = {}
            marked: dict[KM, bool] = {}

            async def caller(flags: KM) -> None:
                async with cache.lease(flags) as buf:
                    found[flags] = anyio.current_time() - began
                    marked[flags] = cache.stats().deadlocked
                    assert buf.emergency
                    await anyio.sleep(1)  # else it is the next one's

            began = anyio.current_time()
            for flags in (KM.SLEEP, KM.PUSHPAGE, KM.MEMALLOC):
                await start(tasks, caller, flags)
            await anyio.sleep(1)
            assert found == {
                KM.MEMALLOC: pytest.approx(0.04),
                KM.PUSHPAGE: pytest.approx(0.04),
                KM.SLEEP: pytest.approx(0.08),
            }
            assert marked == {KM.MEMALLOC: False, KM.PUSHPAGE: False, KM.SLEEP: True}
            for buf in held:
                buf.free()
            await anyio.sleep(STUCK)

    async def test_a_grow_that_was_stuck_and_one_that_failed_teach_nothing(self) -> None:
        slabs = Slabs(0.01)
        async with learning(slabs) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            await grow(cache, 2)
            assert cache.stats().grow_timeout == pytest.approx(0.04)
            slabs.takes = STUCK
            await grow(cache, 1)
            assert cache.stats().grow_timeout == pytest.approx(0.04)
            slabs.takes, slabs.error = 0.5, MemoryError()
            with anyio.move_on_after(5):
                await grow(cache, 1)
            slabs.error = None
            assert cache.stats().grow_timeout == pytest.approx(0.04)

    async def test_a_backend_that_has_become_slow_is_believed_after_a_handful(self) -> None:
        slabs = Slabs(0.01)
        async with learning(slabs) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            await grow(cache, GROWS)
            slabs.takes = 0.1
            await grow(cache, GROWS // 2)
            assert cache.stats().grow_timeout == pytest.approx(0.04)
            await grow(cache, 1)
            assert cache.stats().grow_timeout == pytest.approx(0.4)

    async def test_each_cache_learns_for_itself(self) -> None:
        slabs = Slabs(0.01)
        async with learning(slabs) as kmem:
            one, two = (
                kmem.create_cache(name, size, ctor=bytes) for name, size in (("one", SIZE), ("two", SIZE // 2))
            )
            await grow(one, 1)
            assert (one.stats().grow_timeout, two.stats().grow_timeout) == (pytest.approx(0.04), AT_FIRST)


@pytest.mark.anyio
class TestLag:
    """A busy event loop hears late of what a thread has brought: that was no slow memory."""

    @pytest.fixture
    def anyio_backend(self, virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        return virtual

    async def test_what_the_loop_was_late_to_hear_of_is_not_counted(self) -> None:
        class Told(Slabs):
            async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
                region = await super().acquire(nbytes, align, gfp)
                lag = LAG.get()
                assert lag == [], "each grow has a list of its own"
                for seconds in (0.3, 0.2):  # of two calls
                    await anyio.sleep(seconds)
                    lag.append(seconds)
                return region

        async with learning(Told(0.01)) as kmem:
            caches = [kmem.create_cache(f"c{n}", SIZE, objects_per_slab=1, ctor=bytes) for n in range(2)]
            for cache in caches:
                await grow(cache, 2)
                assert cache.stats().grow_timeout == pytest.approx(0.04)
        assert LAG.get() is None, "and nobody else has one"

    async def test_the_backend_never_takes_less_than_nothing(self) -> None:
        class Confused(Instant):
            async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
                lag = LAG.get()
                assert lag is not None
                lag.append(1000.0)
                return await super().acquire(nbytes, align, gfp)

        async with learning(Confused()) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await grow(cache, 1)
            assert list(pool_of(cache).growth.patience._took) == [0.0]

    @pytest.mark.parametrize("busy", [0.0, 0.5])
    async def test_a_call_in_a_thread_tells_from_its_end_until_the_loop_hears_of_it(
        self, busy: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run_sync(call: Any, **options: Any) -> Any:
            """A thread that takes 10 ms, and a loop that is busy with others when it ends."""
            await anyio.sleep(0.01)
            result = call()
            await anyio.sleep(busy)
            return result

        monkeypatch.setattr(_threads, "to_thread", SimpleNamespace(run_sync=run_sync))
        monkeypatch.setattr(_threads, "time", SimpleNamespace(monotonic=anyio.current_time))

        class Threaded(Instant):
            async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
                return await run_blocking(lambda: self.acquire_nowait(nbytes, align, gfp), undo=lambda _: None)

        async with learning(Threaded()) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await grow(cache, 1)
            assert list(pool_of(cache).growth.patience._took) == [pytest.approx(0.01)]
            assert cache.stats().grow_timeout == pytest.approx(0.04)

    async def test_where_simulated_time_stood_still_nothing_was_late(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread takes real time, of which a simulated clock knows nothing."""
        ticks = iter([0.0, 5.0])
        monkeypatch.setattr(_threads, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        lag: list[float] = []
        token = LAG.set(lag)
        try:
            await run_blocking(lambda: None)
        finally:
            LAG.reset(token)
        assert lag == [0.0]
