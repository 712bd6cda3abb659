"""Pages of processes: who writes them to swap, who waits for it, and who may not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from aslab import GFP
from aslab.emulation import Block, PageAllocationFailure, PhysicalMemory
from aslab.emulation._memory import PF_MEMALLOC
from aslab.emulation._page_cache import SWAP_CLUSTER_MAX
from aslab.lab._simulation._waits import WaitGraph
from aslab.lab._story._swap import SMALL, Anonymous, hog

from .helpers import Loop
from .support import settle

pytestmark = pytest.mark.anyio

CLUSTER = SWAP_CLUSTER_MAX
KSWAPD_WRITES = 8


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


class Kit:
    """A memory, its anonymous pages, and a swap device on which a write takes a second."""

    def __init__(self, pages: int, low: int, high: int) -> None:
        self.memory = PhysicalMemory(pages, min=0, low=low, high=high)
        self.waits = WaitGraph()
        self.opened = anyio.Event()  # until then, no write ends
        self.opened.set()
        self.writing = self.most = self.shrinks = 0
        self.to_shrink: list[Block] = []
        self.anonymous = Anonymous(self.memory, self.waits, self.write_out, self.shrink)

    async def write_out(self) -> None:
        self.writing += 1
        self.most = max(self.most, self.writing)
        try:
            await anyio.sleep(1)
            await self.opened.wait()
        finally:
            self.writing -= 1

    async def shrink(self) -> bool:
        self.shrinks += 1
        await anyio.lowlevel.checkpoint()
        for block in self.to_shrink:
            self.memory.free(block)
        found, self.to_shrink = bool(self.to_shrink), []
        return found

    def dirty(self, clusters: int) -> None:
        for _ in range(clusters):
            self.anonymous.add([self.memory.allocate(0, GFP.KERNEL) for _ in range(CLUSTER)])

    def fill(self) -> list[Block]:
        """Take what is free."""
        return [self.memory.allocate(0, GFP.KERNEL) for _ in range(self.memory.free_pages)]


def kit(clusters: int = 4, *, dirty: int = 0, low: int = 0, high: int = 0) -> Kit:
    made = Kit(clusters * CLUSTER, low * CLUSTER, high * CLUSTER)
    made.dirty(dirty)
    return made


@asynccontextmanager
async def kswapd(made: Kit) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.anonymous.run_kswapd)
        await settle()
        yield
        tasks.cancel_scope.cancel()


async def timed(call: Callable[[], object]) -> float:
    begin = anyio.current_time()
    await call()  # type: ignore[misc]
    return round(anyio.current_time() - begin, 6)


class TestDirectReclaim:
    async def test_with_io_the_caller_writes_the_oldest_cluster_itself(self) -> None:
        k = kit(2, dirty=2)
        oldest, other = k.anonymous._lru
        assert await timed(lambda: k.memory.get(0, GFP.KERNEL)) == 1
        assert list(k.anonymous._lru) == [other]
        assert oldest is not other
        assert (k.anonymous.written, k.anonymous.direct_reclaims) == (CLUSTER, 1)
        assert k.memory.free_pages == CLUSTER - 1

    async def test_with_io_the_caller_waits_on_writeback_for_all_to_see(self) -> None:
        k = kit(1, dirty=1)
        k.waits.be("vmalloc")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(k.memory.get, 0, GFP.KERNEL)
            await settle()
            assert k.waits.edges() == {"reclaim": ["writeback"], "vmalloc": ["reclaim"], "writeback": ["zvol"]}
        assert k.waits.edges() == {}

    async def test_with_nothing_left_to_write_it_waits_for_the_writes_of_others(self) -> None:
        k = kit(1, dirty=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(k.memory.get, 0, GFP.KERNEL)
            await anyio.sleep(0.25)
            assert await timed(lambda: k.memory.get(0, GFP.KERNEL)) == 0.75
        assert (k.anonymous.written, k.most) == (CLUSTER, 1)

    async def test_with_nothing_to_write_and_nobody_writing_it_fails(self) -> None:
        k = kit(1)
        k.fill()
        with pytest.raises(PageAllocationFailure):
            await k.memory.get(0, GFP.KERNEL)
        assert k.shrinks == 0

    async def test_without_io_it_writes_nothing_and_waits_for_any_page_freed(self) -> None:
        k = kit(2, dirty=1)
        page = k.fill().pop()
        k.waits.be("z_wr_iss")
        got: list[Block] = []

        async def get() -> None:
            got.append(await k.memory.get(0, GFP.NOIO))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await anyio.sleep(1000)
            assert k.waits.edges() == {"free pages": ["writeback"], "z_wr_iss": ["free pages"]}
            assert (got, k.anonymous.written, k.anonymous.direct_reclaims) == ([], 0, 0)
            k.memory.free(page)
        assert got == [page]

    async def test_without_io_all_that_wait_are_woken_and_who_finds_nothing_waits_again(self) -> None:
        k = kit(1)
        pages = k.fill()
        got: list[Block] = []

        async def get() -> None:
            got.append(await k.memory.get(0, GFP.NOIO))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(get)
            for number in range(3):
                await settle()
                assert len(got) == number
                k.memory.free(pages.pop())

    @pytest.mark.parametrize(("order", "gfp"), [(0, GFP.NOIO | GFP.NORETRY), (4, GFP.NOIO), (10, GFP.NOIO)])
    async def test_without_io_large_requests_and_those_with_noretry_fail_at_once(
        self, order: int, gfp: GFP
    ) -> None:
        k = kit(64, dirty=1)
        k.fill()
        with pytest.raises(PageAllocationFailure):
            await k.memory.get(order, gfp)
        assert k.memory.failures_by_order[order] == 1

    async def test_without_io_up_to_8_pages_in_a_row_are_waited_for(self) -> None:
        k = kit(1)
        eight = k.memory.allocate(3, GFP.KERNEL)
        assert 1 << eight.order == SMALL
        k.fill()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(k.memory.get, 3, GFP.NOIO)
            await anyio.sleep(1000)
            k.memory.free(eight)

    async def test_a_task_with_pf_memalloc_takes_the_reserve_and_never_reclaims(self) -> None:
        k = kit(2, dirty=1)
        k.memory.min = CLUSTER
        PF_MEMALLOC.set(True)
        for _ in range(CLUSTER):
            await k.memory.get(0, GFP.KERNEL)
        with pytest.raises(PageAllocationFailure):
            await k.memory.get(0, GFP.KERNEL)
        assert (k.memory.free_pages, k.anonymous.direct_reclaims) == (0, 0)

    async def test_cancelled_it_puts_the_cluster_back_where_it_was(self) -> None:
        k = kit(2, dirty=2)
        before = list(k.anonymous._lru)
        with anyio.move_on_after(0.5):
            await k.memory.get(0, GFP.KERNEL)
        assert list(k.anonymous._lru) == before
        assert (k.anonymous.written, k.memory.free_pages) == (0, 0)
        assert k.waits.edges() == {}
        assert await timed(lambda: k.memory.get(0, GFP.KERNEL)) == 1

    async def test_who_waits_for_a_write_that_is_cancelled_is_not_left_alone(self) -> None:
        k = kit(1, dirty=1)
        async with anyio.create_task_group() as tasks:

            async def write_half() -> None:
                with anyio.move_on_after(0.5):
                    await k.memory.get(0, GFP.KERNEL)

            tasks.start_soon(write_half)
            await settle()
            with anyio.fail_after(100):
                await k.memory.get(0, GFP.KERNEL)


class TestKswapd:
    async def test_sleeps_while_low_pages_are_free(self) -> None:
        k = kit(8, low=2, high=4)
        async with kswapd(k):
            k.dirty(6)
            await anyio.sleep(100)
            assert k.anonymous.written == 0

    async def test_writes_below_low_until_high_pages_are_free(self) -> None:
        k = kit(8, low=2, high=4)
        async with kswapd(k):
            k.dirty(6)
            k.memory.allocate(0, GFP.KERNEL)
            await anyio.sleep(100)
            assert k.anonymous.direct_reclaims == 0
            assert k.anonymous.written >= 3 * CLUSTER
            assert k.memory.free_pages >= k.memory.high

    async def test_has_so_many_writes_under_way_and_no_more(self) -> None:
        k = kit(64, low=32, high=64)
        async with kswapd(k):
            k.dirty(64)
            await anyio.sleep(5.5)
            assert k.most == k.writing == KSWAPD_WRITES
            assert k.anonymous.written == 5 * KSWAPD_WRITES * CLUSTER

    async def test_waits_on_writeback_for_all_to_see(self) -> None:
        k = kit(2, low=2, high=2)
        async with kswapd(k):
            k.dirty(2)
            await settle()
            assert k.waits.edges()["kswapd"] == ["writeback"]
        assert k.waits.edges() == {}

    async def test_asks_for_the_memory_of_caches_only_where_there_is_nothing_to_write(self) -> None:
        k = kit(4, low=2, high=3)
        async with kswapd(k):
            k.dirty(3)
            await anyio.sleep(0.5)
            assert (k.writing, k.shrinks) == (3, 0)
            await anyio.sleep(100)
            assert (k.memory.free_pages, k.shrinks) == (4 * CLUSTER, 0)
            k.to_shrink = k.fill()
            await settle()
            assert (k.memory.free_pages, k.shrinks) == (4 * CLUSTER, 1)

    async def test_gives_up_where_there_is_nothing_at_all_and_the_next_allocation_wakes_it_again(self) -> None:
        k = kit(4, low=2, high=3)
        async with kswapd(k):
            pages = k.fill()
            await settle()
            assert k.shrinks == 1
            await anyio.sleep(1000)
            assert k.shrinks == 1, "it does not go round and round"
            for page in pages[: 2 * CLUSTER]:
                k.memory.free(page)
            k.dirty(2)
            await anyio.sleep(2)
            assert k.anonymous.written == 2 * CLUSTER

    async def test_cancelled_it_puts_all_clusters_back(self) -> None:
        k = kit(4, low=4, high=4)
        async with kswapd(k):
            k.dirty(4)
            await settle()
            assert (k.writing, len(k.anonymous._lru)) == (4, 0)
        assert (len(k.anonymous._lru), k.writing, k.memory.free_pages) == (4, 0, 0)


class TestHog:
    async def test_dirties_clusters_one_after_the_other_and_leaves_them(self) -> None:
        k = kit(4)
        assert await timed(lambda: hog(k.anonymous, 3, lambda: 0.25)) == 0.75
        assert [len(cluster) for cluster in k.anonymous._lru] == [CLUSTER] * 3
        assert k.memory.free_pages == CLUSTER

    async def test_dirties_more_than_there_is_by_swapping(self) -> None:
        k = kit(4, low=1, high=2)
        async with kswapd(k), anyio.create_task_group() as hogs:
            for _ in range(2):
                hogs.start_soon(hog, k.anonymous, 8, lambda: 0.25)
        assert len(k.anonymous._lru) <= 4
        assert k.anonymous.written >= 12 * CLUSTER
        assert k.memory.free_pages + len(k.anonymous._lru) * CLUSTER == k.memory.pages

    async def test_with_nothing_to_reclaim_it_tries_again(self) -> None:
        k = kit(1)
        page = k.fill().pop()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hog, k.anonymous, 1, lambda: 0.0)
            await anyio.sleep(1)
            k.memory.free(page)
            await anyio.sleep(0.1)
            assert k.memory.free_pages == 0
            tasks.cancel_scope.cancel()


async def test_pages_can_be_moved_but_for_those_that_are_being_written() -> None:
    k = kit(4, dirty=3)
    numbers = set(k.anonymous.movable)
    assert len(numbers) == 3 * CLUSTER
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(k.anonymous.reclaim, 1, GFP.KERNEL)
        await anyio.sleep(0.5)
        assert len(k.anonymous.movable) == 2 * CLUSTER
        tasks.cancel_scope.cancel()
    assert set(k.anonymous.movable) == numbers, "the write did not take place"
    assert await k.anonymous.reclaim(1, GFP.KERNEL) == CLUSTER
    assert len(k.anonymous.movable) == 2 * CLUSTER


async def test_scattered_pages_leave_no_row_and_are_written_first() -> None:
    k = kit(8)
    k.anonymous.scatter(1 / CLUSTER)
    assert k.memory.free_pages == 7 * CLUSTER + CLUSTER - 8
    assert not any(k.memory.counts()[5:])
    assert set(k.anonymous.movable) == set(range(0, 8 * CLUSTER, CLUSTER))
    assert await k.anonymous.reclaim(1, GFP.KERNEL) == 8
    assert k.memory.free_pages == 8 * CLUSTER
