"""Does a waiter cost more when there are many?

Tasks themselves do: more live tasks use more memory. So the same is measured with a bare event per task, which is
the cost of the loop; the rest is aslab's. What is counted is processor time, as nothing else runs. The
garbage collector is off, as in timeit: it would walk all tasks over and over.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab

from ..cli._loops import Loop, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

NUMBERS = (100, 1_000)
WAITER = Quantity("a waiter", "us")
BARE = "bare events"
Wait = Callable[[int], Awaitable[object]]


@command("waiters", rounds=7, quick={"rounds": 3, "most": 2_000})
def waiters(
    most: Annotated[int, typer.Option(help="The largest number of waiters.", min=100)] = 10_000,
) -> Bench:
    """Cost of one waiter, from joining the queue to freeing its object, with 100, 1,000 and 10,000 waiters."""
    turns = [
        Turn(f"{number:,} waiters", name, partial(_measure, loop, measure, number), loop.value, BARE)
        for loop in (Loop.ASYNCIO, Loop.TRIO)
        for number in (*NUMBERS, most)
        for name, measure in ((BARE, _bare), ("aslab", _aslab))
    ]
    note = "Half of them are cancelled; the others are served in order, each by the one before."
    return Bench("cost of a waiter", turns, note)


def _measure(loop: Loop, measure: Callable[[int], Awaitable[float]], number: int) -> Values:
    return {WAITER: run_on(loop, measure, number)}


async def _aslab(number: int) -> float:
    async with aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", 4096, max_objects=1)
        held = await cache.alloc()

        async def wait(_: int) -> None:
            (await cache.alloc()).free()

        return await _timed(number, wait, held.free)


async def _bare(number: int) -> float:
    events = [anyio.Event() for _ in range(number + 1)]

    async def wait(place: int) -> None:
        try:
            await events[place].wait()
        finally:
            events[place + 1].set()

    return await _timed(number, wait, events[0].set)


async def _timed(number: int, wait: Wait, begin_serving: Callable[[], None]) -> float:
    """Microseconds per waiter: all are started, every second one is cancelled, the others are served."""
    scopes = [anyio.CancelScope() for _ in range(number)]
    joined = 0

    async def caller(place: int) -> None:
        nonlocal joined
        joined += 1
        with scopes[place]:
            await wait(place)

    gc.collect()
    gc.disable()
    try:
        begin = time.thread_time()
        async with anyio.create_task_group() as tasks:
            for place in range(number):
                tasks.start_soon(caller, place)
            while joined < number:
                await anyio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
            begin_serving()
        return (time.thread_time() - begin) / number * 1e6
    finally:
        gc.enable()
