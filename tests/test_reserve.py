"""The reserve: for PUSHPAGE callers alone, filled in advance, refilled first."""

from __future__ import annotations

import random
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aslab import KM, BackendError, CacheClosedError, CacheFlags, ConfigError
from aslab.backends import Callback
from aslab.faults import Deadlock
from aslab.lab import run
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_it_is_filled_from_the_start_and_ready_tells_when() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, reserve=10)
        await start(tasks, kmem.ready)
        assert cache.stats().obj_reserved == 0
        slabs.open()
        await settle()
        stats = cache.stats()
        assert (stats.obj_reserved, stats.slab_total, stats.obj_held) == (10, 2, 0)
        with anyio.fail_after(0):
            await kmem.ready()


async def test_ready_waits_until_it_is_full_and_no_less() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        kmem.create_cache("c", SIZE, reserve=1)
        with anyio.move_on_after(100) as scope:
            await kmem.ready()
        assert scope.cancelled_caught


async def test_ready_tells_that_the_backend_is_broken() -> None:
    def broken(nbytes: int, align: int, gfp: object) -> object:
        raise ZeroDivisionError

    async with allocator(slabs=Callback(broken, lambda given: None)) as kmem:
        kmem.create_cache("c", SIZE, reserve=1)
        with pytest.raises(BackendError):
            await kmem.ready()


async def test_ready_tells_that_the_cache_was_closed() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, reserve=1)

        async def waits() -> None:
            with pytest.raises(CacheClosedError):
                await kmem.ready()

        await start(tasks, waits)
        await cache.aclose()


async def test_only_pushpage_callers_have_it() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=2, max_objects=8)
        await kmem.ready()
        bufs = [await cache.alloc() for _ in range(6)]
        with pytest.raises(TimeoutError):
            await cache.alloc(timeout=1)
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        assert cache.stats().obj_reserved == 2
        with anyio.fail_after(0):
            bufs.append(await cache.alloc(KM.PUSHPAGE))
        bufs.append(cache.alloc_nowait(KM.PUSHPAGE))
        assert cache.stats().obj_reserved == 0
        assert not any(buf.emergency for buf in bufs)
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait(KM.PUSHPAGE)
        for buf in bufs:
            buf.free()


async def test_it_is_the_last_that_a_pushpage_caller_takes() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=2, max_objects=8)
        await kmem.ready()
        bufs = [await cache.alloc(KM.PUSHPAGE) for _ in range(6)]
        assert cache.stats().obj_reserved == 2
        for buf in bufs:
            buf.free()


async def test_it_is_refilled_by_the_first_free_before_others_are_served() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, reserve=1, max_objects=2, objects_per_slab=1)
        await kmem.ready()
        ordinary, urgent = await cache.alloc(), await cache.alloc(KM.PUSHPAGE)
        got: list[float] = []

        async def caller() -> None:
            async with cache.lease():
                got.append(anyio.current_time())

        await start(tasks, caller)
        ordinary.free()
        await settle()
        assert (cache.stats().obj_reserved, got) == (1, [])
        urgent.free()
        await settle()
        assert len(got) == 1


async def test_a_free_goes_to_a_pushpage_caller_who_waits_before_it_is_set_aside() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, reserve=1, max_objects=2, objects_per_slab=1)
        await kmem.ready()
        bufs = [await cache.alloc(), await cache.alloc(KM.PUSHPAGE)]
        got: list[str] = []

        async def caller(name: str, flags: KM) -> None:
            async with cache.lease(flags):
                got.append(name)
                await anyio.sleep(1)

        await start(tasks, caller, "sleep", KM.SLEEP)
        await start(tasks, caller, "pushpage", KM.PUSHPAGE)
        bufs[0].free()
        await settle()
        assert (got, cache.stats().obj_reserved) == (["pushpage"], 0)
        bufs[1].free()
        await settle()
        assert cache.stats().obj_reserved == 1


async def test_a_free_from_another_thread_refills_it() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=1, max_objects=1, objects_per_slab=1)
        await kmem.ready()
        buf = await anyio.to_thread.run_sync(cache.alloc_nowait, KM.PUSHPAGE)
        assert cache.stats().obj_reserved == 0
        await anyio.to_thread.run_sync(buf.free)
        with anyio.fail_after(1):
            await kmem.ready()


async def test_growth_refills_it_where_it_may() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=8)
        await kmem.ready()
        bufs = [await cache.alloc(KM.PUSHPAGE) for _ in range(8)]
        await settle()
        stats = cache.stats()
        assert (stats.obj_reserved, stats.slab_total) == (8, 2)
        for buf in bufs:
            buf.free()


async def test_reaping_and_ageing_leave_it_and_closing_gives_it_back() -> None:
    async with allocator(expire=9.0) as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=3)
        await cache.prefill(20)
        await anyio.sleep(100)
        await kmem.reap()
        assert (cache.stats().obj_reserved, cache.stats().slab_total) == (3, 1)
        check_consistency(cache)
        await cache.aclose()
        assert kmem.stats().slab_bytes == 0


async def test_emergency_comes_after_it() -> None:
    slabs = Deadlock(Instant(), at=2)
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, reserve=4)
        await kmem.ready()
        bufs = [await cache.alloc(KM.PUSHPAGE) for _ in range(9)]
        assert [buf.emergency for buf in bufs] == [False] * 8 + [True]
        for buf in bufs:
            buf.free()
        assert cache.stats().obj_reserved == 4


async def test_it_is_refilled_with_the_next_room_once_a_waiter_has_emptied_it_at_the_limit() -> None:
    async with allocator(limit=5 * SIZE, expire=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, reserve=2, objects_per_slab=1)
        await kmem.ready()
        held = await cache.alloc()
        other = kmem.create_cache("other", SIZE, objects_per_slab=1)
        others = await other.alloc_many(2)

        async def caller() -> None:
            async with cache.lease_many(3, KM.PUSHPAGE):
                await anyio.sleep(1)

        await start(tasks, caller)
        held.free()
        await settle()
        assert (cache.stats().obj_reserved, cache.stats().obj_held) == (0, 3)
        for buf in others:
            buf.free()
        await other.reap()
        await settle()
        assert (cache.stats().obj_reserved, cache.stats().obj_held) == (2, 3)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"reserve": -1}, "a whole number of at least 0"),
        ({"reserve": 1.5}, "a whole number"),
        ({"reserve": 9, "max_objects": 8}, "at most 8,"),
        ({"reserve": 25}, "at most 24, the objects that fit"),
    ],
    ids=str,
)
async def test_a_reserve_that_there_can_never_be_is_refused(options: dict[str, Any], allowed: str) -> None:
    async with allocator(limit=3 * 8 * SIZE + 17) as kmem:
        with pytest.raises(ConfigError, match=rf"^reserve: {options['reserve']} is not allowed; .*{allowed}"):
            kmem.create_cache("c", SIZE, **options)
        assert not kmem.caches


@settings(max_examples=30, deadline=None)
@given(
    objects=st.integers(1, 4),
    callers=st.integers(1, 4),
    others=st.integers(0, 6),
    growth=st.sampled_from(["stuck", "slow", "limit"]),
    seed=st.integers(0, 2**32),
)
def test_no_pushpage_caller_waits_longer_than_the_longest_hold_whatever_growth_does(
    objects: int, callers: int, others: int, growth: str, seed: int
) -> None:
    longest_hold, longest_wait = 0.02, 0.0

    async def main() -> None:
        slabs = Deadlock(Instant(), at=2, duration=2.0 if growth == "slow" else None)
        most = 8 if growth == "limit" else None
        async with allocator(slabs=slabs, kick_after=None) as kmem:
            # Without emergency objects, so that the reserve alone can help.
            cache = kmem.create_cache("c", SIZE, reserve=objects, max_objects=most, flags=CacheFlags.NOEMERGENCY)
            await kmem.ready()
            draw = random.Random(seed)

            async def urgent() -> None:
                nonlocal longest_wait
                for _ in range(30):
                    begin = anyio.current_time()
                    async with cache.lease(KM.PUSHPAGE):
                        longest_wait = max(longest_wait, anyio.current_time() - begin)
                        await anyio.sleep(draw.uniform(0, longest_hold))

            async def ordinary() -> None:
                while True:
                    async with cache.lease():
                        await anyio.sleep(1000)

            async with anyio.create_task_group() as ordinaries:
                for _ in range(others + 8):
                    ordinaries.start_soon(ordinary)
                await anyio.sleep(0.01)
                async with anyio.create_task_group() as tasks:
                    for _ in range(min(callers, 2 * objects)):
                        tasks.start_soon(urgent)
                ordinaries.cancel_scope.cancel()
            slabs.let_go()

    run(main, seed=seed)
    assert longest_wait <= longest_hold
