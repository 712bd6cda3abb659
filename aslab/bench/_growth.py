"""From an empty cache to so many bytes held, compared with one thread that only maps and faults in memory.

The thread asks for whole slabs, as aslab does, and for single objects, each by one system call (MAP_POPULATE).
aslab does as much in its worker, and hands the objects to callers, while the event loop stays free: a task that
sleeps 1 ms looks for gaps.
"""

from __future__ import annotations

import gc
import mmap
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import anyio
import anyio.to_thread
import typer

import aslab
from aslab.backends import Mmap

from ..cli._loops import Loop, run_on
from ._app import app, show
from ._stall import longest_gap

T = TypeVar("T")

KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB)
POPULATE = getattr(mmap, "MAP_POPULATE", 0x8000)
GAPS = 3
THREAD = "a thread, by slab"
NOTE = (
    "GiB/s until all bytes are held, the best round. ratio: to a thread that maps and faults in pieces of one "
    "slab, best to best, then the least, median and most of the rounds; CPU: the same by processor time of all "
    "threads, which a busy machine changes less. gap: the longest that a task which sleeps 1 ms was late."
)


class Took(NamedTuple):
    """What something took, in seconds."""

    seconds: float
    cpu: float
    """Processor time of all threads."""

    @staticmethod
    def now() -> Took:
        """What it is at present."""
        return Took(time.perf_counter(), time.process_time())

    def since(self, begin: Took) -> Took:
        """The difference."""
        return Took(self.seconds - begin.seconds, self.cpu - begin.cpu)


Measured = Callable[[Callable[[], Awaitable[object]]], Awaitable[T]]
"""Makes a call, and returns what was measured."""


class Contender(Protocol):
    """Grows to so many bytes, in pieces or objects of so many, and has that measured."""

    async def __call__(self, nbytes: int, size: int, measured: Measured[T], /) -> T:
        """Return what was measured."""
        ...


@app.command()
def growth(
    mib: Annotated[int, typer.Option(help="MiB to grow to, at least two slabs.", min=1)] = 256,
    largest: Annotated[int, typer.Option(help="KiB of the largest objects.", min=4)] = SIZES[-1] // KIB,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=1)] = 7,
    loop: Annotated[Loop, typer.Option(help="Event loop.")] = Loop.ASYNCIO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Growth from an empty cache, compared with one thread that maps and faults in memory."""
    sizes = [size for size in SIZES if size <= largest * KIB]
    rows = [row for size in sizes for row in run_on(loop, measure, size, mib * MIB, rounds)]
    show(f"growth to {mib} MiB, on {loop.value}", rows, NOTE, as_json=as_json)


async def measure(size: int, nbytes: int, rounds: int) -> list[dict[str, Any]]:
    """The rows for one size of objects."""
    async with aslab.open_allocator() as kmem:
        slab = kmem.create_cache("c", size).stats().slab_size
    nbytes = max(2, nbytes // slab) * slab
    slabs = Mmap()  # one for all rounds, as in a service: it learns whether huge pages come quickly
    contenders: dict[str, tuple[Contender, int]] = {
        THREAD: (_thread, slab),
        "a thread, by object": (_thread, size),
        "aslab, prefill": (partial(_prefill, slabs), size),
        "aslab, await alloc": (partial(_alloc, slabs), size),
    }
    costs: dict[str, list[Took]] = {name: [] for name in contenders}
    gaps: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in _turned(list(contenders), number):
            grow, piece = contenders[name]
            gc.collect()
            await _thread(nbytes, slab, took)  # memory that a hypervisor has to find first says nothing of either
            costs[name].append(await grow(nbytes, piece, took))
            if number < GAPS:  # apart, as looking for gaps takes time itself
                gaps[name].append(await grow(nbytes, piece, longest_gap))
    label = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
    return [
        {
            "object": label,
            "grown by": name,
            **_compared(nbytes, costs[name], costs[THREAD]),
            "gap ms": statistics.median(gaps[name]),
        }
        for name in contenders
    ]


def _compared(nbytes: int, ours: list[Took], thread: list[Took]) -> dict[str, float]:
    ratios = [theirs.seconds / took.seconds for theirs, took in zip(thread, ours, strict=True)]
    fastest = min(took.seconds for took in ours)
    return {
        "GiB/s": nbytes / fastest / GIB,
        "ratio": min(took.seconds for took in thread) / fastest,
        "least": min(ratios),
        "median": statistics.median(ratios),
        "most": max(ratios),
        "CPU": statistics.median(t.cpu for t in thread) / statistics.median(t.cpu for t in ours),
    }


def _turned(names: list[str], by: int) -> list[str]:
    """Each comes first in its turn, as memory is quicker to have soon after somebody gave it back."""
    by %= len(names)
    return names[by:] + names[:by]


async def took(call: Callable[[], Awaitable[object]]) -> Took:
    """What a call takes."""
    begin = Took.now()
    await call()
    return Took.now().since(begin)


async def _thread(nbytes: int, piece: int, measured: Measured[T]) -> T:
    held: list[mmap.mmap] = []
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | POPULATE

    def map_and_fault_in() -> None:
        held.extend(mmap.mmap(-1, piece, flags=flags) for _ in range(nbytes // piece))

    found = await measured(partial(anyio.to_thread.run_sync, map_and_fault_in))
    await anyio.to_thread.run_sync(held.clear)
    return found


async def _prefill(slabs: Mmap, nbytes: int, size: int, measured: Measured[T]) -> T:
    async with aslab.open_allocator(slabs=slabs) as kmem:
        return await measured(partial(kmem.create_cache("c", size).prefill, nbytes // size))


async def _alloc(slabs: Mmap, nbytes: int, size: int, measured: Measured[T]) -> T:
    async with aslab.open_allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", size)
        held: list[aslab.Buffer[memoryview]] = []

        async def alloc() -> None:
            for _ in range(nbytes // size):
                held.append(await cache.alloc())  # noqa: PERF401  (as long as the list, all are held)

        found = await measured(alloc)
        for buf in held:
            buf.free()
        return found
