"""Does growth stall the event loop? A task that sleeps 1 ms at a time looks for gaps."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio
import typer

import aslab
from aslab.backends import Mmap, Region

from ..cli._loops import Loop, run_on
from ._app import app, show

MIB = 2**20


class OnTheLoop(Mmap):
    """The same memory, mapped and unmapped on the event loop itself, which aslab exists to avoid."""

    async def acquire(self, nbytes: int, align: int, gfp: aslab.GFP) -> Region:
        """Map and touch every page on the event loop."""
        region = self.acquire_nowait(nbytes, align, gfp)
        region.memory[:] = bytes(nbytes)
        return region


@app.command()
def stall(
    mib: Annotated[int, typer.Option(help="Size of the slab in MiB.", min=1)] = 256,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Longest stall of the event loop while a slab is grown, and while it is released."""
    rows = []
    for name, backend in (("in aslab's worker", Mmap()), ("on the loop itself", OnTheLoop())):
        for loop in ("asyncio", "trio"):
            grown, released = run_on(Loop(loop), measure, backend, mib * MIB)
            rows.append({"growth": name, "loop": loop, "grow: gap ms": grown, "release: gap ms": released})
    show(
        f"stall of the event loop, one slab of {mib} MiB",
        rows,
        "Longest gap of a task that sleeps 1 ms.",
        as_json=as_json,
    )


async def measure(backend: Mmap, nbytes: int) -> tuple[float, float]:
    """The longest gaps in milliseconds while a slab is grown, and while it is released."""
    async with aslab.open_allocator(slabs=backend) as kmem:
        cache = kmem.create_cache("big", nbytes, objects_per_slab=1, max_slab_size=nbytes)
        return await longest_gap(lambda: cache.prefill(1)), await longest_gap(cache.reap)


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
