"""Does freeing an emergency object cost more when many are outstanding? With SPL's list of 2012 it did."""

from __future__ import annotations

import time
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab
from aslab.faults import Deadlock

from ._app import app, show

FEW = (10, 1_000)
FREED = 10


@app.command(name="emergency-free")
def emergency_free(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the best counts.", min=1)] = 200,
    most: Annotated[int, typer.Option(help="The largest number outstanding.", min=10)] = 100_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cost of freeing an emergency object with 10, 1,000 and 100,000 outstanding."""
    best = anyio.run(measure, rounds, (*FEW, most))
    rows = [
        {"outstanding": number, "ns per free": cost, "against 10": cost / best[FEW[0]]}
        for number, cost in best.items()
    ]
    show("freeing an emergency object", rows, f"{FREED} freed at a time, oldest first.", as_json=as_json)


async def measure(rounds: int, numbers: tuple[int, ...]) -> dict[int, float]:
    """The best nanoseconds per free, by the number outstanding."""
    slabs = Deadlock(aslab.backends.Mmap())
    async with aslab.open_allocator(slabs=slabs, expire=None, kick_after=None) as kmem:
        caches = {number: kmem.create_cache(f"{number}", 64) for number in numbers}
        held = {number: [caches[number].alloc_nowait() for _ in range(number)] for number in numbers}
        best = {number: float("inf") for number in numbers}
        for _ in range(rounds):
            for number in numbers:
                bufs = held[number]
                victims, bufs[:FREED] = bufs[:FREED], [caches[number].alloc_nowait() for _ in range(FREED)]
                begin = time.perf_counter_ns()
                for buf in victims:
                    buf.free()
                best[number] = min(best[number], (time.perf_counter_ns() - begin) / FREED)
            await anyio.lowlevel.checkpoint()
        for bufs in held.values():
            for buf in bufs:
                buf.free()
        slabs.let_go()
        for cache in caches.values():
            await cache.prefill(1)
        await kmem.reap()  # this also waits for releases queued before
    return best
