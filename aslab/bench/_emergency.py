"""Emergency objects while growth is stuck: the benefit of reusing a freed one for the next caller."""

from __future__ import annotations

import time
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab
from aslab._cache import pool_of
from aslab.faults import Deadlock

from ._app import app, show

SIZE = 2**20


@app.command()
def emergency(
    seconds: Annotated[float, typer.Option(help="Seconds for each figure.", min=0.01)] = 1.0,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the best counts.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Emergency objects of 1 MiB, allocated and freed while growth is stuck, kept for the next caller or not."""
    rows = []
    for tasks in (1, 32):
        best = anyio.run(measure, tasks, seconds, rounds)
        rows.append(
            {
                "tasks": tasks,
                "pairs a second": best[True],
                "given back": best[False],
                "ratio": best[True] / best[False],
            }
        )
    show(
        "alloc and free of 1 MiB while growth is stuck",
        rows,
        "given back: each freed object is released to its backend at once, and the next one is new.",
        as_json=as_json,
    )


async def measure(tasks: int, seconds: float, rounds: int) -> dict[bool, float]:
    """The most pairs per second, with and without keeping freed objects."""
    best = {True: 0.0, False: 0.0}
    for _ in range(rounds):
        for kept in best:
            best[kept] = max(best[kept], await _pairs(tasks, seconds, kept=kept))
    return best


async def _pairs(tasks: int, seconds: float, *, kept: bool) -> float:
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
