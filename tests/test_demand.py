"""Growth by demand: slabs ahead of callers, several slabs by one call, and how many objects a slab has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import anyio
import pytest

import aslab
from aslab import GFP, BackendError, Cache
from aslab._cache import pool_of
from aslab._kmem._growth import BATCH, BATCH_SECONDS, CALM, INSTANT, MOST, SLOW, SOON, Demand
from aslab.backends import Batching, Region

from .support import SIZE, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio
QUICK = BATCH_SECONDS / 2
MIB = 2**20


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Batches(Instant):
    """Memory of which each call takes so many seconds, and brings several regions if it may."""

    def __init__(self, takes: float = QUICK) -> None:
        super().__init__()
        self.takes = takes
        self.calls: list[int] = []
        self.fewer = 0
        self.error: Exception | None = None
        self.spoil = False
        self.answer: Callable[[list[Region]], Any] | None = None

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return (await self.acquire_many(1, nbytes, align, gfp, 0))[0]

    async def acquire_many(self, count: int, nbytes: int, align: int, gfp: GFP, within: float) -> list[Region]:
        self.calls.append(count)
        await anyio.sleep(count * self.takes)
        if self.error is not None and count > 1:
            raise self.error
        regions = [self.acquire_nowait(nbytes, align, gfp) for _ in range(max(1, count - self.fewer))]
        if self.spoil and count > 1:
            regions[1].memory = regions[1].memory[: nbytes - 1]
        if self.answer is not None and count > 1:
            return cast("list[Region]", self.answer(regions))
        return regions

    def no_regions(self, regions: list[Region]) -> None:
        """Keep nothing outstanding, as what is no list of regions cannot be given back."""
        self.outstanding -= {id(region) for region in regions}


def alike(regions: list[Region]) -> list[Region]:
    """Have the last be over the memory of the first."""
    regions[-1].memory, regions[-1].address = regions[0].memory, regions[0].address
    return regions


def slabs_of(cache: Cache[Any]) -> int:
    return cache.stats().slab_total


# -- the estimate


class Estimate(Demand):
    """One that has just had a slab, by a clock of its own."""

    def __init__(self, *, took: float = QUICK, slab_size: int = SIZE) -> None:
        super().__init__(slab_size, lambda: self.now)
        self.now = 100.0
        self.has_grown(took)

    def has_grown(self, took: float = QUICK) -> None:
        self.delivered(took, 1)
        self.grown()

    def when_found_empty(self) -> int:
        self.found_empty(self.now)
        return self.slabs_ahead


def test_each_time_that_callers_come_soon_it_is_twice_as_far_ahead_up_to_a_bound() -> None:
    demand = Estimate()
    assert [demand.when_found_empty() for _ in range(4)] == [1, 2, 4, MOST]
    demand.now += SOON * QUICK
    assert demand.slabs_ahead == 0, "it lapses"
    assert demand.when_found_empty() == 0
    demand.has_grown()
    assert demand.when_found_empty() == 1, "they came late: it begins anew"


@pytest.mark.parametrize("took", [0.0, INSTANT, SLOW])
def test_nothing_is_taken_ahead_of_memory_that_is_slow_or_comes_at_once(took: float) -> None:
    assert Estimate(took=took).when_found_empty() == 0


def test_nothing_is_taken_ahead_for_a_while_after_slabs_were_given_back_or_refused() -> None:
    demand = Estimate()
    demand.subsides()
    assert (demand.when_found_empty(), demand.quick) == (0, False)
    demand.now += CALM
    demand.has_grown()
    assert (demand.when_found_empty(), demand.quick) == (1, True)


def test_large_slabs_are_bounded_by_their_bytes() -> None:
    demand = Estimate(slab_size=32 * MIB)
    assert [demand.when_found_empty() for _ in range(3)] == [1, 1, 1]


# -- ahead of callers


async def held_one_by_one(cache: Cache[Any], objects: int) -> list[aslab.Buffer[Any]]:
    """Allocate, with some work in between: a slab lasts as long as two grows."""
    held = []
    for _ in range(objects):
        held.append(await cache.alloc())
        await anyio.sleep(2 * QUICK / 8)
    return held


async def test_who_takes_objects_as_fast_as_they_come_waits_for_half_of_the_slabs() -> None:
    async with allocator(slabs=Batches()) as kmem:
        cache = kmem.create_cache("c", SIZE)
        held = await held_one_by_one(cache, 64)
        assert cache.stats().waits <= 8 / 2
        assert slabs_of(cache) <= 8 + MOST
        for buf in held:
            buf.free()


async def test_nothing_is_ahead_at_the_bound_and_nobody_gives_up_slabs_for_it() -> None:
    async with allocator(slabs=Batches(), limit=10 * 8 * SIZE) as kmem:
        other = kmem.create_cache("other", SIZE)
        await other.prefill(16)
        cache = kmem.create_cache("c", SIZE)
        held = await held_one_by_one(cache, 64)
        await anyio.sleep(1)
        assert (slabs_of(cache), slabs_of(other)) == (8, 2)
        for buf in held:
            buf.free()


async def test_what_was_given_back_is_not_taken_again_ahead_of_need() -> None:
    async with allocator(slabs=Batches()) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for buf in await held_one_by_one(cache, 24):
            buf.free()
        assert await cache.reap() > 0
        await anyio.sleep(1)
        assert slabs_of(cache) == 0


# -- several by one call


async def test_a_quick_backend_brings_several_slabs_by_one_call_within_bounds() -> None:
    slabs = Batches()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=8 * 25)
        await cache.prefill(8 * 20)
        assert slabs.calls == [1, BATCH, 20 - 1 - BATCH]
        assert slabs_of(cache) == 20
        await cache.prefill(8 * 25)
        assert slabs_of(cache) == 25


@pytest.mark.parametrize("spoilt", ["fewer", "error", "broken", "region"])
async def test_what_a_call_does_not_bring_costs_no_room(spoilt: str) -> None:
    slabs = Batches()
    async with allocator(slabs=slabs, limit=10 * 8 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        slabs.fewer = 2 if spoilt == "fewer" else 0
        slabs.spoil = spoilt == "region"
        slabs.error = {"error": MemoryError("none"), "broken": RuntimeError("boom")}.get(spoilt)
        if spoilt in {"broken", "region"}:
            with pytest.raises(BackendError):
                await cache.prefill(8 * 5)
            await settle()
        else:
            await cache.prefill(8 * 5)
            assert slabs_of(cache) == 5
        slabs.error, slabs.spoil = None, False
        assert kmem.stats().slab_bytes == slabs_of(cache) * 8 * SIZE
        await cache.prefill(8 * 10)
        assert slabs_of(cache) == 10, "all of the limit can be had"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            lambda slabs, made: [*made, slabs.acquire_nowait(8 * SIZE, 64, GFP.KERNEL)],
            "5 regions; it must be at most",
        ),
        (lambda slabs, made: slabs.no_regions(made), "None; it must be a list of regions"),
        (lambda slabs, made: (one for one in [slabs.no_regions(made)]), "<generator .*; it must be a list"),
        (lambda slabs, made: slabs.no_regions(made[3:]) or [*made[:3], made[0]], "the same memory twice"),
        (lambda slabs, made: alike(made), "the same memory twice"),
    ],
    ids=["more", "None", "generator", "the same", "alike"],
)
async def test_a_batch_that_is_wrong_is_released_its_room_is_free_again_and_callers_are_told(
    answer: Callable[[Batches, list[Region]], Any], words: str
) -> None:
    slabs = Batches()
    async with allocator(slabs=slabs, limit=10 * 8 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=8 * 5)
        await cache.prefill(8)
        slabs.answer = lambda made: answer(slabs, made)
        with pytest.raises(BackendError, match=words):
            await cache.prefill(8 * 5)
        await settle()
        assert (slabs_of(cache), kmem.stats().slab_bytes) == (1, 8 * SIZE)
        slabs.answer = None
        await kmem.create_cache("all the rest", SIZE).prefill(8 * 9)


@pytest.mark.parametrize("min_objects", [0, 8 * 12])
async def test_a_batch_that_is_stuck_has_half_of_the_room_at_most_or_what_it_is_guaranteed(
    min_objects: int,
) -> None:
    slabs = Batches()
    async with allocator(slabs=slabs, limit=16 * 8 * SIZE, emergency_limit=0, kick_after=1) as kmem:
        one, two = kmem.create_cache("one", SIZE, min_objects=min_objects), kmem.create_cache("two", SIZE)
        await one.prefill(8)
        slabs.takes = 60 / 4
        async with anyio.create_task_group() as tasks:
            await start(tasks, one.prefill, 8 * 12)
            assert slabs.calls == [1, 11 if min_objects else 7], "of 15 slabs that are free"
            await anyio.sleep(1)
            slabs.takes = QUICK
            await two.prefill(8 * (4 if min_objects else 8))
            tasks.cancel_scope.cancel()
        await anyio.sleep(180)  # until the stuck call ends


async def test_one_slab_at_a_time_while_another_cache_waits_and_where_objects_are_built() -> None:
    slabs = Batches()
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        await one.prefill(1)
        await start(tasks, one.prefill, 64)
        await start(tasks, two.prefill, 1)
        built = kmem.create_cache("built", SIZE, ctor=len)
        await anyio.sleep(1)
        slabs.calls.clear()
        await built.prefill(64)
        assert slabs.calls == 8 * [1]


@pytest.mark.parametrize("instance", [False, True])
async def test_a_backend_that_overrides_acquire_alone_is_asked_for_one_at_a_time(instance: bool) -> None:
    async def acquire(nbytes: int, align: int, gfp: GFP) -> Region:
        await anyio.sleep(QUICK)
        return slabs.acquire_nowait(nbytes, align, gfp)

    class Own(Batches):
        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            return await acquire(nbytes, align, gfp)

    slabs = Batches() if instance else Own()
    if instance:
        slabs.acquire = acquire  # type: ignore[method-assign]
    assert isinstance(slabs, Batching)
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(64)
        assert (slabs.calls, slabs_of(cache)) == ([], 8)
        assert pool_of(cache).growth.demand.quick


# -- one after another in one call


class Streams(Instant):
    """Memory of which each slab takes so many seconds, and which goes on with the next while it may."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.errors: dict[int, Exception] = {}
        self.spoil: int | None = None
        self.stops_at = 0

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        await anyio.sleep(QUICK)
        return self.acquire_nowait(nbytes, align, gfp)

    async def acquire_each(self, nbytes: int, align: int, gfp: GFP, deliver: Callable[[Region], bool]) -> None:
        self.calls.append(0)
        goes_on = True
        while goes_on:
            await anyio.sleep(QUICK)
            if error := self.errors.get(self.calls[-1]):
                raise error
            region = self.acquire_nowait(nbytes, align, gfp)
            if self.spoil == self.calls[-1]:
                region.memory = region.memory[: nbytes - 1]
            self.calls[-1] += 1
            goes_on = deliver(region) or self.calls[-1] < self.stops_at


async def test_a_grow_goes_on_for_as_long_as_slabs_are_needed_and_each_can_be_used_at_once() -> None:
    slabs = Streams()
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=8 * 5)
        await cache.prefill(8)
        held = [await cache.alloc() for _ in range(8)]
        await start(tasks, cache.prefill, 8 * 4)
        await anyio.sleep(QUICK / 2)
        held.append(await cache.alloc())
        assert (slabs.calls, slabs_of(cache)) == ([1], 2)
        await anyio.sleep(1)
        assert (slabs.calls, slabs_of(cache)) == ([4], 5)
        for buf in held:
            buf.free()


async def test_a_grow_goes_on_while_a_caller_waits_even_for_the_last_object() -> None:
    slabs = Streams()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        held = [await cache.alloc() for _ in range(8 * 24)]
        assert sum(slabs.calls) >= 24 - 2
        assert len(slabs.calls) <= 4
        await anyio.sleep(1)
        assert slabs_of(cache) <= 24 + 2, "not once nobody waits"
        for buf in held:
            buf.free()


async def test_a_grow_that_goes_on_ends_for_another_cache() -> None:
    slabs = Streams()
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        await one.prefill(1)
        await start(tasks, one.prefill, 8 * 16)
        await anyio.sleep(QUICK / 2)
        await two.prefill(1)
        assert slabs_of(one) == 2
        await anyio.sleep(1)
        assert slabs_of(one) == 16


@pytest.mark.parametrize("turns", range(8))
async def test_all_room_set_aside_is_had_whenever_slabs_are_given_back_meanwhile(turns: int) -> None:
    async with allocator(slabs=Streams(), limit=10 * 8 * SIZE) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        tasks.start_soon(cache.prefill, 8 * 4)
        await settle(turns)
        await cache.reap()
        with anyio.fail_after(60):
            await cache.prefill(8 * 10)


@pytest.mark.parametrize("broken", ["memory", "first", "error", "region", "first region", "too many"])
async def test_what_came_before_a_grow_failed_is_kept_and_all_other_room_is_free_again(broken: str) -> None:
    slabs = Streams()
    async with allocator(slabs=slabs, limit=10 * 8 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        at, error = {"memory": (2, MemoryError("none")), "first": (0, MemoryError("none"))}.get(
            broken, (1, RuntimeError("boom"))
        )
        slabs.spoil = {"region": 1, "first region": 0}.get(broken)
        slabs.stops_at = 3 if broken == "too many" else 0
        slabs.errors = {at: error} if slabs.spoil is None and not slabs.stops_at else {}
        if broken not in {"memory", "first"}:
            with pytest.raises(BackendError):
                await cache.prefill(8 * (2 if broken == "too many" else 10))
            assert slabs.calls[-1] <= 3, "no more is asked for"
        else:
            with anyio.move_on_after(QUICK * 4):
                await cache.prefill(8 * 4)
        slabs.errors, slabs.spoil, slabs.stops_at = {}, None, 0
        await settle()
        assert kmem.stats().slab_bytes == slabs_of(cache) * 8 * SIZE == len(slabs.outstanding) * 8 * SIZE
        await anyio.sleep(1)
        with anyio.fail_after(60):
            await cache.prefill(8 * 10)
        assert slabs_of(cache) == 10, "all of the limit can be had"


async def test_a_grow_that_goes_on_leaves_half_of_the_room_to_others_and_is_never_set_aside() -> None:
    slabs = Streams()
    async with allocator(slabs=slabs, limit=16 * 8 * SIZE, kick_after=5 * QUICK) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        async with anyio.create_task_group() as tasks:
            await start(tasks, cache.prefill, 8 * 13)
            await anyio.sleep(QUICK / 2)
            await kmem.create_cache("other", SIZE).prefill(8 * 3)
        assert slabs_of(cache) == 13
        assert kmem.stats().slab_bytes == 16 * 8 * SIZE
        assert kmem.stats().kicked == 0


# -- how many objects a slab has


@pytest.mark.parametrize(
    ("size", "options", "limit", "objects"),
    [
        (64, {}, None, 512),
        (4096, {}, None, 512),
        (64 * 1024, {}, None, 32),
        (MIB, {}, None, 8),
        (16 * MIB, {}, None, 2),
        (4096, {"ctor": len}, None, 8),
        (4096, {}, 16 * MIB, 256),
        (4096, {}, 100 * 4096, 8),
        (4096, {"max_objects": 1600}, None, 100),
        (4096, {"max_objects": 50}, None, 8),
    ],
)
async def test_a_slab_of_small_objects_is_a_huge_page_or_a_sixteenth_of_the_bounds(
    size: int, options: dict[str, Any], limit: int | None, objects: int
) -> None:
    async with aslab.open_allocator(slabs=Instant(), limit=limit) as kmem:
        cache = kmem.create_cache("c", size, **options)
        assert pool_of(cache).config.shape.objects == objects
