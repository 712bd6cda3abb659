"""The cost of alloc and free on a hit, compared with pools that people build from a queue.

Nothing here waits, so what is counted is processor time: on a busy machine other processes come in between every
few milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import typer

import aslab
from aslab.backends import Heap

from ..cli._loops import Loop, installed, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values
from ._rivals import Pool, names, queued

SIZE = 4096
PAIR = Quantity("a pair", "ns")
LIST = "a bare list: pop, append"
FEWER = 20
"""Streams, and channels of trio, make a full checkpoint each time, so fewer pairs are enough."""
Pairs = Callable[[int], Awaitable[float]]
"""Makes so many pairs, and returns the nanoseconds that each took."""


@command("pair", rounds=15, quick={"rounds": 5, "pairs": 2_000})
def pair(
    pairs: Annotated[int, typer.Option(help="Pairs in each round.", min=1)] = 20_000,
) -> Bench:
    """Processor time of one alloc and free that hit, compared with other pools."""
    turns = []
    for loop in installed():
        contenders: dict[str, Pairs] = {
            LIST: _list,
            "aslab: alloc_nowait, free": _alloc_nowait,
            "aslab: await alloc, free": _alloc,
            "aslab: await alloc, view, free": _alloc_and_view,
            "aslab: the same, view kept": _alloc_and_keep_view,
            "aslab: await alloc, pin, free": _alloc_and_pin,
            "aslab, movable: await alloc, free": partial(_alloc, movable=True),
            "aslab, movable: alloc, pin, free": partial(_alloc_and_pin, movable=True),
            names(loop)[1]: partial(_queue, loop),
            "anyio memory stream": _stream,
        }
        turns += [pairs_of(loop, name, contender, pairs) for name, contender in contenders.items()]
    note = "aslab's figures include a fresh handle per allocation and all safety checks; the others have none."
    return Bench("one object allocated and freed", turns, note)


def pairs_of(loop: Loop, name: str, contender: Pairs, pairs: int) -> Turn:
    """A turn of that contender, compared with the bare list."""

    def measure() -> Values:
        return {PAIR: run_on(loop, contender, pairs)}

    return Turn("", name, measure, loop.value, LIST)


@asynccontextmanager
async def warm_cache(**options: Any) -> AsyncIterator[aslab.Cache[memoryview]]:
    """A cache in which the next allocations hit."""
    async with aslab.open_allocator(slabs=Heap(), expire=None) as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        await cache.prefill(8)
        (await cache.alloc()).free()
        yield cache


async def _alloc(pairs: int, **options: Any) -> float:
    async with warm_cache(**options) as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            buf = await cache.alloc()
            buf.free()
        return (time.thread_time_ns() - begin) / pairs


async def _alloc_nowait(pairs: int) -> float:
    async with warm_cache() as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            buf = cache.alloc_nowait()
            buf.free()
        return (time.thread_time_ns() - begin) / pairs


async def _alloc_and_view(pairs: int) -> float:
    async with warm_cache() as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            buf = await cache.alloc()
            buf.view  # noqa: B018  (made on first use, and checked by free)
            buf.free()
        return (time.thread_time_ns() - begin) / pairs


async def _alloc_and_keep_view(pairs: int) -> float:
    async with warm_cache() as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            buf = await cache.alloc()
            view = buf.view  # at the next free it is still here, so that the slot lingers
            buf.free()
        del view
        return (time.thread_time_ns() - begin) / pairs


async def _alloc_and_pin(pairs: int, **options: Any) -> float:
    async with warm_cache(**options) as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            buf = await cache.alloc()
            with buf.pin():
                pass
            buf.free()
        return (time.thread_time_ns() - begin) / pairs


async def _stream(pairs: int) -> float:
    sender, receiver = anyio.create_memory_object_stream[bytearray](8)
    with sender, receiver:
        sender.send_nowait(bytearray(SIZE))
        return await _take_and_give(Pool(receiver.receive, sender.send_nowait), max(1, pairs // FEWER))


async def _queue(loop: Loop, pairs: int) -> float:
    fewer = FEWER if loop is Loop.TRIO else 1
    return await _take_and_give(queued(loop, 1, SIZE), max(1, pairs // fewer))


async def _take_and_give(pool: Pool, pairs: int) -> float:
    take, give = pool
    begin = time.thread_time_ns()
    for _ in range(pairs):
        item = await take()
        give(item)
    return (time.thread_time_ns() - begin) / pairs


async def _list(pairs: int) -> float:
    free = [bytearray(SIZE)]
    begin = time.thread_time_ns()
    for _ in range(pairs):
        item = free.pop()
        free.append(item)
    return (time.thread_time_ns() - begin) / pairs
