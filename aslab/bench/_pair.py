"""The cost of alloc and free on a hit, compared with pools that people build from a queue."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
import typer

import aslab
from aslab.backends import Heap

from ._app import app, show

Measurement = Callable[[int], Awaitable[float]]


@app.command()
def pair(
    rounds: Annotated[
        int, typer.Option(help="Interleaved rounds; the best and the median are shown.", min=1)
    ] = 15,
    pairs: Annotated[int, typer.Option(help="Pairs in each round.", min=1)] = 20_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Nanoseconds for one alloc and free that hit, compared with other pools."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for loop, options in _loops().items():
            for name, ns in anyio.run(measure, loop, pairs, **options).items():
                times.setdefault(name, []).append(ns)
    queue = times["asyncio.Queue: await get, put_nowait"]
    rows = [
        {
            "pool": name,
            "best ns": min(each),
            "median ns": statistics.median(each),
            "best/queue": min(each) / min(queue),
            "median ratio": statistics.median(a / b for a, b in zip(each, queue, strict=True)),
        }
        for name, each in sorted(times.items(), key=lambda item: min(item[1]))
    ]
    note = "aslab's figures include a fresh handle per allocation and all safety checks; the others have none."
    show("one object allocated and freed", rows, note, as_json=as_json)


def _loops() -> dict[str, dict[str, Any]]:
    loops: dict[str, dict[str, Any]] = {"asyncio": {"backend": "asyncio"}}
    if importlib.util.find_spec("uvloop"):
        import uvloop

        options = {"loop_factory": uvloop.new_event_loop}
        loops["uvloop"] = {"backend": "asyncio", "backend_options": options}
    loops["trio"] = {"backend": "trio"}
    return loops


async def measure(loop: str, pairs: int) -> dict[str, float]:
    """Nanoseconds per pair for each pool, on the running loop."""
    async with aslab.open_allocator(slabs=Heap(), expire=None) as kmem:
        cache = kmem.create_cache("c", 4096)
        await cache.prefill(8)
        (await cache.alloc()).free()
        found = {f"aslab: await alloc, free ({loop})": await _alloc(cache, pairs)}
        if loop == "asyncio":
            found["aslab: alloc_nowait, free"] = _alloc_nowait(cache, pairs)
            found["aslab: await alloc, view, free (asyncio)"] = await _alloc_and_view(cache, pairs)
            found["asyncio.Queue: await get, put_nowait"] = await _queue(pairs)
            found["anyio stream: await receive, send_nowait"] = await _stream(pairs)
            found["a bare list: pop, append"] = _bare_list(pairs)
    return found


async def _alloc(cache: aslab.Cache[memoryview], pairs: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(pairs):
        buf = await cache.alloc()
        buf.free()
    return (time.perf_counter_ns() - begin) / pairs


def _alloc_nowait(cache: aslab.Cache[memoryview], pairs: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(pairs):
        buf = cache.alloc_nowait()
        buf.free()
    return (time.perf_counter_ns() - begin) / pairs


async def _alloc_and_view(cache: aslab.Cache[memoryview], pairs: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(pairs):
        buf = await cache.alloc()
        buf.view  # noqa: B018  (made on first use, and checked by free)
        buf.free()
    return (time.perf_counter_ns() - begin) / pairs


async def _queue(pairs: int) -> float:
    queue: asyncio.Queue[bytearray] = asyncio.Queue()
    queue.put_nowait(bytearray(4096))
    begin = time.perf_counter_ns()
    for _ in range(pairs):
        item = await queue.get()
        queue.put_nowait(item)
    return (time.perf_counter_ns() - begin) / pairs


async def _stream(pairs: int) -> float:
    sender, receiver = anyio.create_memory_object_stream[bytearray](8)
    with sender, receiver:
        sender.send_nowait(bytearray(4096))
        pairs = max(1, pairs // 20)  # a full checkpoint each time, so fewer are enough
        begin = time.perf_counter_ns()
        for _ in range(pairs):
            item = await receiver.receive()
            sender.send_nowait(item)
        return (time.perf_counter_ns() - begin) / pairs


def _bare_list(pairs: int) -> float:
    free = [bytearray(4096)]
    begin = time.perf_counter_ns()
    for _ in range(pairs):
        item = free.pop()
        free.append(item)
    return (time.perf_counter_ns() - begin) / pairs
