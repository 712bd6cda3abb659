"""From an empty cache to so many bytes held, compared with one thread that only maps and faults in memory.

The thread asks for whole slabs, as aslab does, and for single objects, each by one system call (MAP_POPULATE).
aslab does as much in its worker, and hands the objects to callers, while the event loop stays free: a task that
sleeps 1 ms looks for gaps.
"""

from __future__ import annotations

import gc
import mmap
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, NamedTuple, Protocol, TypeVar

import anyio
import anyio.to_thread
import typer

import aslab
from aslab.backends import Mmap

from .._checks import format_size
from ..cli._loops import Loop, check_installed, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values
from ._stall import longest_gap

T = TypeVar("T")

KIB, MIB, GIB = 2**10, 2**20, 2**30
SIZES = (4 * KIB, 64 * KIB, MIB, 16 * MIB)
POPULATE = getattr(mmap, "MAP_POPULATE", 0x8000)
THREAD = "a thread, by slab"
SPEED = Quantity("speed", "GiB/s", more_is_better=True)
BY_CPU = Quantity("speed by processor time", "GiB/s", more_is_better=True)
GAP = Quantity("longest gap of the loop", "ms")
NOTE = (
    "Until all bytes are held. Processor time is that of all threads, which a busy machine changes less. "
    "Gap: of a task that sleeps 1 ms, measured apart."
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


@command("growth", rounds=7, quick={"rounds": 2, "mib": 64})
def growth(
    mib: Annotated[int, typer.Option(help="MiB to grow to, at least two slabs.", min=1)] = 256,
    largest: Annotated[int, typer.Option(help="KiB of the largest objects.", min=4)] = SIZES[-1] // KIB,
    loop: Annotated[Loop, typer.Option(help="Event loop to run on.")] = Loop.ASYNCIO,
) -> Bench:
    """Growth from an empty cache, compared with one thread that maps and faults in memory."""
    check_installed(loop)
    turns = []
    for size in (size for size in SIZES if size <= largest * KIB):
        slab = run_on(loop, _slab_size, size)
        nbytes = max(2, mib * MIB // slab) * slab
        slabs = Mmap()  # one for all rounds, as in a service: it learns whether huge pages come quickly
        contenders: dict[str, tuple[Contender, int]] = {
            THREAD: (_thread, slab),
            "a thread, by object": (_thread, size),
            "aslab: prefill": (partial(_prefill, slabs), size),
            "aslab: await alloc": (partial(_alloc, slabs), size),
        }
        turns += [
            Turn(
                f"objects of {format_size(size)}",
                name,
                partial(run_on, loop, _measure, contender, piece, nbytes, slab),
                loop.value,
                THREAD,
            )
            for name, (contender, piece) in contenders.items()
        ]
    return Bench(f"growth to {mib} MiB", turns, NOTE)


async def _slab_size(size: int) -> int:
    async with aslab.open_allocator() as kmem:
        return kmem.create_cache("c", size).stats().slab_size


async def _measure(contender: Contender, piece: int, nbytes: int, slab: int) -> Values:
    gc.collect()
    await _thread(nbytes, slab, took)  # memory that a hypervisor has to find first says nothing of either
    cost = await contender(nbytes, piece, took)
    gap = await contender(nbytes, piece, longest_gap)  # apart, as looking for gaps takes time itself
    return {SPEED: nbytes / cost.seconds / GIB, BY_CPU: nbytes / cost.cpu / GIB, GAP: gap}


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
