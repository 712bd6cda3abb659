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
from ._app import command
from ._measured import Bench, Quantity, Turn, Values
from ._stall import longest_gap

SIZES = (64 * 2**10, 2**20, 25_000_000, 64 * 2**20)
IN_FLIGHT = (1, 8)
OURS, OURS_HUGE, OURS_SHARED = "aslab on Mmap", "aslab, huge pages", "aslab, SharedMemory"
SHARED = "SharedMemory"
BUFFER = Quantity("a buffer", "us")
ONE = "1 thread"
FIRST, AGAIN = Quantity("after other pages", "s"), Quantity("again, at once", "s")
SPEED = Quantity("again, at once", "GiB/s", more_is_better=True)
GAP = Quantity("longest gap of the loop", "ms")
MOST = 2**40
ROOM = 0.8
"""Part of the memory that is free now which a first touch may take."""
NOTE = (
    "A buffer is allocated, filled by a copy, and dropped when the next one comes. Growing the cache is not "
    "counted: see --touch."
)
TOUCHED = "The gap is that of a task that sleeps 1 ms, in both."


class Maker(NamedTuple):
    """How buffers of one kind and size are made, written to, and dropped."""

    make: Callable[[], Any]
    view: Callable[[Any], memoryview] = memoryview
    drop: Callable[[Any], object] = id
    """By default nothing: the last reference is dropped."""


@command("memory", rounds=3, quick={"rounds": 2, "seconds": 0.05})
def memory(
    seconds: Annotated[float, typer.Option(help="Seconds for each figure and round.", min=0.001)] = 0.2,
    most: Annotated[str, typer.Option(help="The largest buffer, up to 64MiB.")] = "64MiB",
    touch: Annotated[str, typer.Option(help="Measure the first touch of so much memory instead: 2GiB.")] = "",
) -> Bench:
    """Large buffers, fresh from several allocators and from a cache. Takes a minute."""
    if touch:
        nbytes = _size("--touch", touch, int(ROOM * _available()))
        return Bench(f"first touch of one slab of {format_size(nbytes)}", _touches(nbytes), TOUCHED, "touch")
    largest = _size("--most", most, MOST)
    sizes = [size for size in SIZES if size <= largest] or [largest]
    turns = [
        Turn(
            f"{_text(size)}, {flight} in flight",
            name,
            partial(_measure, name, size, flight, seconds),
            against=OURS_SHARED if name == SHARED else OURS,
        )
        for size in sizes
        for flight in IN_FLIGHT
        for name in _names()
    ]
    return Bench("allocate, fill, drop", turns, NOTE)


def _text(size: int) -> str:
    return "25 MB" if size == SIZES[2] else format_size(size)


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


def _names() -> list[str]:
    """Those that are installed."""
    names = [name for name in ("numpy", "pyarrow") if _imported(name) is not None]
    return ["bytearray", *names, SHARED, OURS, OURS_HUGE, OURS_SHARED]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _measure(name: str, size: int, flight: int, seconds: float) -> Values:
    return {BUFFER: anyio.run(_turn, name, bytes(size), flight, seconds) * 1e6}


async def _turn(name: str, payload: bytes, flight: int, seconds: float) -> float:
    """Seconds for each buffer."""
    async with _maker(name, len(payload), flight) as maker:
        return _loop(maker, payload, flight, seconds)


@asynccontextmanager
async def _maker(name: str, size: int, flight: int) -> AsyncIterator[Maker]:
    if name.startswith("aslab"):
        backend: Backend = Mmap(huge_pages=name == OURS_HUGE)
        if name == OURS_SHARED:
            backend = aslab.backends.SharedMemory()
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


def _touches(nbytes: int) -> list[Turn]:
    """One slab, faulted in by one thread and by two, on ordinary pages and on huge ones."""
    return [
        Turn(
            "",
            f"{pages} pages, {threads}",
            partial(_touch_twice, backend, nbytes),
            against=f"{pages} pages, {ONE}",
        )
        for pages, huge in (("4 KiB", False), ("2 MiB", True))
        for threads, backend in (
            (ONE, Mmap(populate_threads=1, huge_pages=huge)),
            ("2 threads", Mmap(populate_threads=2, huge_pages=huge)),
        )
    ]


def _touch_twice(backend: Mmap, nbytes: int) -> Values:
    """The same twice in a row.

    The first time depends on what was there before: a hypervisor that was given free memory back must find it
    again, and the kernel must make huge pages of small ones.
    """
    first, first_gap = anyio.run(_touch, backend, nbytes)
    again, again_gap = anyio.run(_touch, backend, nbytes)
    return {FIRST: first, AGAIN: again, SPEED: nbytes / 2**30 / again, GAP: max(first_gap, again_gap)}


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
