"""The small ZFS: groups of writes, a pipeline that bounds itself, and buffers that all come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from aslab.emulation import PhysicalMemory
from aslab.lab._simulation._waits import WaitGraph
from aslab.lab._story._disk import Disk
from aslab.lab._story._zfs import Zfs, ZfsOptions

from .helpers import Loop
from .support import settle

pytestmark = pytest.mark.anyio

DEPTH = 2
TXG_TIMEOUT, TXG_BLOCKS, VDEV, ZVOL_TASKS, ISSUE_TASKS = 5.0, 64, 4, 4, 8
OPTIONS = ZfsOptions(TXG_TIMEOUT, TXG_BLOCKS, VDEV, ZVOL_TASKS, ISSUE_TASKS, interrupt_tasks=1)


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


class Counting:
    """Buffers without end, unless it is shut; keeps the books."""

    def __init__(self) -> None:
        self.outstanding: set[int] = set()
        self.made = self.most = self.waiting = self.finishing = self.sleeping = 0
        self.opened = anyio.Event()
        self.opened.set()

    def shut(self) -> None:
        self.opened = anyio.Event()

    async def alloc(self, *, finishes: bool, converted: bool = True) -> int:
        self.waiting += 1
        self.sleeping += not converted
        try:
            await self.opened.wait()
            await anyio.lowlevel.checkpoint()
        finally:
            self.waiting -= 1
        self.made += 1
        self.finishing += finishes
        self.outstanding.add(self.made)
        self.most = max(self.most, len(self.outstanding))
        return self.made

    def free(self, buffer: int) -> None:
        self.outstanding.remove(buffer)


class Kit:
    def __init__(self, latency: float, options: ZfsOptions) -> None:
        self.waits = WaitGraph()
        self.arc, self.zio = Counting(), Counting()
        self.disk = Disk(PhysicalMemory(64, min=0), lambda: latency, DEPTH)
        self.zfs = Zfs(self.disk, self.arc, self.zio, self.waits, lambda: 0.001, options)
        self.copied = 0

    async def write(self) -> None:
        await self.zfs.write()
        self.copied += 1


@asynccontextmanager
async def pool(
    *, latency: float = 1.0, options: ZfsOptions = OPTIONS
) -> AsyncIterator[tuple[Kit, anyio.abc.TaskGroup]]:
    """A running pool. In the end all is written, every buffer is back, and nobody waits any more."""
    k = Kit(latency, options)
    async with anyio.create_task_group() as tasks:
        k.zfs.start(tasks)
        yield k, tasks
        k.arc.opened.set()
        k.zio.opened.set()
        await settle()
        await k.zfs.drain()
        assert not k.arc.outstanding
        assert not k.zio.outstanding
        assert k.disk.writes == k.copied
        assert k.zio.made == 2 * k.copied, "one for the data, one to aggregate into"
        assert k.zio.finishing == k.copied, "the second of each write finishes it"
        assert not k.arc.finishing
        assert k.disk.memory.free_pages == 64
        tasks.cancel_scope.cancel()
    k.zfs.close()
    assert k.waits.edges() == {}


async def write_all(k: Kit, tasks: anyio.abc.TaskGroup, count: int) -> None:
    for _ in range(count):
        tasks.start_soon(k.write)
    await settle()


async def test_write_is_copied_long_before_it_is_on_disk() -> None:
    async with pool() as (k, _):
        begin = anyio.current_time()
        await k.write()
        assert anyio.current_time() - begin < 0.1
        assert (len(k.arc.outstanding), k.disk.writes) == (1, 0)


async def test_writer_of_a_file_joins_the_group_itself_and_waits_for_room_in_it() -> None:
    async with pool(options=replace(OPTIONS, txg_blocks=2, zvol_tasks=0)) as (k, tasks):

        async def write() -> None:
            k.waits.be("dd")
            await k.zfs.write_file()
            k.copied += 1

        k.zio.shut()
        for _ in range(5):
            tasks.start_soon(write)
        await anyio.sleep(0.1)
        assert k.copied == 4, "two are being written, two have joined the next group"
        assert k.waits.edges()["dd"] == ["txg_sync"]


async def test_writer_cancelled_in_the_middle_of_joining_leaves_the_group_to_the_others() -> None:
    async with pool() as (k, _):
        k.arc.shut()
        with anyio.move_on_after(0.5):
            await k.zfs.write_file()
        k.arc.opened.set()
        await k.write()


@pytest.mark.parametrize("unconverted", [0, 3, ISSUE_TASKS])
async def test_unconverted_tasks_and_no_others_ask_as_anybody_would(unconverted: int) -> None:
    async with pool(options=replace(OPTIONS, unconverted=unconverted)) as (k, tasks):
        k.zio.shut()
        await write_all(k, tasks, ISSUE_TASKS)
        await anyio.sleep(TXG_TIMEOUT + 1)
        assert k.zio.waiting == ISSUE_TASKS
        assert k.zio.sleeping == unconverted


async def test_group_that_is_not_full_is_closed_after_a_while_and_is_then_on_disk() -> None:
    async with pool() as (k, _):
        await k.write()
        await anyio.sleep(TXG_TIMEOUT - 0.1)
        assert (k.disk.writes, k.zfs.syncs) == (0, [])
        await anyio.sleep(1.2)
        assert k.disk.writes == 1
        [(begin, end)] = k.zfs.syncs
        assert 1 <= end - begin < 1.1


async def test_group_that_is_full_is_closed_at_once() -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, TXG_BLOCKS)
        await anyio.sleep(TXG_TIMEOUT / 2)
        assert k.disk.writes >= DEPTH


async def test_buffers_of_a_group_come_back_when_all_of_it_is_on_disk_and_not_before() -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, TXG_BLOCKS)
        await anyio.sleep(TXG_BLOCKS / DEPTH - 0.5)
        assert TXG_BLOCKS - 2 * DEPTH <= k.disk.writes < TXG_BLOCKS
        assert len(k.arc.outstanding) == TXG_BLOCKS
        await k.zfs.drain()
        assert (k.disk.writes, len(k.arc.outstanding), len(k.zfs.syncs)) == (TXG_BLOCKS, 0, 1)


async def test_full_group_holds_up_further_writes_until_the_one_before_is_synced() -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, 3 * TXG_BLOCKS)
        await anyio.sleep(TXG_BLOCKS / DEPTH - 0.5)
        assert k.copied == 2 * TXG_BLOCKS, "one group is written, the next is full"
        assert k.waits.edges()["zvol"] == ["txg_sync"]
        assert k.waits.edges()["txg_sync"] == ["zio"]
        await anyio.sleep(2)
        assert k.copied == 3 * TXG_BLOCKS
        assert "zvol" not in k.waits.edges()
        assert k.arc.most == 2 * TXG_BLOCKS


async def test_group_is_not_closed_before_all_that_joined_it_have_copied() -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, 1)
        await anyio.sleep(1)
        k.arc.shut()
        await write_all(k, tasks, 2)
        await anyio.sleep(100)
        assert (k.copied, k.disk.writes, k.zfs.syncs) == (1, 0, [])
        assert k.waits.edges() == {"txg": ["zvol"], "txg_sync": ["txg"]}
        k.arc.opened.set()
        await anyio.sleep(10)
        assert (k.disk.writes, len(k.zfs.syncs)) == (3, 1), "all three in one group"


async def test_so_many_writes_are_copied_at_once_as_there_are_tasks_of_the_zvol() -> None:
    async with pool() as (k, tasks):
        k.arc.shut()
        await write_all(k, tasks, 3 * ZVOL_TASKS)
        assert k.arc.waiting == ZVOL_TASKS


async def test_drain_with_nothing_written_returns_at_once() -> None:
    async with pool() as (k, _):
        begin = anyio.current_time()
        await k.zfs.drain()
        assert anyio.current_time() == begin


async def test_disk_has_as_many_writes_as_it_takes_and_the_queue_before_it_is_bounded() -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, TXG_BLOCKS)
        await anyio.sleep(5.5)
        assert k.disk.memory.free_pages == 64 - DEPTH
        assert VDEV <= len(k.zfs._vdev) <= VDEV + ISSUE_TASKS
        assert k.waits.edges()["z_wr_iss"] == ["vdev"]
        assert k.zio.most <= VDEV + ISSUE_TASKS + 2 * DEPTH + 1


@pytest.mark.parametrize("task", ["z_wr_iss", "z_wr_int"])
async def test_task_of_the_pipeline_that_finds_no_buffer_holds_up_the_group_and_the_graph_says_so(
    task: str,
) -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, TXG_BLOCKS)
        if task == "z_wr_int":
            await anyio.sleep(2.5)
        k.zio.shut()
        await anyio.sleep(1000)
        assert 0 < k.zio.waiting <= ISSUE_TASKS + 1
        assert task in k.waits.edges()["zio"]
        assert k.waits.edges()["txg_sync"] == ["zio"]
        assert len(k.arc.outstanding) == TXG_BLOCKS


async def test_sync_under_way_counts_when_it_is_noted() -> None:
    async with pool() as (k, tasks):
        k.zio.shut()
        await write_all(k, tasks, TXG_BLOCKS)
        await anyio.sleep(100)
        k.zfs.note()
        [(begin, end)] = k.zfs.syncs
        assert 99 < end - begin < 101
        k.zfs.syncs.clear()


async def test_many_groups_one_after_the_other_leave_nothing_behind() -> None:
    async with pool(latency=0.01) as (k, tasks):
        await write_all(k, tasks, 5 * TXG_BLOCKS + 7)
        await anyio.sleep(TXG_TIMEOUT + 1)
        assert k.copied == 5 * TXG_BLOCKS + 7
        assert len(k.zfs.syncs) >= 5
        assert all(end <= begin for (_, end), (begin, _) in zip(k.zfs.syncs, k.zfs.syncs[1:], strict=False))


async def test_finishing_buffer_is_asked_for_when_a_write_has_its_other_one() -> None:
    async with pool() as (k, tasks):
        await write_all(k, tasks, TXG_BLOCKS)
        await anyio.sleep(0.5)
        assert k.zio.finishing == DEPTH
        assert k.zio.made > 2 * k.zio.finishing, "others are begun, and queue"


async def test_every_option_is_heeded() -> None:
    small = ZfsOptions(1.0, 6, 1, zvol_tasks=2, issue_tasks=3, interrupt_tasks=2)
    async with pool(options=small) as (k, tasks):
        k.arc.shut()
        await write_all(k, tasks, 12)
        assert k.arc.waiting == 2
        k.arc.opened.set()
        await anyio.sleep(0.5)
        assert k.copied == 12, "one group is written, and one is full"
        assert 1 <= len(k.zfs._vdev) <= 1 + 3
        await k.zfs.drain()
        begin = anyio.current_time()
        await k.write()
        await k.zfs.drain()
        assert 2 <= anyio.current_time() - begin < 2.1, "a second for the group, one for the disk"
