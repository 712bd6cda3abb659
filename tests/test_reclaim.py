"""Giving back: reaping, ageing, and what a closed allocator still owes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aslab import Cache, CacheClosedError
from aslab._allocator import tasks_of
from aslab._cache import pool_of
from aslab._kmem._state import Mark
from aslab.faults import Deadlock, Latency
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_reap_drains_the_magazine_and_gives_empty_slabs_back() -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem:
        cache, other = kmem.create_cache("c", SIZE), kmem.create_cache("d", SIZE)
        bufs = [await cache.alloc() for _ in range(20)]
        await other.prefill(8)
        for buf in bufs[:-1]:
            buf.free()
        assert cache.stats().obj_cached > 0
        assert await kmem.reap() == 3 * 8 * SIZE
        stats = cache.stats()
        assert (stats.slab_total, stats.slab_alloc, stats.slab_destroy, stats.obj_cached) == (1, 1, 2, 0)
        assert len(slabs.outstanding) == 1
        assert kmem.stats().slab_bytes == 8 * SIZE
        bufs[-1].free()
        assert await cache.reap() == 8 * SIZE
        assert await cache.reap() == 0


async def test_nothing_grows_while_a_reap_is_under_way_and_the_waiter_looks_again_after_it() -> None:
    slabs = Latency(Instant(), 0.0, 0.05)
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        await start(tasks, cache.reap)
        assert cache.stats().flags & Mark.REAPING.value
        begin = anyio.current_time()
        async with cache.lease() as buf:
            assert not buf.emergency
            assert anyio.current_time() - begin == pytest.approx(0.05)
        await kmem.reap()


async def test_second_reap_waits_for_the_first() -> None:
    slabs = Latency(Instant(), 0.0, 0.05)
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        await start(tasks, cache.reap)
        begin = anyio.current_time()
        assert await cache.reap() == 0
        assert anyio.current_time() - begin == pytest.approx(0.05)


async def test_closed_cache_has_nothing_to_reap() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        await cache.aclose()
        assert await cache.reap() == 0


async def test_idle_service_gives_everything_back_after_expire_and_one_step() -> None:
    async with allocator(expire=15.0) as kmem:
        cache = kmem.create_cache("c", SIZE)
        bufs = [await cache.alloc() for _ in range(30)]
        for buf in bufs:
            buf.free()
        await anyio.sleep(14.9)
        assert kmem.stats().slab_bytes > 0
        await anyio.sleep(0.1 + 15 / 3 + 0.01)
        assert kmem.stats().slab_bytes == 0
        assert cache.stats().obj_total == 0


async def test_cache_in_use_keeps_its_magazine_and_loses_what_it_does_not_need() -> None:
    async with allocator(expire=15.0) as kmem:
        cache = kmem.create_cache("c", SIZE, magazine_size=2)
        bufs = [await cache.alloc() for _ in range(30)]
        for buf in bufs:
            buf.free()
        for _ in range(60):
            await anyio.sleep(1)
            (await cache.alloc()).free()
        assert cache.stats().slab_total == 1
        assert cache.stats().waits < 10


async def test_slab_used_lately_is_not_given_back() -> None:
    async with allocator(expire=15.0) as kmem:
        cache = kmem.create_cache("c", SIZE, magazine_size=2, objects_per_slab=4)
        for _ in range(40):
            bufs = [await cache.alloc() for _ in range(12)]
            for buf in bufs:
                buf.free()
            await anyio.sleep(5)
        assert cache.stats().slab_create == 3


async def test_ageing_keeps_the_watermark() -> None:
    async with allocator(expire=15.0) as kmem:
        cache = kmem.create_cache("c", SIZE, watermark=10)
        await cache.prefill(40)
        await anyio.sleep(100)
        stats = cache.stats()
        assert stats.slab_total == 2
        assert stats.slab_create == 5


async def test_expire_none_keeps_everything() -> None:
    async with allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(40)
        await anyio.sleep(10_000)
        assert cache.stats().slab_total == 5


async def test_stuck_release_holds_up_releases_alone() -> None:
    class StuckRelease(Instant):
        def __init__(self) -> None:
            super().__init__()
            self.let_go = anyio.Event()

        async def release(self, region: Any) -> None:
            await self.let_go.wait()
            await super().release(region)

    slabs = StuckRelease()
    async with allocator(slabs=slabs) as kmem:
        cache, other = kmem.create_cache("c", SIZE), kmem.create_cache("d", SIZE)
        await cache.prefill(8)
        with anyio.move_on_after(10) as scope:
            await cache.reap()
        assert scope.cancelled_caught
        (await other.alloc()).free()
        (await cache.alloc()).free()  # an emergency object: REAPING has not ended
        slabs.let_go.set()
        await settle()
        assert not cache.stats().flags & Mark.REAPING.value
        async with cache.lease() as buf:
            assert not buf.emergency


async def test_closed_cache_warns_once_of_what_is_held_and_the_memory_stays_valid_until_it_is_freed() -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("frames", SIZE)
        bufs = [await cache.alloc() for _ in range(3)]
        bufs[0].view[:] = b"x" * SIZE
        with pytest.warns(ResourceWarning, match=r"'frames'.* 3 buffers") as caught:
            await cache.aclose()
        assert len(caught) == 1
        assert bytes(bufs[0].view) == b"x" * SIZE
        with pytest.raises(CacheClosedError):
            await cache.alloc()
        for buf in bufs:
            assert len(slabs.outstanding) == 1
            buf.free()
        await settle()
        assert not slabs.outstanding
        assert kmem.stats().slab_bytes == 0


async def test_emergency_object_held_over_closing_is_given_back_when_it_is_freed() -> None:
    emergency = Instant()
    async with allocator(slabs=Gate(), emergency=emergency, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        with pytest.warns(ResourceWarning, match="1 buffers"):
            await cache.aclose()
        buf.view[:] = b"x" * SIZE
        buf.free()
        await settle()
        assert not emergency.outstanding


async def test_partly_used_slabs_stay_and_are_filled_first() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, magazine_size=2)
        bufs = [await cache.alloc() for _ in range(16)]
        for buf in bufs[2:]:
            buf.free()
        check_consistency(cache)
        await cache.reap()
        assert cache.stats().slab_total == 1
        more = [await cache.alloc() for _ in range(2)]
        assert cache.stats().slab_total == 1
        for buf in [*bufs[:2], *more]:
            buf.free()


async def test_idle_slabs_of_another_cache_make_room_for_who_waits_at_the_limit() -> None:
    async with allocator(limit=8 * SIZE, expire=None) as kmem:
        idle, other = kmem.create_cache("idle", SIZE), kmem.create_cache("other", SIZE)
        await idle.prefill(8)
        with anyio.fail_after(1):
            (await other.alloc()).free()
        assert idle.stats().slab_total == 0


async def test_slab_whose_release_is_stuck_is_no_limit_reached() -> None:
    slabs = Latency(Instant(), 0.0, 1000.0)
    async with allocator(slabs=slabs, limit=8 * SIZE) as kmem, anyio.create_task_group() as tasks:
        cache, other = kmem.create_cache("c", SIZE), kmem.create_cache("d", SIZE)
        await cache.prefill(8)
        await start(tasks, cache.reap)
        for one in (cache, other):
            with anyio.fail_after(0.2):
                buf = await one.alloc()
            assert buf.emergency
            buf.free()
        await anyio.sleep(3000)


async def test_reap_keeps_the_watermark() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, watermark=4)
        await cache.prefill(24)
        assert await cache.reap() == 2 * 8 * SIZE
        assert cache.stats().slab_create == 3


async def test_second_aclose_waits_as_the_first_does() -> None:
    slabs = Latency(Instant(), 0.0, 0.3)
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        await start(tasks, cache.aclose)
        begin = anyio.current_time()
        await cache.aclose()
        assert anyio.current_time() - begin == pytest.approx(0.3)
        assert kmem.stats().slab_bytes == 0


async def test_last_free_of_a_closed_cache_is_not_lost_to_a_lock_that_is_taken() -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        with pytest.warns(ResourceWarning):
            await cache.aclose()
        with pool_of(cache).depot.lock:
            buf.free()
        await settle()
        assert not slabs.outstanding
        assert not tasks_of(kmem).pools


async def test_a_slab_that_was_never_used_is_as_old_as_it_is() -> None:
    async with allocator(expire=15.0) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        await anyio.sleep(99)
        await cache.prefill(2)
        await anyio.sleep(14)
        assert cache.stats().slab_total == 2
        await anyio.sleep(20)
        assert not cache.stats().slab_total


async def test_what_a_caller_gathers_stays_where_a_later_caller_of_another_cache_lacks_room() -> None:
    async with allocator(limit=4 * SIZE, expire=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2, magazine_size=2)
        other = kmem.create_cache("other", SIZE, objects_per_slab=2)
        held = await cache.alloc_many(4)
        order: list[str] = []

        async def caller(of: Cache[Any], n: int) -> None:
            async with of.lease_many(n):
                order.append(of.name)

        await start(tasks, caller, cache, 4)
        for buf in held[:3]:
            buf.free()
        await start(tasks, caller, other, 1)
        assert (order, cache.stats().slab_total) == ([], 2)
        held[3].free()
        await settle(100)
        assert order == ["c", "other"]


async def test_reap_gives_idle_slabs_back_though_a_slab_is_on_its_way() -> None:
    slabs = Deadlock(Instant(), at=3)
    async with allocator(slabs=slabs, kick_after=None, expire=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(16)
        await start(tasks, cache.prefill, 17)
        assert cache.stats().growing
        assert await cache.reap() == 16 * SIZE
        slabs.let_go()
