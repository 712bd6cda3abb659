"""The processor time of a block that holds a buffer, compared with blocks that people write around a list."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import typer

from ..cli._loops import Loop, installed
from ._app import command
from ._measured import Bench
from ._pair import LIST, SIZE, Pairs, pairs_of, warm_cache
from ._rivals import guarded, names


@command("lease", rounds=15, quick={"rounds": 5, "pairs": 1_000})
def lease(
    pairs: Annotated[int, typer.Option(help="Blocks in each round.", min=1)] = 10_000,
) -> Bench:
    """Processor time to enter and leave a block that holds a buffer, compared with other ways to write it."""
    turns = []
    for loop in installed():
        contenders: dict[str, Pairs] = {
            LIST: _list,
            "aslab: async with lease()": _lease,
            "aslab: with await alloc()": _alloc,
            "aslab: async with lease_many(2)": _lease_many,
            names(loop)[0]: partial(_guarded, loop),
        }
        turns += [pairs_of(loop, name, contender, pairs) for name, contender in contenders.items()]
    return Bench("a block that holds a buffer", turns, "The semaphore and its list are in an asynccontextmanager.")


async def _lease(pairs: int) -> float:
    async with warm_cache() as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            async with cache.lease():
                pass
        return (time.thread_time_ns() - begin) / pairs


async def _alloc(pairs: int) -> float:
    async with warm_cache() as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            with await cache.alloc():
                pass
        return (time.thread_time_ns() - begin) / pairs


async def _lease_many(pairs: int) -> float:
    async with warm_cache() as cache:
        begin = time.thread_time_ns()
        for _ in range(pairs):
            async with cache.lease_many(2):
                pass
        return (time.thread_time_ns() - begin) / pairs


async def _guarded(loop: Loop, pairs: int) -> float:
    take, give = guarded(loop, 1, SIZE)

    @asynccontextmanager
    async def held() -> AsyncIterator[object]:
        buf = await take()
        try:
            yield buf
        finally:
            give(buf)

    begin = time.thread_time_ns()
    for _ in range(pairs):
        async with held():
            pass
    return (time.thread_time_ns() - begin) / pairs


async def _list(pairs: int) -> float:
    free = [bytearray(SIZE)]
    begin = time.thread_time_ns()
    for _ in range(pairs):
        buf = free.pop()
        try:
            pass
        finally:
            free.append(buf)
    return (time.thread_time_ns() - begin) / pairs
