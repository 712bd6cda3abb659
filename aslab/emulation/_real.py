"""Real memory for emulated pages: mapped lazily on the event loop, without a thread.

Simulated time cannot see when a thread ends. A mapping that has not been touched costs almost nothing, so it
can be made on the event loop.
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

BATCH = 64  # pages between two suspensions, so that concurrent calls take turns

_mmap = Mmap()


@dataclass(slots=True, eq=False)
class _Backing:
    mapping: object
    blocks: list[Block]


def pages_for(nbytes: int) -> int:
    """The number of pages that ``nbytes`` need."""
    return -(-nbytes // PAGE_SIZE)


def region_on(blocks: list[Block], nbytes: int, align: int) -> Region:
    """A region that owns these blocks.

    :raises MemoryError: if the real kernel has no address space; the caller then still owns the blocks
    """
    region = _mmap.acquire_nowait(nbytes, align, GFP.NOWAIT)
    region.token = _Backing(region.token, blocks)
    return region


def region_at_once(memory: PhysicalMemory, count: int, order: int, gfp: GFP, nbytes: int, align: int) -> Region:
    """A region of ``count`` blocks, allocated without waiting; all or none. From any thread.

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
    """Release a region, and return its blocks to their memory. From any thread.

    :raises ValueError: if it is not from `region_on`, or was already released
    """
    backing = region.token
    if not isinstance(backing, _Backing):
        raise ValueError("this region was not acquired here, or was already released")
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
    """Append single pages in batches, sleeping for a delay per page before each batch.

    Pages allocated so far are in ``blocks`` even if this fails or is cancelled.
    """
    for start in range(0, count, BATCH):
        batch = min(BATCH, count - start)
        await anyio.sleep(sum(delay() for _ in range(batch)))
        for _ in range(batch):
            blocks.append(await memory.get(0, gfp))  # noqa: PERF401 - on failure, some are there
