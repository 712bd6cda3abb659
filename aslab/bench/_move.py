"""What defragmentation achieves, and whether it stalls the event loop."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any

import typer

import aslab

from ..cli._loops import Loop, run_on
from ._app import app, show
from ._stall import longest_gap

MIB = 2**20
SIZES = (4096, 65536, 2 * MIB)
MOST_BYTES = 800 * MIB
LIVE = 0.1


@app.command()
def move(
    slabs: Annotated[int, typer.Option(help="Number of slabs before.", min=2)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """With a random tenth of objects left: slabs before and after a pass, its duration, the longest stall."""
    rows = [
        run_on(Loop(loop), measure, size, slabs) | {"loop": loop} for size in SIZES for loop in ("asyncio", "trio")
    ]
    show("one pass of defragmentation", rows, "Longest gap of a task that sleeps 1 ms.", as_json=as_json)


async def measure(size: int, slabs: int) -> dict[str, Any]:
    """One pass over slabs of up to 64 objects."""
    objects = min(64, MOST_BYTES // slabs // size or 1)
    async with aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache(
            "movable", size, objects_per_slab=objects, max_slab_size=objects * size, movable=True
        )
        await cache.prefill(slabs * objects)
        bufs = [await cache.alloc() for _ in range(slabs * objects)]
        random.Random(1).shuffle(bufs)
        live = bufs[: int(len(bufs) * LIVE)]
        for buf in bufs[len(live) :]:
            buf.free()
        await cache.reap()
        before = cache.stats()
        begin = time.perf_counter()
        gap = await longest_gap(cache.defragment)
        seconds = time.perf_counter() - begin
        after = cache.stats()
        for buf in live:
            buf.free()
    return {
        "object": f"{size // 1024} KiB",
        "objects a slab": objects,
        "live": len(live),
        "slabs before": before.slab_total,
        "after": after.slab_total,
        "MiB moved": after.move_yes * size / MIB,
        "ms": seconds * 1e3,
        "gap ms": gap,
    }
