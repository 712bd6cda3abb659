"""What does it cost when tasks wait for each other's buffers? Compared with pools that people build themselves.

There are more tasks than buffers, so nearly every buffer passes from one task to another. It runs on the loop's
own primitives, and the loop is never idle: so the speed is that of processor time, and the longest wait is in real
time. The speed depends on who gets a freed buffer: a pool that hands it over makes the event loop switch tasks
each time; one that leaves it to whichever task runs avoids that, and makes some wait longer.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, NamedTuple

import anyio
import typer

import aslab
from aslab._cache import pool_of

from ..cli._loops import Loop, check_installed, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values
from ._rivals import Pool, family, guarded, names, queued

SIZE = 4096
OURS, AT_ONCE = "aslab", "aslab, hands over at once"
BUFFERS = Quantity("buffers", "1/s", more_is_better=True)
LONGEST = Quantity("longest wait", "ms")


class Pattern(NamedTuple):
    """Turns of the event loop that a task holds a buffer, and then rests before the next one."""

    holds: int
    rests: int


PATTERNS = {"comes again": Pattern(1, 0), "rests": Pattern(1, 1), "works": Pattern(5, 0)}


class Crowd(NamedTuple):
    """How many tasks share how many buffers, and how often each takes one."""

    tasks: int
    buffers: int
    times: int


@command("handover", rounds=5, quick={"rounds": 3, "operations": 5_000})
def handover(
    loop: Annotated[list[Loop] | None, typer.Option(help="Loop to run on; default: asyncio and trio.")] = None,
    operations: Annotated[int, typer.Option(help="Allocations per round.", min=1)] = 20_000,
    tasks: Annotated[int, typer.Option(help="Tasks that share the buffers.", min=2)] = 64,
    buffers: Annotated[int, typer.Option(help="Number of buffers.", min=1)] = 8,
) -> Bench:
    """Buffers per second when tasks wait for them, compared with other pools. Takes a minute."""
    loops = loop or [Loop.ASYNCIO, Loop.TRIO]
    crowd = Crowd(tasks, buffers, -(-operations // tasks))
    turns = []
    for each in loops:
        check_installed(each)
        for pattern in PATTERNS:
            rival = names(each)[0]
            turns += [
                Turn(pattern, name, partial(_measure, each, name, pattern, crowd), each.value, rival)
                for name in (*names(each), OURS, AT_ONCE)
            ]
    note = (
        f"{tasks} tasks share {buffers} buffers. Tasks come back at once, or rest for a turn of the "
        f"loop; those that work hold a buffer for {PATTERNS['works'].holds} turns, the others for one. "
        "Buffers a second of processor time."
    )
    return Bench("buffers that tasks wait for", turns, note)


def _measure(loop: Loop, name: str, pattern: str, crowd: Crowd) -> Values:
    async def measure() -> Values:
        async with _pool(loop, name, crowd.buffers) as pool:
            return await _round(pool, PATTERNS[pattern], _turn_of(loop), crowd)

    return run_on(loop, measure)


@asynccontextmanager
async def _pool(loop: Loop, name: str, buffers: int) -> AsyncIterator[Pool]:
    if name in names(loop):
        make = (guarded, queued)[names(loop).index(name)]
        yield make(loop, buffers, SIZE)
        return
    async with aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=buffers, max_objects=buffers)
        await cache.prefill(buffers)
        if name == AT_ONCE:
            pool_of(cache).handover.beside = 0.0  # only for this experiment
        yield Pool(cache.alloc, aslab.Buffer.free)


def _turn_of(loop: Loop) -> Callable[[], Awaitable[object]]:
    """What a task awaits to give its loop a turn."""
    module = importlib.import_module(family(loop))
    turn: Callable[[], Awaitable[object]] = (
        module.lowlevel.checkpoint if loop is Loop.TRIO else partial(module.sleep, 0)
    )
    return turn


async def _round(pool: Pool, pattern: Pattern, turn: Callable[[], Awaitable[object]], crowd: Crowd) -> Values:
    take, give = pool
    longest = 0.0

    async def work() -> None:
        nonlocal longest
        for _ in range(crowd.times):
            begin = time.perf_counter()
            buf = await take()
            longest = max(longest, time.perf_counter() - begin)
            for _ in range(pattern.holds):
                await turn()
            give(buf)
            for _ in range(pattern.rests):
                await turn()

    begin = time.thread_time()
    async with anyio.create_task_group() as group:
        for _ in range(crowd.tasks):
            group.start_soon(work)
    per_second = crowd.tasks * crowd.times / (time.thread_time() - begin)
    return {BUFFERS: per_second, LONGEST: longest * 1e3}
