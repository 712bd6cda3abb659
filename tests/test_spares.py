"""Emergency objects that were freed while slabs are late: kept for the next caller, but not for long."""

from __future__ import annotations

import gc
import threading
from typing import Any

import anyio
import pytest

from aslab import KM, Cache
from aslab._kmem._pool import SPARE
from aslab.backends import Region
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle

pytestmark = pytest.mark.anyio

MOMENT = SPARE / 100


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


def stuck(emergency: Instant, **options: Any) -> Any:
    """An allocator whose grows never end; its ageing, an hour each tick, has no part in this."""
    return allocator(slabs=Gate(), emergency=emergency, kick_after=None, expire=7200.0, **options)


def kept(cache: Cache[Any]) -> int:
    check_consistency(cache)
    return cache.stats().obj_emergency_spare


async def test_one_that_nobody_wants_stays_for_a_tick_and_is_gone_after_the_next() -> None:
    emergency = Instant()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for _ in range(2):  # and again with the next one
            (await cache.alloc()).free()
            await anyio.sleep(SPARE - MOMENT)
            assert kept(cache) == len(emergency.outstanding) == 1
            await anyio.sleep(SPARE + 2 * MOMENT)
            assert kept(cache) == len(emergency.outstanding) == 0
        assert len(emergency.asked) == 2


async def test_of_several_those_that_nobody_wants_go_and_the_one_in_use_stays() -> None:
    emergency = Instant()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for buf in [await cache.alloc() for _ in range(4)]:
            buf.free()
        assert kept(cache) == 4
        for _ in range(20):
            (await cache.alloc()).free()
            await anyio.sleep(SPARE / 4)
        assert kept(cache) == len(emergency.outstanding) == 1
        assert len(emergency.asked) == 4


async def test_one_that_the_garbage_collector_brings_back_does_not_stay_either() -> None:
    emergency = Instant()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        assert buf.emergency
        with pytest.warns(ResourceWarning, match="garbage-collected"):
            del buf
            gc.collect()
        await settle()
        assert kept(cache) == 1
        await anyio.sleep(2 * SPARE + MOMENT)
        assert kept(cache) == len(emergency.outstanding) == 0


async def test_one_that_another_thread_frees_does_not_stay_either() -> None:
    emergency = Instant()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        thread = threading.Thread(target=buf.free)
        thread.start()
        thread.join()
        await settle()
        assert kept(cache) == 1
        await anyio.sleep(2 * SPARE + MOMENT)
        assert kept(cache) == len(emergency.outstanding) == 0


async def test_it_is_there_for_who_comes_within_the_tick() -> None:
    emergency = Instant()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE)
        (await cache.alloc()).free()
        await anyio.sleep(SPARE - MOMENT)
        began = anyio.current_time()
        async with cache.lease() as buf:
            assert buf.emergency
            assert anyio.current_time() == began
        assert len(emergency.asked) == 1


class Unmapping(Instant):
    """Its memory can go only when nothing exports it any more, as with a mapping."""

    async def release(self, region: Region) -> None:
        memory: Any = region.memory.obj
        region.memory.release()
        memory.clear()  # BufferError if it is exported still
        await super().release(region)


async def test_the_memory_of_one_goes_though_the_thread_that_freed_it_still_has_its_slot() -> None:
    emergency = Unmapping()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        slot = buf._slot  # as in the frames of a `free` that has not returned yet
        buf.free()
        await anyio.sleep(2 * SPARE + MOMENT)
        assert not emergency.outstanding
        del slot


async def test_one_kept_for_memalloc_callers_while_slabs_are_missing_is_taken_by_such_a_caller() -> None:
    emergency = Instant()
    async with stuck(emergency) as kmem:
        cache = kmem.create_cache("c", SIZE, memalloc_reserve=1)
        (await cache.alloc()).free()
        began = anyio.current_time()
        async with cache.lease(KM.MEMALLOC) as buf:
            assert buf.emergency
            assert anyio.current_time() == began
        assert len(emergency.asked) == 1
