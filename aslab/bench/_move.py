"""What defragmentation achieves, and whether it stalls the event loop."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Annotated

import typer

import aslab

from .._checks import format_size
from ..cli._loops import Loop, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values
from ._stall import longest_gap

MIB = 2**20
SIZES = (4096, 65536, 2 * MIB)
BEFORE, AFTER = Quantity("before", "slabs"), Quantity("after", "slabs")
MOVED, TOOK, GAP = Quantity("moved", "MiB"), Quantity("took", "ms"), Quantity("longest gap", "ms")
MOST_BYTES = 800 * MIB
LIVE = 0.1


@command("move", rounds=3, quick={"rounds": 1, "slabs": 40})
def move(
    slabs: Annotated[int, typer.Option(help="Number of slabs before.", min=2)] = 200,
) -> Bench:
    """With a random tenth of objects left: slabs before and after a pass, its duration, the longest stall."""
    turns = [
        Turn(f"objects of {format_size(size)}", "aslab", partial(run_on, loop, _pass, size, slabs), loop.value)
        for size in SIZES
        for loop in (Loop.ASYNCIO, Loop.TRIO)
    ]
    return Bench("one pass of defragmentation", turns, "Longest gap of a task that sleeps 1 ms.")


async def _pass(size: int, slabs: int) -> Values:
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
        BEFORE: before.slab_total,
        AFTER: after.slab_total,
        MOVED: after.move_yes * size / MIB,
        TOOK: seconds * 1e3,
        GAP: gap,
    }
