"""Does freeing an emergency object cost more when many are outstanding? With SPL's list of 2012 it did."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab
from aslab.faults import Deadlock

from ._app import command
from ._measured import Bench, Quantity, Turn, Values

FEW = 10
NUMBERS = (FEW, 1_000)
FREED = 10
TIMES = 40
"""Times that objects are freed in a round."""
FREE = Quantity("a free", "ns")


@command("emergency-free", rounds=5, quick={"rounds": 3, "most": 10_000})
def emergency_free(
    most: Annotated[int, typer.Option(help="The largest number outstanding.", min=10)] = 100_000,
) -> Bench:
    """Cost of freeing an emergency object with 10, 1,000 and 100,000 outstanding."""
    names = {number: f"aslab: {number:,} outstanding" for number in (*NUMBERS, most)}
    turns = [Turn("", name, partial(_measure, number), against=names[FEW]) for number, name in names.items()]
    return Bench(
        "freeing an emergency object", turns, f"{FREED} freed at a time, oldest first; the best of {TIMES}."
    )


def _measure(number: int) -> Values:
    return {FREE: anyio.run(_free, number)}


async def _free(number: int) -> float:
    """The best nanoseconds per free with so many outstanding."""
    slabs = Deadlock(aslab.backends.Mmap())
    async with aslab.open_allocator(slabs=slabs, expire=None, kick_after=None) as kmem:
        cache = kmem.create_cache("c", 64)
        held = deque(cache.alloc_nowait() for _ in range(number))
        best = float("inf")
        for _ in range(TIMES):
            victims = [held.popleft() for _ in range(FREED)]
            held.extend(cache.alloc_nowait() for _ in range(FREED))
            begin = time.thread_time_ns()
            for buf in victims:
                buf.free()
            best = min(best, (time.thread_time_ns() - begin) / FREED)
            await anyio.lowlevel.checkpoint()
        for buf in held:
            buf.free()
        slabs.let_go()
        await cache.prefill(1)
        await kmem.reap()  # this also waits for releases queued before
    return best
