"""A sealed allocator: nothing grows, nothing goes back, and what would have grown is counted."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from aslab import SealedError
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_what_would_have_grown_waits_for_a_free_and_is_counted() -> None:
    slabs, single = Instant(), Instant()
    async with allocator(slabs=slabs, emergency=single) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        assert not kmem.stats().sealed
        kmem.seal()
        assert kmem.stats().sealed
        held = await cache.alloc_many(8)
        got: list[bool] = []

        async def caller() -> None:
            async with cache.lease() as buf:
                got.append(buf.emergency)

        for _ in range(2):
            await start(tasks, caller)
        await anyio.sleep(100)
        assert (got, cache.stats().sealed, cache.stats().timeouts) == ([], 2, 0)
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        assert cache.stats().sealed == 3
        for buf in held:
            buf.free()
        await settle()
        assert got == [False, False]
        assert (len(slabs.asked), len(single.asked), cache.stats().slab_create) == (1, 0, 1)
        check_consistency(cache)


async def test_hits_are_not_counted() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        kmem.seal()
        for _ in range(3):
            async with cache.lease():
                pass
        assert cache.stats().sealed == 0


async def test_a_grow_under_way_still_ends_and_one_that_is_queued_does_not_begin() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        one, other = kmem.create_cache("one", SIZE), kmem.create_cache("other", SIZE)
        got: list[str] = []

        async def caller(cache: Any) -> None:
            async with cache.lease() as buf:
                assert not buf.emergency
                got.append(cache.name)

        await start(tasks, caller, one)
        await start(tasks, caller, other)
        kmem.seal()
        slabs.open()
        await anyio.sleep(10)
        assert got == ["one"]
        assert (one.stats().slab_total, other.stats().slab_total, other.stats().sealed) == (1, 0, 1)
        tasks.cancel_scope.cancel()


async def test_nothing_goes_back_since_it_could_not_come_again() -> None:
    async with allocator(expire=3.0) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(16)
        kmem.seal()
        await anyio.sleep(100)
        assert await cache.reap() == 0
        assert await kmem.reap() == 0
        assert kmem.stats().slab_bytes == 16 * SIZE
        await cache.aclose()
        assert kmem.stats().slab_bytes == 0


async def test_a_cache_that_could_never_have_an_object_is_refused() -> None:
    async with allocator() as kmem:
        kmem.seal()
        kmem.seal()
        with pytest.raises(SealedError, match="cache 'c' could never have an object"):
            kmem.create_cache("c", SIZE)
