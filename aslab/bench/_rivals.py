"""Pools that people build on the primitives of their loop."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ..cli._loops import Loop


class Pool(NamedTuple):
    """How to take a buffer, and how to return it."""

    take: Callable[[], Awaitable[Any]]
    give: Callable[[Any], object]


def family(loop: Loop) -> str:
    """The library whose primitives that loop has."""
    return "trio" if loop is Loop.TRIO else "asyncio"


def guarded(loop: Loop, buffers: int, size: int) -> Pool:
    """A list of buffers, counted by the loop's own semaphore."""
    semaphore = importlib.import_module(family(loop)).Semaphore(buffers)
    free = [bytearray(size) for _ in range(buffers)]

    async def take() -> bytearray:
        await semaphore.acquire()
        return free.pop()

    def give(buf: bytearray) -> None:
        free.append(buf)
        semaphore.release()

    return Pool(take, give)


def queued(loop: Loop, buffers: int, size: int) -> Pool:
    """The loop's own queue, with all buffers in it: a memory channel on trio."""
    if loop is Loop.TRIO:
        sender, receiver = importlib.import_module("trio").open_memory_channel(buffers)
        pool = Pool(receiver.receive, sender.send_nowait)
    else:
        queue: asyncio.Queue[bytearray] = asyncio.Queue()
        pool = Pool(queue.get, queue.put_nowait)
    for _ in range(buffers):
        pool.give(bytearray(size))
    return pool


def names(loop: Loop) -> tuple[str, str]:
    """What `guarded` and `queued` are called on that loop."""
    queue = "trio memory channel" if loop is Loop.TRIO else "asyncio.Queue"
    return f"{family(loop)}.Semaphore and a list", queue
