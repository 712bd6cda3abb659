"""The hot path, guarded by counting what it calls: deterministic, where seconds are not.

The compiled one calls no Python at all. Of it the profiler sees ``free``; the interpreter calls the others by a
way that it does not report.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import anyio
import pytest

from aslab import KM, Buffer, Cache
from aslab._cache import pool_of
from aslab._fastpath import COMPILED

from .support import SIZE, Instant, allocator

pytestmark = pytest.mark.anyio


def calls_of(action: Callable[[], object]) -> list[str]:
    """Every Python function and every C function that ``action`` calls; not what finalisers of garbage call."""
    seen: list[str] = []

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)
        elif event == "c_call":
            seen.append(arg.__name__)

    gc.disable()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return [name for name in seen if name != "setprofile"][1:]


def run(coroutine: Coroutine[Any, Any, Buffer[memoryview]]) -> Buffer[memoryview]:
    """Drive a coroutine that must not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        buf: Buffer[memoryview] = stop.value
        return buf
    raise AssertionError("it suspended")


async def warm(cache: Cache[memoryview]) -> None:
    await cache.prefill(1)
    (await cache.alloc()).free()


async def test_awaited_hit_calls_nothing_but_pop_append_len_and_the_finaliser() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await warm(cache)
        calls = calls_of(lambda: run(cache.alloc()).free())
        if COMPILED:
            assert calls == ["run", "send", "free"]
        else:
            assert calls == ["run", "send", "alloc", "pop", "free", "append", "len", "__del__"]


async def test_alloc_nowait_hit_calls_nothing_but_pop_append_len_and_the_finaliser() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await warm(cache)
        calls = calls_of(lambda: cache.alloc_nowait().free())
        assert calls == (["free"] if COMPILED else ["alloc_nowait", "pop", "free", "append", "len", "__del__"])


@pytest.mark.skipif(not COMPILED, reason="in Python they take more")
@pytest.mark.parametrize("movable", [False, True])
async def test_pins_views_and_buffers_that_may_move_call_nothing_in_python(movable: bool) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, movable=movable)
        await warm(cache)

        def pin() -> None:
            buf = cache.alloc_nowait()
            with buf.pin() as view:
                view[0] = 1
            buf.free()  # though the view is kept

        def look() -> None:
            buf = run(cache.alloc())
            kept = buf.view
            buf.free()
            del kept

        assert calls_of(pin) == ["free"]
        assert calls_of(look) == ["run", "send", "free"]


async def test_free_of_a_slab_object_makes_the_same_calls_while_emergency_objects_are_outstanding() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1)
        await warm(cache)
        without = calls_of(lambda: cache.alloc_nowait().free())
        assert pool_of(cache).emergency.try_charge(1)
        slot = await pool_of(cache).emergency.make(KM.SLEEP)
        assert calls_of(lambda: cache.alloc_nowait().free()) == without
        pool_of(cache).emergency.free(slot)


async def test_emergency_free_makes_the_same_calls_however_many_are_outstanding() -> None:
    emergency = Instant()
    async with allocator(emergency=emergency) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        held = [cache.alloc_nowait() for _ in range(10)]
        few = calls_of(held[0].free)
        held += [cache.alloc_nowait() for _ in range(2000)]
        many = calls_of(held[1].free)
        assert len(many) <= len(few) < 25
        for buf in held[2:]:
            buf.free()
        with anyio.fail_after(60):
            while emergency.outstanding:  # so many may take longer than closing waits
                await anyio.sleep(0.001)
