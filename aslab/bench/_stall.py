"""Does growth stall the event loop? A task that sleeps 1 ms at a time looks for gaps."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

import anyio
import typer

import aslab
from aslab.backends import Mmap, Region

from ..cli._loops import Loop, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

MIB = 2**20
OURS = "aslab: in a worker"
GROWING, RELEASING = Quantity("gap while it grows", "ms"), Quantity("gap while it is released", "ms")


class OnTheLoop(Mmap):
    """The same memory, mapped and unmapped on the event loop itself, which aslab exists to avoid."""

    async def acquire(self, nbytes: int, align: int, gfp: aslab.GFP) -> Region:
        """Map and touch every page on the event loop."""
        region = self.acquire_nowait(nbytes, align, gfp)
        region.memory[:] = bytes(nbytes)
        return region


@command("stall", rounds=3, quick={"rounds": 1, "mib": 64})
def stall(
    mib: Annotated[int, typer.Option(help="Size of the slab in MiB.", min=1)] = 256,
) -> Bench:
    """Longest stall of the event loop while a slab is grown, and while it is released."""
    turns = [
        Turn("", name, partial(_measure, loop, backend, mib * MIB), loop.value, OURS)
        for loop in (Loop.ASYNCIO, Loop.TRIO)
        for name, backend in ((OURS, Mmap()), ("on the loop itself", OnTheLoop()))
    ]
    title = f"stall of the event loop, one slab of {mib} MiB"
    return Bench(title, turns, "Longest gap of a task that sleeps 1 ms.")


def _measure(loop: Loop, backend: Mmap, nbytes: int) -> Values:
    async def measure() -> Values:
        async with aslab.open_allocator(slabs=backend) as kmem:
            cache = kmem.create_cache("big", nbytes, objects_per_slab=1, max_slab_size=nbytes)
            return {GROWING: await longest_gap(lambda: cache.prefill(1)), RELEASING: await longest_gap(cache.reap)}

    return run_on(loop, measure)


async def longest_gap(call: Callable[[], Awaitable[object]]) -> float:
    """The worst delay of a 1 ms sleep while ``call`` runs, in milliseconds."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            begin = time.perf_counter()
            await anyio.sleep(0.001)
            worst = max(worst, time.perf_counter() - begin - 0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        await anyio.sleep(0.005)
        worst = 0.0
        await call()
        await anyio.sleep(0.002)  # the next tick sees a stall that has just ended
        tasks.cancel_scope.cancel()
    return worst * 1e3
