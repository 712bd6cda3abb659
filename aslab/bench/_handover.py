"""What does it cost when tasks wait for each other's buffers? Compared with pools that people build themselves.

There are more tasks than buffers, so nearly every buffer passes from one task to another. It runs in real time, on
the loop's own primitives. The speed depends on who gets a freed buffer: a pool that hands it over makes the event
loop switch tasks each time; one that leaves it to whichever task runs avoids that, and makes some wait longer.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import anyio
import typer

import aslab
from aslab._cache import pool_of

from ..cli._loops import Loop, check_installed, run_on
from ..cli._progress import bar
from ._app import app, show

SIZE = 4096
OURS = ("aslab", "aslab, hands over at once")
Turn = Callable[[], Awaitable[object]]


class Pattern(NamedTuple):
    """Turns of the event loop that a task holds a buffer, and then rests before the next one."""

    holds: int
    rests: int


PATTERNS = {"comes again": Pattern(1, 0), "rests": Pattern(1, 1), "works": Pattern(5, 0)}


class Pool(NamedTuple):
    """How to take a buffer, and how to return it."""

    take: Callable[[], Awaitable[Any]]
    give: Callable[[Any], object]


@dataclass
class Best:
    """The best of several rounds."""

    per_second: float = 0.0
    longest: float = math.inf
    """The longest wait in seconds, in the round where it was shortest."""


class Guarded:
    """A list of buffers, counted by the loop's own semaphore."""

    def __init__(self, semaphore: Any, buffers: int) -> None:
        self._semaphore = semaphore
        self._free = [bytearray(SIZE) for _ in range(buffers)]

    async def take(self) -> bytearray:
        """Wait for a buffer."""
        await self._semaphore.acquire()
        return self._free.pop()

    def give(self, buf: bytearray) -> None:
        """Return a buffer."""
        self._free.append(buf)
        self._semaphore.release()


@app.command()
def handover(
    loop: Annotated[list[Loop] | None, typer.Option(help="Loop to run on; default: asyncio and trio.")] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the best counts.", min=1)] = 5,
    operations: Annotated[int, typer.Option(help="Allocations per round.", min=1)] = 20_000,
    tasks: Annotated[int, typer.Option(help="Tasks that share the buffers.", min=2)] = 64,
    buffers: Annotated[int, typer.Option(help="Number of buffers.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Buffers per second when tasks wait for them, compared with other pools. Takes a minute."""
    loops = loop or [Loop.ASYNCIO, Loop.TRIO]
    for each in loops:
        check_installed(each)
    rows: list[dict[str, Any]] = []
    with bar() as shown:
        task = shown.add_task("aslab bench handover", total=len(loops) * len(PATTERNS) * rounds)
        for each in loops:
            tell = partial(shown.update, task, description=each.value, advance=1)
            best = run_on(each, partial(measure, each, rounds, operations, tasks, buffers, tell))
            rows += _rows(each, best)
    note = (
        f"{tasks} tasks share {buffers} buffers. Tasks come back at once, or rest for a turn of the "
        f"loop; those that work hold a buffer for {PATTERNS['works'].holds} turns, the others for one."
    )
    show("buffers that tasks wait for", rows, note, as_json=as_json)


def _rows(loop: Loop, best: dict[tuple[str, str], Best]) -> list[dict[str, Any]]:
    rows = []
    for (pattern, pool), found in best.items():
        rivals = [other.per_second for (at, name), other in best.items() if at == pattern and name not in OURS]
        row: dict[str, Any] = {"loop": loop.value, "pattern": pattern, "pool": pool}
        row |= {"per s": found.per_second, "best rival": found.per_second / max(rivals)}
        rows.append(row | {"longest ms": found.longest * 1e3})
    return rows


async def measure(
    loop: Loop, rounds: int, operations: int, tasks: int, buffers: int, tell: Callable[[], object]
) -> dict[tuple[str, str], Best]:
    """The best of all rounds, by pattern and pool."""
    best: dict[tuple[str, str], Best] = defaultdict(Best)
    turn, rivals = _rivals(loop, buffers)
    async with aslab.open_allocator(expire=None) as kmem:
        ours = {name: await _aslab(kmem, name, buffers) for name in OURS}
        for pattern, turns in PATTERNS.items():
            for _ in range(rounds):
                for name, pool in (ours | rivals).items():
                    per_second, longest = await _round(pool, turns, turn, tasks, -(-operations // tasks))
                    found = best[pattern, name]
                    found.per_second = max(found.per_second, per_second)
                    found.longest = min(found.longest, longest)
                tell()
    return best


async def _aslab(kmem: aslab.Allocator, name: str, buffers: int) -> Pool:
    cache = kmem.create_cache(name, SIZE, objects_per_slab=buffers, max_objects=buffers)
    await cache.prefill(buffers)
    if name != OURS[0]:
        pool_of(cache).handover.beside = 0.0  # only for this experiment
    return Pool(cache.alloc, aslab.Buffer.free)


def _rivals(loop: Loop, buffers: int) -> tuple[Turn, dict[str, Pool]]:
    """A turn of that loop, and the pools that people build on it."""
    if loop is Loop.TRIO:
        trio = importlib.import_module("trio")
        sender, receiver = trio.open_memory_channel(buffers)
        guarded, channel = Guarded(trio.Semaphore(buffers), buffers), Pool(receiver.receive, sender.send_nowait)
        pools = {"trio.Semaphore and a list": Pool(guarded.take, guarded.give), "trio channel": channel}
        turn: Turn = trio.lowlevel.checkpoint
    else:
        queue: asyncio.Queue[bytearray] = asyncio.Queue()
        guarded, channel = Guarded(asyncio.Semaphore(buffers), buffers), Pool(queue.get, queue.put_nowait)
        pools = {"asyncio.Semaphore and a list": Pool(guarded.take, guarded.give), "asyncio.Queue": channel}
        turn = partial(asyncio.sleep, 0)
    for _ in range(buffers):
        channel.give(bytearray(SIZE))
    return turn, pools


async def _round(pool: Pool, pattern: Pattern, turn: Turn, tasks: int, times: int) -> tuple[float, float]:
    """Buffers per second, and the longest wait in seconds."""
    take, give = pool
    longest = 0.0

    async def work() -> None:
        nonlocal longest
        for _ in range(times):
            begin = time.perf_counter()
            buf = await take()
            longest = max(longest, time.perf_counter() - begin)
            for _ in range(pattern.holds):
                await turn()
            give(buf)
            for _ in range(pattern.rests):
                await turn()

    begin = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(work)
    return tasks * times / (time.perf_counter() - begin), longest
