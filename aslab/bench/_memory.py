"""What large buffers cost, allocated, filled and dropped: fresh from each allocator, and from a cache.

glibc keeps a freed block of up to 32 MiB for the next request, so a single buffer in flight may be as warm as a
pooled one. With several in flight, or larger ones, every fresh buffer is page faults.
"""

from __future__ import annotations

import importlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import typer

import aslab
from aslab.backends import Backend, Mmap

from .._checks import format_size, parse_size
from ..cli._progress import bar
from ._app import app, show
from ._stall import longest_gap

SIZES = (64 * 2**10, 2**20, 25_000_000, 64 * 2**20)
IN_FLIGHT = (1, 8)
OURS, OURS_HUGE, OURS_SHARED = "aslab on Mmap", "aslab, huge pages", "aslab, SharedMemory"
SHARED = "SharedMemory"
MARGIN = 1.1
"""Up to here a ratio is a draw."""
MOST = 2**40
ROOM = 0.8
"""Part of the memory that is free now which a first touch may take."""
NOTE = (
    "A buffer is allocated, filled by a copy, and dropped when the next one comes. ratio: its time to that of "
    "aslab on Mmap; of SharedMemory, to that of aslab on shared memory if there is one. Growing the cache is not "
    "counted: see --touch."
)
Row = dict[str, Any]


class Maker(NamedTuple):
    """How buffers of one kind and size are made, written to, and dropped."""

    make: Callable[[], Any]
    view: Callable[[Any], memoryview] = memoryview
    drop: Callable[[Any], object] = id
    """By default nothing: the last reference is dropped."""


@app.command()
def memory(
    seconds: Annotated[float, typer.Option(help="Seconds for each figure and round.", min=0.001)] = 0.2,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the best counts.", min=1)] = 3,
    most: Annotated[str, typer.Option(help="The largest buffer, up to 64MiB.")] = "64MiB",
    touch: Annotated[str, typer.Option(help="Measure the first touch of so much memory instead: 2GiB.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Large buffers, fresh from several allocators and from a cache. Takes a minute."""
    if touch:
        nbytes = _size("--touch", touch, int(ROOM * _available()))
        note = "worst: after another kind of pages. best: again, at once. gap: of a task that sleeps 1 ms, in all."
        show(f"first touch of one slab of {format_size(nbytes)}", _touches(nbytes, rounds), note, as_json=as_json)
        return
    largest = _size("--most", most, MOST)
    sizes = [size for size in SIZES if size <= largest] or [largest]
    show("allocate, fill, drop", _compare(sizes, seconds, rounds), NOTE, as_json=as_json)


def _size(option: str, text: str, most: int) -> int:
    try:
        return parse_size(option, text, most)
    except aslab.ConfigError as exc:
        raise typer.BadParameter(str(exc)) from None


def _available() -> int:
    """Bytes of memory that can be had without swapping, or no bound where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return MOST


def _compare(sizes: list[int], seconds: float, rounds: int) -> list[Row]:
    names = _names()
    rows = []
    with bar() as shown:
        task = shown.add_task("aslab bench memory", total=len(sizes) * len(IN_FLIGHT) * rounds * len(names))
        for size in sizes:
            payload = bytes(size)
            for flight in IN_FLIGHT:
                best = dict.fromkeys(names, float("inf"))
                for _ in range(rounds):
                    for name in names:
                        shown.update(task, description=f"{format_size(size)}, {flight} in flight", advance=1)
                        took = anyio.run(_turn, name, payload, flight, seconds)
                        best[name] = min(best[name], took)
                rows += [_row(size, flight, name, best) for name in names]
    return rows


def _names() -> list[str]:
    """Those that are installed."""
    names = [name for name in ("numpy", "pyarrow") if _imported(name) is not None]
    shared = [OURS_SHARED] if hasattr(aslab.backends, "SharedMemory") else []
    return ["bytearray", *names, SHARED, OURS, OURS_HUGE, *shared]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _row(size: int, flight: int, name: str, best: dict[str, float]) -> Row:
    ours = best.get(OURS_SHARED, best[OURS]) if name == SHARED else best[OURS]
    ratio = best[name] / ours
    if name.startswith("aslab"):
        verdict = ""
    elif ratio > MARGIN:
        verdict = "faster"
    else:
        verdict = "NOT faster: the same" if ratio > 1 / MARGIN else "SLOWER"
    return {
        "size": "25 MB" if size == SIZES[2] else format_size(size),
        "in flight": flight,
        "buffer": name,
        "us": best[name] * 1e6,
        "ratio": ratio,
        "aslab is": verdict,
    }


async def _turn(name: str, payload: bytes, flight: int, seconds: float) -> float:
    """Seconds for each buffer."""
    async with _maker(name, len(payload), flight) as maker:
        return _loop(maker, payload, flight, seconds)


@asynccontextmanager
async def _maker(name: str, size: int, flight: int) -> AsyncIterator[Maker]:
    if name.startswith("aslab"):
        backend: Backend = Mmap(huge_pages=name == OURS_HUGE)
        if name == OURS_SHARED:
            backend = aslab.backends.SharedMemory()  # type: ignore[attr-defined,unused-ignore]
        async with aslab.open_allocator(slabs=backend) as kmem:
            cache = kmem.create_cache("c", size, objects_per_slab=1, max_slab_size=2 * SIZES[-1])
            await cache.prefill(flight + 1)
            yield Maker(cache.alloc_nowait, lambda buf: buf.view, lambda buf: buf.free())
    elif name == SHARED:
        yield Maker(partial(SharedMemory, create=True, size=size), lambda segment: segment.buf[:size], _unlink)
    elif name == "bytearray":
        yield Maker(partial(bytearray, size))
    elif name == "numpy":
        yield Maker(partial(_imported("numpy").empty, size, "u1"))
    else:
        yield Maker(partial(_imported("pyarrow").allocate_buffer, size), lambda buf: memoryview(buf).cast("B"))


def _unlink(segment: SharedMemory) -> None:
    segment.close()
    segment.unlink()


def _loop(maker: Maker, payload: bytes, flight: int, seconds: float) -> float:
    """The loop itself is synchronous: a hit needs no event loop."""
    make, view, drop = maker
    held: deque[Any] = deque()
    for _ in range(flight):
        held.append(make())
        view(held[-1])[:] = payload
    count = 0
    begin = now = time.perf_counter()
    while now - begin < seconds:
        drop(held.popleft())
        held.append(make())
        view(held[-1])[:] = payload
        count += 1
        now = time.perf_counter()
    while held:
        drop(held.popleft())
    return (now - begin) / count


def _touches(nbytes: int, rounds: int) -> list[Row]:
    """One slab, faulted in by one thread and by two, on ordinary pages and on huge ones.

    Each is touched twice in a row. The first time depends on what was there before: a hypervisor that was given
    free memory back must find it again, and the kernel must make huge pages of small ones.
    """
    kinds = {
        (pages, threads): Mmap(populate_threads=threads, huge_pages=huge)
        for pages, huge in (("4 KiB", False), ("2 MiB", True))
        for threads in (1, 2)
    }
    cold = dict.fromkeys(kinds, 0.0)
    warm = dict.fromkeys(kinds, float("inf"))
    gaps = dict.fromkeys(kinds, 0.0)
    with bar() as shown:
        task = shown.add_task("first touch", total=rounds * len(kinds))
        for _ in range(rounds):
            for kind, backend in kinds.items():
                first, first_gap = anyio.run(_touch, backend, nbytes)
                again, again_gap = anyio.run(_touch, backend, nbytes)
                cold[kind] = max(cold[kind], first)
                warm[kind] = min(warm[kind], again)
                gaps[kind] = max(gaps[kind], first_gap, again_gap)
                shown.update(task, advance=1)
    return [
        {
            "pages": pages,
            "threads": threads,
            "worst s": cold[pages, threads],
            "best s": warm[pages, threads],
            "best GiB/s": nbytes / 2**30 / warm[pages, threads],
            "to 1 thread": warm[pages, 1] / warm[pages, threads],
            "gap ms": gaps[pages, threads],
        }
        for pages, threads in kinds
    ]


async def _touch(backend: Mmap, nbytes: int) -> tuple[float, float]:
    """Seconds until the slab is there, and the longest gap of the loop meanwhile in milliseconds."""
    async with aslab.open_allocator(slabs=backend, kick_after=None) as kmem:
        cache = kmem.create_cache("big", nbytes, objects_per_slab=1, max_slab_size=nbytes)
        begin = time.perf_counter()
        took = 0.0

        async def grow() -> None:
            nonlocal took
            await cache.prefill(1)
            took = time.perf_counter() - begin

        gap = await longest_gap(grow)
    return took, gap
