"""What grows with the number of caches, objects per slab, parked buffers, and other caches that want to grow?

No single stretch on the event loop may grow with any of them. The garbage collector is off, as in timeit, since it
walks all objects, whoever made them; except for large slabs, where it is part of the cost.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Annotated

import anyio
import anyio.lowlevel
import typer
from anyio.abc import TaskGroup

import aslab
from aslab.backends import Mmap
from aslab.faults import Latency

from ._app import command
from ._measured import Bench, Quantity, Turn, Values
from ._stall import longest_gap

CACHES = (100, 300, 1_000)
SLABS = (1_000, 10_000, 100_000)
PARKED = (0, 1_000, 20_000)
SIZE = 4096
INTERVAL = 0.2
"""Seconds between two passes of the ageing task."""
SLOW = 0.05
"""Seconds per grow when an urgent one comes behind ten others."""
MISSES = 100
IDLE = Quantity("processor in 1 s", "ms")
PATIENCE = 10
"""Seconds after which the stages of joining and handing over are cut short."""
Measure = Callable[[], Awaitable[Values]]


@command("scale", rounds=3, quick={"rounds": 1, "most": 1_000})
def scale(
    most: Annotated[int, typer.Option(help="Most caches, objects per slab, and parked buffers.", min=2)] = SLABS[
        -1
    ],
) -> Bench:
    """Stalls of the event loop with many caches, large slabs and many parked buffers. Takes half a minute."""
    measures: list[tuple[str, Measure]] = [
        *((f"{count:,} caches", partial(_caches, count)) for count in _up_to(most, CACHES)),
        *((f"a slab of {count:,}", partial(_slab, count)) for count in _up_to(most, SLABS)),
        *((f"{count:,} parked", partial(_parked, count)) for count in _up_to(most, PARKED)),
        ("a hurry", _hurry),
        ("the least expire", _least_expire),
    ]
    turns = [Turn(case, "aslab", partial(_measure, measure)) for case, measure in measures]
    return Bench("cost that grows", turns, "A stall is the longest gap of a task that sleeps 1 ms.")


def _measure(measure: Measure) -> Values:
    with _no_collections():
        return anyio.run(measure)


def _up_to(most: int, counts: tuple[int, ...]) -> list[int]:
    return [count for count in counts if count <= most] or [most]


def _stalls(stages: Mapping[str, float]) -> Values:
    return {Quantity(f"stall, {stage}", "ms"): ms for stage, ms in stages.items()}


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


class _Watch:
    """A task that sleeps 1 ms at a time, and the worst delay in each stage."""

    def __init__(self) -> None:
        self.stalls: dict[str, float] = {}
        self._worst = 0.0

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            begin = time.perf_counter()
            await anyio.sleep(0.001)
            self._worst = max(self._worst, (time.perf_counter() - begin - 0.001) * 1e3)

    async def stage_ends(self, name: str) -> None:
        """Record the worst delay since the last stage; the next tick sees a stall that has just ended."""
        await anyio.sleep(0.002)
        self.stalls[name], self._worst = self._worst, 0.0


async def _caches(count: int) -> Values:
    """Caches under a limit that has room for half of them: each of the others has a waiting caller."""
    watch = _Watch()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        await watch.stage_ends("starting")
        async with aslab.open_allocator(limit=count // 2 * SIZE, expire=3 * INTERVAL) as kmem:
            await _crowd(kmem, count, watch, tasks)
        await watch.stage_ends("closing")
        tasks.cancel_scope.cancel()
    del watch.stalls["starting"]
    return _stalls(watch.stalls)


async def _crowd(kmem: aslab.Allocator, count: int, watch: _Watch, tasks: TaskGroup) -> None:
    served: list[aslab.Buffer[memoryview]] = []
    half = count // 2
    passed_on = anyio.Event()

    async def wait(cache: aslab.Cache[memoryview]) -> None:
        with suppress(aslab.CacheClosedError):
            served.append(await cache.alloc())
            if len(served) == half // 2:
                passed_on.set()

    for number in range(count):
        kmem.create_cache(f"{number}", SIZE, objects_per_slab=1)
        await anyio.lowlevel.checkpoint()
    await watch.stage_ends("opening")
    held = [await cache.alloc() for cache in kmem.caches[:half]]
    await watch.stage_ends("taking")
    with anyio.move_on_after(PATIENCE):
        for cache in kmem.caches[half:]:
            tasks.start_soon(wait, cache)
            await anyio.lowlevel.checkpoint()
    await watch.stage_ends("joining the waiters")
    await anyio.sleep(4.5 * INTERVAL)
    await watch.stage_ends("idle")
    for buf in held[: half // 2]:
        buf.free()
        await anyio.lowlevel.checkpoint()
    with anyio.move_on_after(PATIENCE):
        await passed_on.wait()
    await watch.stage_ends("passing on")
    for buf in (*held[half // 2 :], *served):
        buf.free()
        await anyio.lowlevel.checkpoint()


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
    return _stalls(stages)


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
