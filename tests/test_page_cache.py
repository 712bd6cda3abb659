"""The page cache: what direct reclaim finds, how long it takes, and who may have it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aslab import GFP, ConfigError
from aslab.emulation import Block, PageAllocationFailure, PageCache, PhysicalMemory
from aslab.faults import Uniform

from .helpers import Loop

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def full(**options: Any) -> tuple[PhysicalMemory, PageCache]:
    """A memory of 128 pages of which none is free, all in the cache but what was taken for others."""
    memory = PhysicalMemory(128, min=0)
    cache = PageCache(memory, **options)
    while memory.free_pages:
        memory.allocate(0, GFP.KERNEL)
    return memory, cache


async def timed_get(memory: PhysicalMemory, gfp: GFP) -> tuple[float, Block]:
    begin = anyio.current_time()
    block = await memory.get(0, gfp)
    return round(anyio.current_time() - begin, 6), block


async def test_it_takes_its_pages_and_makes_itself_the_reclaimer() -> None:
    memory = PhysicalMemory(128)
    cache = PageCache(memory, clean=30, dirty=12)
    assert memory.free_pages == 128 - 42
    assert (cache.clean, cache.dirty) == (30, 12)
    assert memory.reclaimer == cache.reclaim


async def test_a_memory_that_is_too_small_has_everything_back() -> None:
    memory = PhysicalMemory(128, min=100)
    with pytest.raises(PageAllocationFailure):
        PageCache(memory, clean=20, dirty=20)
    assert memory.free_pages == 128
    assert memory.reclaimer is None


async def test_clean_pages_go_first_32_at_a_time_with_a_scan_delay_each() -> None:
    memory, cache = full(clean=40, dirty=10, scan=1, writeback=100)
    assert (await timed_get(memory, GFP.KERNEL))[0] == 32
    assert (cache.clean, cache.dirty, cache.reclaims, memory.free_pages) == (8, 10, 1, 31)


async def test_a_larger_request_drops_as_many_as_it_needs() -> None:
    memory, cache = full(clean=100, scan=1)
    assert await cache.reclaim(64, GFP.NOIO) == 64
    assert (cache.clean, memory.free_pages) == (36, 64)


async def test_dirty_pages_are_written_one_after_another_when_no_clean_are_left() -> None:
    memory, cache = full(dirty=40, writeback=2)
    assert (await timed_get(memory, GFP.KERNEL))[0] == 64
    assert (cache.dirty, cache.written, memory.free_pages) == (8, 32, 31)


@pytest.mark.parametrize("gfp", [GFP.NOIO, GFP.NOFS, GFP.NOIO | GFP.MEMALLOC])
async def test_who_may_not_write_gets_the_clean_ones_and_is_then_refused_at_once(gfp: GFP) -> None:
    memory, cache = full(clean=3, dirty=40, scan=1, writeback=1000)
    spent = [(await timed_get(memory, gfp))[0] for _ in range(3)]
    assert spent == [3, 0, 0]
    begin = anyio.current_time()
    with pytest.raises(PageAllocationFailure):
        await memory.get(0, gfp)
    assert anyio.current_time() == begin
    assert (cache.clean, cache.dirty, cache.written) == (0, 40, 0)


async def test_an_empty_cache_frees_nothing() -> None:
    memory, cache = full()
    assert await cache.reclaim(1, GFP.KERNEL) == 0
    with pytest.raises(PageAllocationFailure):
        await memory.get(0, GFP.KERNEL)


async def test_the_seed_decides_the_delays() -> None:
    async def spent(seed: int) -> float:
        _, cache = full(dirty=40, writeback=Uniform(1, 2), seed=seed)
        begin = anyio.current_time()
        await cache.reclaim(1, GFP.KERNEL)
        return round(anyio.current_time() - begin, 6)

    assert await spent(1) == await spent(1) != await spent(2)


async def test_concurrent_reclaims_free_different_pages_side_by_side() -> None:
    memory, cache = full(clean=64, dirty=32, scan=1, writeback=1)
    begin = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(cache.reclaim, 1, GFP.KERNEL)
    assert anyio.current_time() - begin == pytest.approx(32)
    assert (cache.clean, cache.dirty, memory.free_pages) == (0, 0, 96)


@pytest.mark.parametrize("options", [{"clean": 40, "scan": 1}, {"dirty": 40, "writeback": 1}])
async def test_cancelled_anywhere_it_loses_no_page(options: dict[str, Any]) -> None:
    for moment in [0, *(half + 0.5 for half in range(33))]:
        memory, cache = full(**options)
        with anyio.CancelScope(deadline=anyio.current_time() + moment) as scope:
            await cache.reclaim(1, GFP.KERNEL)
        assert scope.cancelled_caught == (moment < 32)
        assert cache.clean + cache.dirty + memory.free_pages == 40
        assert len(cache._clean) + len(cache._dirty) == cache.clean + cache.dirty
        while await cache.reclaim(1, GFP.KERNEL):
            pass
        assert (cache.clean, cache.dirty, memory.free_pages) == (0, 0, 40)


@pytest.mark.parametrize(
    ("field", "bad"), [("clean", -1), ("dirty", 1.0), ("scan", -1), ("writeback", []), ("writeback", "1")]
)
async def test_bad_options_are_refused_before_a_page_is_taken(field: str, bad: Any) -> None:
    memory = PhysicalMemory(128)
    with pytest.raises(ConfigError, match=f"^{field}: "):
        PageCache(memory, **{"clean": 1, field: bad})
    assert memory.free_pages == 128
