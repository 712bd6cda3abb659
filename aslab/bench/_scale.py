"""What grows with the number of caches, objects, emergency objects, waiters, parked buffers, and others that grow?

Neither the cost of one operation nor any single stretch on the event loop may grow with any of them. The garbage
collector is off, as in timeit, since it walks all objects, whoever made them; except for large slabs, where it is
part of the cost, and with ``--collector``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Annotated

import anyio
import anyio.lowlevel
import typer

import aslab
from aslab.backends import Mmap
from aslab.faults import Latency

from . import _in_line, _many
from ._app import command
from ._measured import OURS, Bench, Quantity, Turn, Values
from ._stall import longest_gap

CACHES = (300, 1_000, 10_000)
OBJECTS = (10_000, 100_000, 1_000_000)
WAITERS = (1_000, 10_000, 100_000)
SLABS = (1_000, 10_000, 100_000)
PARKED = (0, 1_000, 20_000)
SIZE = 4096
BARE = "bare tasks"
"""What the loop itself makes of so many tasks, and the collector: what aslab adds is the difference."""
SLOW = 0.05
"""Seconds per grow when an urgent one comes behind ten others."""
MISSES = 100
NOTE = (
    "A stall is the longest time between two turns of a task that sleeps 1 ms: processor time, but for objects of "
    "one slab. Bare tasks are the control: as many that sleep on a future of the loop, with a timeout of anyio."
)
IDLE = Quantity("processor in 1 s", "ms")


@command("scale", rounds=3, quick={"rounds": 1, "most": 1_000})
def scale(
    most: Annotated[int, typer.Option(help="Most caches, objects, waiters, and parked buffers.", min=2)] = OBJECTS[
        -1
    ],
    collector: Annotated[
        bool, typer.Option("--collector", help="Leave the garbage collector on: its stalls count, too.")
    ] = False,
) -> Bench:
    """Cost of each operation, and stalls of the loop, with very many caches, objects or waiters. Takes minutes."""
    turns = []
    for case, who, counts, measure in MANY:
        chosen = [count for count in counts if count <= most] or [most]
        for count in chosen:
            one = partial(_measure, partial(measure, count), collector)
            turns.append(Turn(case, _name(who, count), one, against=_name(who, chosen[0]) if chosen[1:] else ""))
    for case, single in (("a hurry", _hurry), ("the least expire", _least_expire)):
        turns.append(Turn(case, OURS, partial(_measure, single, collector)))
    return Bench("cost that grows", turns, NOTE)


def _name(who: str, count: int) -> str:
    return f"{who}: {count:,}"


def _measure(measure: Callable[[], Awaitable[Values]], collector: bool) -> Values:
    with nullcontext() if collector else _no_collections():
        return anyio.run(measure)


@contextmanager
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


async def _slab(count: int) -> Values:
    """One slab of that many objects; the garbage collector is on, since it is part of the cost."""
    gc.enable()
    async with aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", 64, objects_per_slab=count)

        async def use() -> None:
            for _ in range(count):
                bufs.append(await cache.alloc())
                if len(bufs) % 100 == 0:
                    await anyio.lowlevel.checkpoint()

        bufs: list[aslab.Buffer[memoryview]] = []
        growing = await longest_gap(partial(cache.prefill, 1))
        gc.disable()  # from here on, it is the caller's own handles that are many
        using = await longest_gap(use)
        gc.enable()
        for buf in bufs:
            buf.free()
        reaping = await longest_gap(cache.reap)
    stages = {"growing": growing, "first use, 100 per turn": using, "reaping": reaping}
    return {Quantity(f"stall, {stage}", "ms"): ms for stage, ms in stages.items()}


async def _parked(count: int) -> Values:
    """Buffers that are forgotten while something exports their memory."""
    import warnings

    async with aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", 64, objects_per_slab=max(1, count + MISSES), max_slab_size=2**30)
        exports = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for _ in range(count):
                buf = await cache.alloc()
                exports.append(buf.view[:])
                del buf
        best = float("inf")
        for _ in range(5):
            bufs = []
            misses = cache.stats().misses
            begin = time.perf_counter()
            while cache.stats().misses == misses:
                begin = time.perf_counter()
                bufs.append(await cache.alloc())
            best = min(best, time.perf_counter() - begin)
            for buf in bufs:
                buf.free()
            await cache.reap()  # empties the magazine
        for view in exports:
            view.release()
    return {Quantity("one miss", "ms"): best * 1e3}


async def _hurry() -> Values:
    """A PUSHPAGE caller whose cache has to grow while ten others are waiting to grow."""
    async with aslab.open_allocator(slabs=Latency(Mmap(), SLOW), grow_timeout=60, expire=None) as kmem:
        caches = [kmem.create_cache(f"{number}", SIZE) for number in range(11)]

        async def call(cache: aslab.Cache[memoryview], flags: aslab.KM) -> None:
            async with cache.lease(flags):
                pass

        async with anyio.create_task_group() as tasks:
            for cache in caches[:10]:
                tasks.start_soon(call, cache, aslab.KM.SLEEP)
            await anyio.sleep(SLOW / 2)
            begin = time.perf_counter()
            await call(caches[10], aslab.KM.PUSHPAGE)
            took = time.perf_counter() - begin
    return {Quantity(f"PUSHPAGE behind 10 grows of {SLOW * 1e3:.0f} ms", "ms"): took * 1e3}


async def _least_expire() -> Values:
    """Processor time per second with the shortest valid ``expire``."""
    for expire in (1e-9, 0.01):
        try:
            async with aslab.open_allocator(expire=expire) as kmem:
                kmem.create_cache("c", SIZE)
                begin = time.process_time()
                await anyio.sleep(0.5)
                return {IDLE: (time.process_time() - begin) * 2e3}
        except aslab.ConfigError:
            continue
    return {IDLE: 0.0}


MANY = (
    ("caches", OURS, CACHES, _many.caches),
    ("objects", OURS, OBJECTS, _many.objects),
    ("emergency objects", OURS, OBJECTS, _many.emergency),
    ("waiters", OURS, WAITERS, _in_line.waiters),
    ("waiters", BARE, WAITERS, _in_line.bare_tasks),
    ("objects of one slab", OURS, SLABS, _slab),
    ("parked buffers", OURS, PARKED, _parked),
)
