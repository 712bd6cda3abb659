"""What only trio has: its own cancellation and checkpoint rules. pytest-trio runs these, by its marker."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import aslab

from .support import SIZE, Gate, Instant, allocator


@pytest.mark.trio
async def test_with_checkpoints_every_alloc_is_a_checkpoint(autojump_clock: trio.testing.MockClock) -> None:
    async with allocator(checkpoints=True) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for _ in range(3):
            with trio.testing.assert_checkpoints():
                buf = await cache.alloc()
            buf.free()


@pytest.mark.trio
async def test_without_them_a_hit_is_none_and_a_wait_is_one(autojump_clock: trio.testing.MockClock) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        with trio.testing.assert_checkpoints():
            buf = await cache.alloc()
        buf.free()
        with trio.testing.assert_no_checkpoints():
            buf = await cache.alloc()
        buf.free()


@pytest.mark.trio
async def test_trio_timeouts_cancel_a_wait_and_nothing_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with allocator(slabs=Gate(), emergency=Gate(), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(trio.TooSlowError), trio.fail_after(3):
            await cache.alloc()
        assert cache.stats().waiters == 0


@pytest.mark.trio
async def test_nursery_that_fails_takes_the_allocator_down_in_order() -> None:
    slabs = Instant()
    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:

            async def service() -> None:
                async with aslab.open_allocator(slabs=slabs) as kmem:
                    await kmem.create_cache("c", SIZE).prefill(8)
                    await trio.sleep_forever()

            nursery.start_soon(service)
            await trio.testing.wait_all_tasks_blocked(0.01)
            raise KeyError
    assert not slabs.outstanding
