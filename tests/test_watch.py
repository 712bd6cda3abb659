"""The bits of a magazine: who wants to hear of frees, and why allocations must not simply pop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from aslab import KM
from aslab._cache import pool_of
from aslab._fastpath import CLOSED, CONDEMNED, FILLERS, KEPT, OPTIONS, RESERVE, SHORT, WAITERS
from aslab.testing import check_consistency

from .support import SIZE, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


@pytest.mark.parametrize(
    ("reason", "way", "finding"),
    [
        (WAITERS, "watch", "watch: WAITERS is left over"),
        (FILLERS, "watch", "watch: FILLERS is left over"),
        (RESERVE, "watch", "watch: RESERVE is left over"),
        (KEPT, "watch", "watch: KEPT is left over"),
        (CONDEMNED, "watch", "watch: CONDEMNED is left over"),
        (SHORT, "watch", "watch: SHORT is left over"),
        (CLOSED, "watch", "watch: CLOSED is left over"),
        (CLOSED, "detour", "detour: CLOSED is left over"),
        (WAITERS, "detour", "detour: WAITERS is left over"),
    ],
)
async def test_check_consistency_finds_a_bit_that_was_forgotten(reason: int, way: str, finding: str) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(1)
        check_consistency(cache)
        magazine = pool_of(cache).magazine
        kept = getattr(magazine, way)
        setattr(magazine, way, kept | reason)
        with pytest.raises(AssertionError, match=finding):
            check_consistency(cache)
        setattr(magazine, way, kept)


async def test_a_cache_that_nobody_waits_for_watches_nothing() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1)
        held = await cache.alloc_many(2)
        magazine = pool_of(cache).magazine
        assert magazine.watch is False
        assert magazine.detour is False

        async def wait(call: Callable[[], Any]) -> None:
            (await call()).free()

        async with anyio.create_task_group() as tasks:
            await start(tasks, wait, cache.alloc)
            assert magazine.watch == WAITERS
            await start(tasks, cache.prefill, 1)
            assert magazine.watch == WAITERS | FILLERS
            check_consistency(cache)
            for buf in held:
                buf.free()
            await settle()
        assert magazine.watch is False
        assert magazine.detour is False


async def test_callers_that_cannot_be_passed_divert_allocations() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1)
        one, two = await cache.alloc_many(2)
        magazine = pool_of(cache).magazine

        async def urgent() -> None:
            (await cache.alloc(KM.PUSHPAGE)).free()

        async with anyio.create_task_group() as tasks:
            await start(tasks, urgent)
            assert magazine.detour == WAITERS
            one.free()
            await settle()
        assert magazine.detour is False
        two.free()


@pytest.mark.parametrize(
    "options", [{"init_on_alloc": True}, {"merge": True}, {"movable": True}, {"watermark": 1}]
)
async def test_options_that_cost_more_than_the_magazine_divert_all_allocations(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        assert pool_of(kmem.create_cache("c", SIZE, **options)).magazine.detour == OPTIONS


async def test_a_reserve_that_another_thread_takes_from_is_refilled_by_frees() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1, reserve=1)
        await cache.prefill(1)
        held, magazine = await cache.alloc(), pool_of(cache).magazine
        assert not magazine.watch & RESERVE
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(cache.alloc_nowait(KM.PUSHPAGE)))
        thread.start()
        thread.join()
        assert magazine.watch & RESERVE, "at once, not only when the event loop has looked"
        held.free()
        await settle()
        assert cache.stats().obj_reserved == 1
        check_consistency(cache)
        got[0].free()


async def test_a_cache_created_while_others_wait_for_slabs_is_watched_too() -> None:
    async with allocator(limit=2 * SIZE, expire=None) as kmem:
        full = kmem.create_cache("full", SIZE, objects_per_slab=1)
        held = await full.alloc_many(2)

        async def wait() -> None:
            (await full.alloc()).free()

        async with anyio.create_task_group() as tasks:
            await start(tasks, wait)
            late = kmem.create_cache("late", SIZE, objects_per_slab=1)
            assert pool_of(late).magazine.watch & SHORT
            check_consistency(late)
            for buf in held:
                buf.free()


async def test_a_closed_cache_hears_of_each_free_and_hands_nothing_out() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf, magazine = await cache.alloc(), pool_of(cache).magazine
        with pytest.warns(ResourceWarning, match="1 buffers still held"):
            async with anyio.create_task_group() as tasks:
                await start(tasks, cache.aclose)
                assert (magazine.watch, magazine.detour) == (CLOSED, CLOSED)
                buf.free()
                await settle()
        assert len(magazine) == 0
