"""What each operation costs where there are very many caches, objects or emergency objects.

Each function returns the microseconds of one operation, and the longest stall of the loop meanwhile.
All are processor time of the loop's thread, so that other programs on the machine do not count. A stall is what
the thread does between two turns of a task that sleeps 1 ms.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

import aslab
from aslab._allocator import tasks_of
from aslab.backends import Mmap
from aslab.faults import Deadlock

from ._measured import Quantity, Values

SIZE = 4096
SMALL = 64
FREES = 50
"""Frees at the limit that are measured, each of which lets another cache grow."""
AT_ONCE = 32
"""What a task does before it lets others run."""
PATIENCE = 20
NEVER = 1e6


class Heart:
    """A task that sleeps 1 ms at a time, and what the thread does in between at most."""

    def __init__(self) -> None:
        self.costs: dict[Quantity, float] = {}
        self._longest = 0.0

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            begin = time.thread_time()
            await anyio.sleep(0.001)
            self._longest = max(self._longest, time.thread_time() - begin)

    @asynccontextmanager
    async def stage(self, name: str, count: int) -> AsyncIterator[None]:
        """Measure ``count`` operations."""
        await anyio.sleep(0.003)
        self._longest = 0.0
        begin = time.thread_time()
        yield
        self.costs[Quantity(f"{name}, each", "us")] = (time.thread_time() - begin) / count * 1e6
        await anyio.sleep(0.003)
        self.costs[Quantity(f"{name}, stall", "ms")] = self._longest * 1e3


@asynccontextmanager
async def beating() -> AsyncIterator[tuple[Heart, TaskGroup]]:
    """A heart that beats meanwhile, and a task group for waiters."""
    heart = Heart()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heart.beat)
        yield heart, tasks
        tasks.cancel_scope.cancel()


async def each(number: int) -> None:
    """Let others run now and then."""
    if number % AT_ONCE == AT_ONCE - 1:
        await anyio.lowlevel.checkpoint()


async def caches(count: int) -> Values:
    """Caches under a limit that has room for half of them; in each of the others a caller waits."""
    served: list[aslab.Buffer[memoryview]] = []
    half = count // 2
    got = anyio.Event()
    over = False

    async def wait(cache: aslab.Cache[memoryview]) -> None:
        with suppress(aslab.CacheClosedError):
            buf = await cache.alloc()
            if over:
                buf.free()
            else:
                served.append(buf)
                got.set()

    async with beating() as (heart, tasks):
        closing = None
        async with aslab.open_allocator(limit=half * SIZE, expire=NEVER) as kmem:
            async with heart.stage("create a cache", count):
                for number in range(count):
                    kmem.create_cache(f"{number}", SIZE, objects_per_slab=1)
                    await each(number)
            all_caches = kmem.caches
            async with heart.stage("a miss with growth", half):
                held = [await cache.alloc() for cache in all_caches[:half]]
            async with heart.stage("wait at the limit", half):
                for number, cache in enumerate(all_caches[half:]):
                    tasks.start_soon(wait, cache)
                    await each(number)
            async with heart.stage("ageing, a cache", count):
                await tasks_of(kmem).age()
            frees = min(FREES, half // 2)
            async with heart.stage("free while another cache waits", frees):
                for _ in range(frees):
                    got = anyio.Event()
                    held.pop().free()
                    with anyio.move_on_after(PATIENCE):
                        await got.wait()
            async with heart.stage("reap, a cache", count):
                await kmem.reap()
            over = True
            for number, buf in enumerate((*held, *served)):
                buf.free()
                await each(number)
            closing = heart.stage("close, a cache", count)
            await closing.__aenter__()
        await closing.__aexit__(None, None, None)
    return heart.costs


async def objects(count: int) -> Values:
    """One slab of that many objects."""
    bufs: list[aslab.Buffer[memoryview]] = []
    async with beating() as (heart, _), aslab.open_allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", SMALL, objects_per_slab=count, max_slab_size=2**31)
        async with heart.stage("grow by", count):
            await cache.prefill(count)
        async with heart.stage("first alloc", count):
            for number in range(count):
                bufs.append(await cache.alloc())
                await each(number)
        async with heart.stage("free", count):
            for number, buf in enumerate(bufs):
                buf.free()
                await each(number)
        while bufs:
            del bufs[-1000:]
            await anyio.lowlevel.checkpoint()
        async with heart.stage("reap", count):
            await cache.reap()
    return heart.costs


async def emergency(count: int) -> Values:
    """So many emergency objects while growth is stuck."""
    slabs = Deadlock(Mmap())
    bufs: list[aslab.Buffer[memoryview]] = []
    async with (
        beating() as (heart, _),
        aslab.open_allocator(slabs=slabs, expire=None, kick_after=None) as kmem,
    ):
        cache = kmem.create_cache("c", SMALL)
        async with heart.stage("alloc", count):
            for number in range(count):
                bufs.append(cache.alloc_nowait())
                await each(number)
        async with heart.stage("free and release", count):
            for number, buf in enumerate(bufs):
                buf.free()
                await each(number)
            await tasks_of(kmem).arena.singles.idle()
        while bufs:
            del bufs[-1000:]
            await anyio.lowlevel.checkpoint()
        slabs.let_go()
        await cache.prefill(1)
    return heart.costs
