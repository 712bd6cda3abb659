"""Real memory for emulated pages: mapped at once and lazily, so that no thread has to be waited for.

A thread's end is an event that simulated time knows nothing of. A mapping nobody has touched costs
next to nothing, so it can be made on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anyio

from .._flags import GFP
from ..backends import Mmap, Region
from ..backends._libc import PAGE_SIZE
from ..backends._mmap import _unmap
from ._memory import Block, PhysicalMemory

BATCH = 64  # pages between two suspensions: concurrent calls get their turns

_mmap = Mmap()


@dataclass(slots=True, eq=False)
class _Backing:
    mapping: object
    blocks: list[Block]


def pages_for(nbytes: int) -> int:
    """How many pages so many bytes take."""
    return -(-nbytes // PAGE_SIZE)


def region_on(blocks: list[Block], nbytes: int, align: int) -> Region:
    """A region that owns these blocks.

    :raises MemoryError: if the real kernel has no address space; the blocks are then still the caller's
    """
    region = _mmap.acquire_nowait(nbytes, align, GFP.NOWAIT)
    region.token = _Backing(region.token, blocks)
    return region


def region_at_once(memory: PhysicalMemory, count: int, order: int, gfp: GFP, nbytes: int, align: int) -> Region:
    """A region on so many blocks, got without waiting; none is kept where one of them fails. From any thread.

    :raises PageAllocationFailure: if there are too few
    """
    blocks: list[Block] = []
    try:
        for _ in range(count):
            blocks.append(memory.allocate(order, gfp))  # noqa: PERF401 - on failure, some are there
        return region_on(blocks, nbytes, align)
    except BaseException:
        free_all(memory, blocks)
        raise


def give_back(memory: PhysicalMemory, region: Region) -> None:
    """Release a region, and its blocks to the memory they are from. From any thread.

    :raises ValueError: if it is not one of `region_on`, or was given back before
    """
    backing = region.token
    if not isinstance(backing, _Backing):
        raise ValueError("a region that is not on loan from here")
    region.token = backing.mapping
    _unmap(region)
    free_all(memory, backing.blocks)


def free_all(memory: PhysicalMemory, blocks: list[Block]) -> None:
    """Free every block."""
    for block in blocks:
        memory.free(block)


async def collect(
    memory: PhysicalMemory, blocks: list[Block], count: int, gfp: GFP, delay: Callable[[], float]
) -> None:
    """Append so many single pages, a batch at a time, after sleeping a delay for each page of it.

    What was got is in ``blocks`` also if this fails or is cancelled.
    """
    for start in range(0, count, BATCH):
        batch = min(BATCH, count - start)
        await anyio.sleep(sum(delay() for _ in range(batch)))
        for _ in range(batch):
            blocks.append(await memory.get(0, gfp))  # noqa: PERF401 - on failure, some are there
