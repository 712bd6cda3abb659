"""The disk: so many writes at once, a page of memory for each, and no end of trying to get it."""

from __future__ import annotations

import anyio
import pytest

from aslab import GFP
from aslab.emulation import Block, PhysicalMemory
from aslab.lab._story._disk import Disk

from .helpers import Loop
from .support import settle

RETRY = 0.01
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def disk(*, pages: int = 64, reserve: int = 0, depth: int = 2) -> Disk:
    return Disk(PhysicalMemory(pages, min=reserve), lambda: 1.0, depth)


async def write_all(device: Disk, count: int) -> list[float]:
    """When each of so many writes, all asked for now, was done; seconds from now."""
    begin = anyio.current_time()
    done: list[float] = []

    async def write() -> None:
        await device.write()
        done.append(round(anyio.current_time() - begin, 3))

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(write)
    return done


async def test_so_many_writes_at_once_as_it_is_deep_and_the_others_after_them() -> None:
    assert await write_all(disk(depth=2), 5) == [1, 1, 2, 2, 3]
    assert await write_all(disk(depth=5), 5) == [1, 1, 1, 1, 1]


async def test_each_write_under_way_has_a_page_and_gives_it_back() -> None:
    device = disk(depth=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_all, device, 5)
        await settle()
        assert device.memory.free_pages == 62
    assert device.memory.free_pages == 64
    assert (device.writes, device.starved) == (5, 0)


async def test_its_page_comes_from_the_reserve() -> None:
    device = disk(reserve=32)
    for _ in range(32):
        device.memory.allocate(0, GFP.KERNEL)
    assert await write_all(device, 1) == [1]
    assert device.starved == 0


async def test_without_a_page_it_tries_again_and_counts() -> None:
    device = disk()
    held: list[Block] = [device.memory.allocate(0, GFP.KERNEL) for _ in range(64)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_all, device, 1)
        await anyio.sleep(RETRY * 4.5)
        assert (device.starved, device.writes) == (5, 0)
        assert device.memory.failures_by_order[0] == 5
        device.memory.free(held.pop())
    assert device.writes == 1
    assert device.memory.free_pages == 1


@pytest.mark.parametrize("after", [0.5, RETRY / 2])
async def test_cancelled_at_work_or_starving_it_leaves_nothing_behind(after: float) -> None:
    device = disk(depth=1)
    held = [] if after == 0.5 else [device.memory.allocate(0, GFP.KERNEL) for _ in range(64)]
    free = device.memory.free_pages
    with anyio.move_on_after(after):
        await device.write()
    assert (device.writes, device.memory.free_pages) == (0, free)
    for block in held:
        device.memory.free(block)
    assert await write_all(device, 1) == [1]
