"""What a hit and its free cost, as multiples of `list.pop` and `append`; and what 100,000 held objects cost.

    python scripts/pair.py [asyncio | uvloop | trio ...]        ASLAB_PURE=1 measures the fast path in Python

Short rounds of all contenders take turns, and the best of each counts, in seconds of this thread: so other work on
the machine changes little.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import aslab
from aslab import _fastpath

PAIRS, ROUNDS, HELD = 2_000, 150, 100_000


def _list_pair(items: list[object]) -> None:
    for _ in range(PAIRS):
        item = items.pop()
        items.append(item)


def _nowait(cache: aslab.Cache[Any]) -> None:
    for _ in range(PAIRS):
        buf = cache.alloc_nowait()
        buf.free()


async def _awaited(cache: aslab.Cache[Any]) -> None:
    for _ in range(PAIRS):
        buf = await cache.alloc()
        buf.free()


def _viewed(cache: aslab.Cache[Any]) -> None:
    for _ in range(PAIRS):
        buf = cache.alloc_nowait()
        buf.view  # noqa: B018  (kept in a variable it would make the slot linger)
        buf.free()


async def _leased(cache: aslab.Cache[Any]) -> None:
    for _ in range(PAIRS):
        async with cache.lease():
            pass


def _pinned(cache: aslab.Cache[Any]) -> None:
    for _ in range(PAIRS):
        buf = cache.alloc_nowait()
        with buf.pin():
            pass
        buf.free()


async def _queued(queue: asyncio.Queue[object]) -> None:
    for _ in range(PAIRS):
        queue.put_nowait(await queue.get())


async def _pairs(loop: str) -> None:
    async with aslab.open_allocator() as kmem:
        cache, movable = kmem.create_cache("plain", 4096), kmem.create_cache("movable", 4096, movable=True)
        await cache.prefill(8)
        await movable.prefill(8)
        contenders: dict[str, tuple[Callable[[Any], Awaitable[None] | None], Any]] = {
            "list": (_list_pair, [object()]),
            "nowait": (_nowait, cache),
            "await": (_awaited, cache),
            "view": (_viewed, cache),
            "lease": (_leased, cache),
            "pin": (_pinned, cache),
            "movable": (_nowait, movable),
        }
        if loop != "trio":
            queue: asyncio.Queue[object] = asyncio.Queue()
            queue.put_nowait(None)
            contenders["queue"] = _queued, queue
        best: dict[str, float] = {}
        for _ in range(ROUNDS):
            for name, (call, given) in contenders.items():
                began = time.thread_time()
                if (running := call(given)) is not None:
                    await running
                best[name] = min(best.get(name, 1.0), time.thread_time() - began)
        nanoseconds = best["list"] / PAIRS * 1e9
        ratios = "  ".join(f"{name} {took / best['list']:.2f}" for name, took in best.items() if name != "list")
        print(f"{loop:8} list {nanoseconds:.1f} ns;  times list:  {ratios}", flush=True)


async def _held() -> None:
    async with aslab.open_allocator() as kmem:
        cache = kmem.create_cache("many", 64, objects_per_slab=1000)
        await cache.prefill(HELD)
        gc.collect()
        gc.freeze()  # everything else is left out of it
        tracemalloc.start()
        bufs = [cache.alloc_nowait() for _ in range(HELD)]
        nbytes = tracemalloc.get_traced_memory()[0] / HELD
        tracemalloc.stop()
        took = []
        for _ in range(20):
            began = time.thread_time()
            gc.collect()
            took.append(time.thread_time() - began)
        print(f"held     {nbytes:.0f} bytes an object; gc.collect() with {HELD:,} {min(took) * 1e3:.2f} ms")
        for buf in bufs:
            buf.free()


def main() -> None:
    """Measure on the loops that are named, or on all."""
    print(sys.version.split()[0], "in C" if _fastpath.COMPILED else "in Python")
    for loop in sys.argv[1:] or ["asyncio", "uvloop", "trio"]:
        options = {"use_uvloop": True} if loop == "uvloop" else {}
        anyio.run(_pairs, loop, backend=loop.replace("uvloop", "asyncio"), backend_options=options)
    anyio.run(_held)


if __name__ == "__main__":
    main()
