"""Emergency objects while growth is stuck: the benefit of reusing a freed one for the next caller."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab
from aslab._cache import pool_of
from aslab.faults import Deadlock

from ._app import command
from ._measured import Bench, Quantity, Turn, Values

SIZE = 2**20
PAIRS = Quantity("pairs", "1/s", more_is_better=True)
KEPT, GONE = "aslab: kept for the next caller", "given back"


@command("emergency", rounds=5, quick={"rounds": 3, "seconds": 0.2})
def emergency(
    seconds: Annotated[float, typer.Option(help="Seconds for each figure and round.", min=0.01)] = 0.5,
) -> Bench:
    """Emergency objects of 1 MiB, allocated and freed while growth is stuck, kept for the next caller or not."""
    turns = [
        Turn(
            f"{tasks} tasks" if tasks > 1 else "1 task",
            name,
            partial(_measure, tasks, seconds, kept=kept),
            "",
            GONE,
        )
        for tasks in (1, 32)
        for name, kept in ((KEPT, True), (GONE, False))
    ]
    note = "given back: each freed object is released to its backend at once, and the next one is new."
    return Bench("alloc and free of 1 MiB while growth is stuck", turns, note)


def _measure(tasks: int, seconds: float, *, kept: bool) -> Values:
    return {PAIRS: anyio.run(partial(_pairs, tasks, seconds, kept=kept))}


async def _pairs(tasks: int, seconds: float, *, kept: bool) -> float:
    """Pairs per second, with or without keeping freed objects."""
    slabs = Deadlock(aslab.backends.Mmap())
    pairs = 0
    async with aslab.open_allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        (await cache.alloc()).free()  # the first one finds growth late
        pool_of(cache).growth.unwell = kept  # what a free checks
        pool_of(cache).emergency.clear()
        begin = time.perf_counter()

        async def work() -> None:
            nonlocal pairs
            while time.perf_counter() - begin < seconds:
                async with cache.lease():
                    await anyio.lowlevel.checkpoint()
                pairs += 1

        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(work)
        took = time.perf_counter() - begin
        slabs.let_go()
    return pairs / took
