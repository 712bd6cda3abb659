"""Does a waiter cost more when there are many?

Tasks themselves do: more live tasks use more memory. So the same is measured with a bare event per task, which is
the cost of the loop; the rest is aslab's. The garbage collector is off, as in timeit: it would walk all tasks over
and over.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab

from ..cli._loops import Loop, run_on
from ._app import app, show

FEW = (100, 1_000)
Wait = Callable[[int], Awaitable[object]]


@app.command()
def waiters(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the best counts.", min=1)] = 7,
    most: Annotated[int, typer.Option(help="The largest number of waiters.", min=100)] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cost of one waiter, from joining the queue to freeing its object, with 100, 1,000 and 10,000 waiters."""
    rows = []
    for loop in ("asyncio", "trio"):
        best = run_on(Loop(loop), measure, rounds, (*FEW, most))
        shares = {number: ours - bare for number, (ours, bare) in best.items()}
        for number, (ours, bare) in best.items():
            rows.append(
                {
                    "loop": loop,
                    "waiters": number,
                    "us per waiter": ours,
                    "of it bare events": bare,
                    "of it aslab": shares[number],
                    "aslab against 100": shares[number] / shares[FEW[0]],
                }
            )
    note = "Half of them are cancelled; the others are served in order, each by the one before."
    show("cost of a waiter", rows, note, as_json=as_json)


async def measure(rounds: int, numbers: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """The best microseconds per waiter, with aslab and with bare events, by the number of waiters."""
    best = {number: (float("inf"), float("inf")) for number in numbers}
    async with aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", 4096, max_objects=1)
        for _ in range(rounds):
            for number in numbers:
                ours, bare = best[number]
                best[number] = (min(ours, await _aslab(cache, number)), min(bare, await _bare(number)))
    return best


async def _aslab(cache: aslab.Cache[memoryview], number: int) -> float:
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
        begin = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for place in range(number):
                tasks.start_soon(caller, place)
            while joined < number:
                await anyio.lowlevel.checkpoint()
            for scope in scopes[::2]:
                scope.cancel()
            begin_serving()
        return (time.perf_counter() - begin) / number * 1e6
    finally:
        gc.enable()
