"""What a hand-over costs, in calls of aslab and in bytes: the same each time, where seconds are not."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aslab
from aslab._cache import pool_of
from aslab._kmem._clock import futures_of_this_loop

from .support import SIZE, allocator

pytestmark = pytest.mark.anyio
HOME = str(Path(aslab.__file__).parent)
TASKS, BUFFERS, TIMES = 64, 8, 20
MANY = 500


async def calls_per_buffer(cache: aslab.Cache[memoryview], rests: int) -> float:
    """Calls of aslab's functions for each buffer that one of many tasks takes, has for a turn, and frees."""
    calls = 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(HOME)

    async def work() -> None:
        for _ in range(TIMES):
            buf = await cache.alloc()
            await anyio.lowlevel.checkpoint()
            buf.free()
            for _ in range(rests):
                await anyio.lowlevel.checkpoint()

    sys.setprofile(profile)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(work)
    finally:
        sys.setprofile(None)
    return calls / (TASKS * TIMES)


@pytest.mark.parametrize(("rests", "most"), [(0, 9), (1, 40)], ids=["comes again", "rests"])
async def test_buffer_that_tasks_wait_for_costs_few_calls(rests: int, most: int) -> None:
    async with allocator() as kmem:
        options: dict[str, Any] = {"objects_per_slab": BUFFERS, "max_objects": BUFFERS}
        cache = kmem.create_cache("c", SIZE, **options, holders_sample=0)  # nor is noted who has waited for long
        await cache.prefill(BUFFERS)
        pool_of(cache).handover.beside = math.inf  # who is passed, and how often, depends on no clock
        calls = await calls_per_buffer(cache, rests)
        assert calls <= most


async def least_bytes_per_task(wait: Callable[[], Awaitable[object]]) -> float:
    """Memory of each of many tasks that sleep in ``wait``.

    The least of three: sets of the loop grow once, and other threads may allocate meanwhile.
    """
    return min([await bytes_per_task(wait) for _ in range(3)])


async def bytes_per_task(wait: Callable[[], Awaitable[object]]) -> float:
    asleep = 0

    async def sleep() -> None:
        nonlocal asleep
        asleep += 1
        await wait()

    async with anyio.create_task_group() as tasks:
        tracemalloc.start()
        try:
            for _ in range(MANY):
                tasks.start_soon(sleep)
            while asleep < MANY:
                await anyio.lowlevel.checkpoint()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            tasks.cancel_scope.cancel()
    return used / MANY


@pytest.mark.parametrize("timeout", [None, 1000.0])
async def test_waiter_costs_at_most_1700_bytes_beyond_its_task_and_its_future(timeout: float | None) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        async with cache.lease():
            make_future = futures_of_this_loop()

            async def bare() -> None:
                await make_future()

            ours = await least_bytes_per_task(partial(cache.alloc, timeout=timeout))
            assert ours - await least_bytes_per_task(bare) < 1700
