"""Pins: the way to memory that may move, and what holds it in place."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
import numpy as np
import pytest

from aslab import BufferFreedError
from aslab.testing import check_consistency

from .support import SIZE, allocator

pytestmark = pytest.mark.anyio
KINDS = [{"movable": True}, {}, {"init_on_free": True}, {"merge": True}]


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


@pytest.fixture(params=KINDS, ids=str)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Pins work on every kind of buffer."""
    found: dict[str, Any] = request.param
    return found


async def test_it_is_the_memory_and_ends_with_the_block(options: dict[str, Any]) -> None:
    async with allocator() as kmem, kmem.create_cache("c", SIZE, **options).lease() as buf:
        with buf.pin() as view:
            assert (len(view), view.readonly) == (SIZE, False)
            view[:4] = b"here"
        with pytest.raises(ValueError, match="released"):
            view[0]
        assert bytes(buf.view[:4]) == b"here"


async def test_it_may_be_entered_again_and_inside_of_itself(options: dict[str, Any]) -> None:
    async with allocator() as kmem, kmem.create_cache("c", SIZE, **options).lease() as buf:
        pin = buf.pin()
        with pin as outer:
            with pin as inner, buf.pin() as other:
                outer[0] = 7
                assert inner[0] == other[0] == 7
            assert outer[0] == 7
        with pin as view:
            assert view[0] == 7


async def test_the_buffers_own_view_is_not_ended_by_it(options: dict[str, Any]) -> None:
    async with allocator() as kmem, kmem.create_cache("c", SIZE, **options).lease() as buf:
        view = buf.view
        with buf.pin():
            pass
        view[0] = 1
        assert buf.view is view


async def test_free_is_refused_inside_the_block_and_afterwards_while_something_is_kept(
    options: dict[str, Any],
) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        with buf.pin(), pytest.raises(BufferError, match="still in use"):
            buf.free()
        for keep in (lambda view: view[4:8], lambda view: np.frombuffer(view, np.uint8)):
            with buf.pin() as view:
                kept = keep(view)
            for _ in range(2):
                with pytest.raises(BufferError, match="still in use"):
                    buf.free()
            kept[0] = 9
            del kept, view
        assert cache.stats().obj_held == 1
        buf.free()
        assert cache.stats().obj_held == 0


async def test_free_refused_for_a_pin_leaves_the_buffers_view_alone(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE, **options).alloc()
        view = buf.view
        with buf.pin(), pytest.raises(BufferError, match="pin"):
            buf.free()
        view[0] = 1
        assert buf.view is view
        buf.free()


async def test_freed_buffer_can_not_be_pinned(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE, **options).alloc()
        pin = buf.pin()
        buf.free()
        for one in (pin, buf.pin()):
            with pytest.raises(BufferFreedError), one:
                pass


async def test_it_works_in_other_threads(options: dict[str, Any]) -> None:
    async with allocator() as kmem, kmem.create_cache("c", SIZE, **options).lease() as buf:

        def write() -> None:
            with buf.pin() as view:
                view[:5] = b"there"

        await anyio.to_thread.run_sync(write)
        with buf.pin() as view:
            assert bytes(view[:5]) == b"there"


async def test_free_is_refused_while_a_pin_lasts_that_nobody_leaves(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        slot = buf._slot
        view = buf.pin().__enter__()
        view[0] = 1
        with pytest.raises(BufferError, match="still in use"):
            buf.free()
        del view
        assert not slot.in_use(bool(buf._view)), "it may move again, unless it has a view of its own"
        buf.free()
        check_consistency(cache)


async def test_array_that_outlives_it_is_the_last_that_keeps_the_buffer_in_place(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        slot = buf._slot
        with buf.pin() as view:
            array = np.frombuffer(view, np.uint8)
        del view
        assert slot.in_use()
        del array
        assert not slot.in_use(bool(buf._view))
        buf.free()
        check_consistency(cache)


async def test_buffer_lingers_as_long_as_the_view_of_any_of_its_pins_is_kept(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        views = []
        for _ in range(3):
            with buf.pin() as view:
                views.append(view)
        del view
        buf.free()
        while views:
            assert cache.stats().obj_lingering == 1
            views.pop(0)
        assert cache.stats().obj_lingering == 0
        check_consistency(cache)


async def test_view_that_ended_before_its_pin_makes_the_buffer_linger(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        with buf.pin() as view:
            view.release()
            buf.free()
            assert cache.stats().obj_lingering == 1
        del view
        assert cache.stats().obj_lingering == 0
        check_consistency(cache)
