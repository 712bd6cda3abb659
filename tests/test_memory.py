"""Physical memory: watermarks, pressure, failures as Linux words them, and fragmentation."""

from __future__ import annotations

import copy
import logging
import math
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab import GFP, ConfigError
from aslab.backends._libc import PAGE_SIZE
from aslab.emulation import Block, PageAllocationFailure, PhysicalMemory


def small() -> PhysicalMemory:
    """64 pages: 16 for the urgent, kswapd from 20 to 24."""
    return PhysicalMemory(64, min=16, low=20, high=24)


def take(memory: PhysicalMemory, count: int, gfp: GFP = GFP.KERNEL) -> list[Block]:
    return [memory.allocate(0, gfp) for _ in range(count)]


class TestWatermarks:
    def test_the_last_pages_above_min_can_be_had_and_none_below(self) -> None:
        memory = small()
        take(memory, 48)
        assert memory.free_pages == 16
        with pytest.raises(PageAllocationFailure):
            memory.allocate(0, GFP.KERNEL)
        assert memory.free_pages == memory.lowest_free == 16

    def test_all_pages_of_a_block_count(self) -> None:
        memory = small()
        take(memory, 32)
        with pytest.raises(PageAllocationFailure):
            memory.allocate(5, GFP.KERNEL)
        memory.allocate(4, GFP.KERNEL)

    def test_memalloc_takes_the_reserve_to_the_last_page(self) -> None:
        memory = small()
        take(memory, 48)
        take(memory, 16, GFP.NOIO | GFP.MEMALLOC)
        assert memory.free_pages == memory.lowest_free == 0
        with pytest.raises(PageAllocationFailure):
            memory.allocate(0, GFP.MEMALLOC)

    def test_high_takes_half_of_the_reserve_and_no_more(self) -> None:
        memory = small()
        take(memory, 48)
        take(memory, 8, GFP.NOIO | GFP.HIGH)
        with pytest.raises(PageAllocationFailure):
            memory.allocate(0, GFP.NOIO | GFP.HIGH)
        assert memory.free_pages == 8

    def test_whoever_wakes_kswapd_does_so_until_there_is_enough(self) -> None:
        memory = small()
        woken: list[int] = []
        memory.wake_kswapd = lambda: woken.append(1)
        blocks = take(memory, 44)
        assert not woken
        blocks += take(memory, 2)
        assert len(woken) == 2
        for block in blocks[:6]:
            memory.free(block)
        memory.allocate(0, GFP.KERNEL)
        assert len(woken) == 2

    def test_kswapd_is_woken_below_low_once_and_sleeps_again_at_high(self) -> None:
        memory = small()
        blocks = take(memory, 44)
        assert (memory.free_pages, memory.under_pressure, memory.kswapd_wakeups) == (20, False, 0)
        blocks += take(memory, 2)
        assert (memory.under_pressure, memory.kswapd_wakeups) == (True, 1)
        for free in (19, 20, 21, 22, 23):
            memory.free(blocks.pop())
            assert (memory.free_pages, memory.under_pressure) == (free, True)
        memory.free(blocks.pop())
        assert (memory.free_pages, memory.under_pressure) == (24, False)
        take(memory, 5)
        assert (memory.under_pressure, memory.kswapd_wakeups) == (True, 2)

    def test_a_failure_for_want_of_pages_wakes_kswapd(self) -> None:
        memory = small()
        take(memory, 42)
        assert not memory.under_pressure
        with pytest.raises(PageAllocationFailure):
            memory.allocate(3, GFP.KERNEL)
        assert memory.under_pressure

    def test_where_only_a_block_is_missing_kswapd_sleeps_on(self) -> None:
        memory = small()
        memory.fragment(1 / 16)
        with pytest.raises(PageAllocationFailure):
            memory.allocate(4, GFP.KERNEL)
        assert not memory.under_pressure

    def test_after_a_large_block_has_left_enough_kswapd_is_not_woken(self) -> None:
        memory = small()
        memory.allocate(5, GFP.KERNEL)
        assert not memory.under_pressure

    @pytest.mark.parametrize("mib", [4, 64, 1024, 16384])
    def test_defaults_are_linuxs(self, mib: int) -> None:
        kib = mib * 1024
        memory = PhysicalMemory(kib * 1024 // PAGE_SIZE)
        expected = min(max(128, math.isqrt(16 * kib)), 65536) * 1024 // PAGE_SIZE
        assert (memory.min, memory.low, memory.high) == (expected, expected * 5 // 4, expected * 3 // 2)

    @pytest.mark.parametrize("pages", [1, 2, 7, 8, 30, 100])
    def test_a_tiny_memory_is_of_some_use(self, pages: int) -> None:
        memory = PhysicalMemory(pages)
        assert memory.min <= memory.low <= memory.high <= pages // 4
        assert len(take(memory, pages - memory.min)) >= pages * 3 // 4

    def test_marks_that_are_not_given_follow_those_that_are_and_end_with_memory(self) -> None:
        found = [
            (memory.low, memory.high)
            for memory in (
                PhysicalMemory(64, min=8),
                PhysicalMemory(64, min=50),
                PhysicalMemory(64, min=8, low=40),
                PhysicalMemory(64, min=64),
            )
        ]
        assert found == [(10, 12), (62, 64), (40, 40), (64, 64)]

    @pytest.mark.parametrize(
        ("field", "options"),
        [
            ("min", {"min": -1}),
            ("min", {"min": 65}),
            ("min", {"min": 1.0}),
            ("low", {"min": 10, "low": 9}),
            ("high", {"min": 10, "low": 12, "high": 11}),
            ("high", {"high": 65}),
            ("pages", {"pages": 0}),
        ],
    )
    def test_marks_out_of_order_are_refused(self, field: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            PhysicalMemory(**{"pages": 64, **options})

    @given(
        st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.sampled_from([GFP.KERNEL, GFP.NOIO, GFP.NOWAIT]))),
        st.lists(st.integers(0, 63), max_size=8),
    )
    def test_nobody_but_memalloc_and_high_ever_goes_below_min(
        self, steps: list[tuple[bool, int, GFP]], urgent: list[int]
    ) -> None:
        memory = small()
        held: list[Block] = []
        for number, (taking, order, gfp) in enumerate(steps):
            before = memory.free_pages
            flags = gfp | (GFP.MEMALLOC, GFP.HIGH)[number % 2] if number in urgent else gfp
            if taking:
                try:
                    held.append(memory.allocate(order, flags))
                except MemoryError:
                    assert memory.free_pages == before
                else:
                    assert memory.free_pages == before - (1 << order)
                    least = memory.min // 2 if GFP.HIGH in flags else memory.min
                    assert memory.free_pages >= least or GFP.MEMALLOC in flags
            elif held:
                memory.free(held.pop(order % len(held)))
            assert memory.under_pressure or memory.free_pages >= memory.low
            assert not memory.under_pressure or memory.free_pages < memory.high
            assert memory.lowest_free <= memory.free_pages
        for block in held:
            memory.free(block)
        assert memory.counts() == small().counts()


class TestFailures:
    @pytest.mark.parametrize(
        ("gfp", "mode"),
        [
            (GFP.NOWAIT, "0x0"),
            (GFP.NOIO, "0x10"),
            (GFP.NOFS, "0x50"),
            (GFP.KERNEL, "0xd0"),
            (GFP.NOIO | GFP.MEMALLOC, "0x2010"),
            (GFP.NOIO | GFP.HIGH, "0x30"),
        ],
    )
    @pytest.mark.anyio
    async def test_the_text_is_linuxs_line_with_the_name_of_the_task(
        self, gfp: GFP, mode: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        memory = PhysicalMemory(16, min=0)
        caught: list[PageAllocationFailure] = []

        async def fail() -> None:
            with pytest.raises(PageAllocationFailure) as error:
                memory.allocate(5, gfp)
            caught.append(error.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, name="z_wr_int")
        line = f"z_wr_int: page allocation failure. order:5, mode:{mode}"
        assert str(caught[0]) == line
        assert (caught[0].order, caught[0].gfp) == (5, gfp)
        assert [record.getMessage() for record in caplog.records] == [line]
        assert caplog.records[0].levelno == logging.WARNING
        assert caplog.records[0].name == "aslab.emulation"

    def test_outside_a_loop_it_has_the_name_of_the_thread(self) -> None:
        texts: list[str] = []

        def fail() -> None:
            with pytest.raises(MemoryError) as error:
                PhysicalMemory(1).allocate(1, GFP.NOWAIT)
            texts.append(str(error.value))

        thread = threading.Thread(target=fail, name="txg_sync")
        thread.start()
        thread.join()
        assert texts == ["txg_sync: page allocation failure. order:1, mode:0x0"]

    def test_a_failure_can_be_copied_for_another_task(self) -> None:
        one = PageAllocationFailure("a", 3, GFP.NOIO)
        other = copy.copy(one)
        assert other is not one
        assert (str(other), other.order, other.gfp) == (str(one), 3, GFP.NOIO)

    def test_failures_are_counted_by_order(self) -> None:
        memory = PhysicalMemory(8, min=0)
        for order in (4, 4, 9):
            with pytest.raises(PageAllocationFailure):
                memory.allocate(order, GFP.KERNEL)
        assert memory.failures_by_order == [0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0]

    @pytest.mark.parametrize("order", [-1, 11])
    def test_an_order_out_of_bounds_is_refused(self, order: int) -> None:
        memory = PhysicalMemory(8)
        with pytest.raises(ConfigError, match=r"^order: "):
            memory.allocate(order, GFP.KERNEL)
        assert memory.failures_by_order == [0] * 11

    def test_a_block_comes_back_once(self) -> None:
        memory = PhysicalMemory(64)
        block = memory.allocate(2, GFP.KERNEL)
        memory.free(block)
        with pytest.raises(ValueError, match=f"page {block.pfn} was not allocated with order 2"):
            memory.free(block)
        assert memory.free_pages == 64


class TestFragmentation:
    def test_an_even_32nd_leaves_no_block_of_order_5_and_most_memory_free(self) -> None:
        memory = PhysicalMemory(4096)
        pins = memory.fragment(1 / 32)
        assert len(pins) == memory.pinned == 128
        assert memory.free_pages == 4096 - 128
        assert memory.counts()[4] > 0
        assert not any(memory.counts()[5:])
        with pytest.raises(PageAllocationFailure):
            memory.allocate(5, GFP.KERNEL)
        memory.allocate(4, GFP.KERNEL)

    @pytest.mark.parametrize("seed", [None, 3])
    def test_released_pins_give_everything_back_and_a_second_time_nothing(self, seed: int | None) -> None:
        memory = PhysicalMemory(1000)
        before = memory.counts()
        pins = memory.fragment(0.4, seed=seed)
        assert (memory.pinned, memory.free_pages) == (400, 600)
        pins.release()
        assert (memory.pinned, memory.counts(), len(pins)) == (0, before, 0)
        pins.release()
        assert (memory.pinned, memory.counts()) == (0, before)

    def test_the_seed_decides_which_pages(self) -> None:
        def layout(seed: int) -> tuple[int, ...]:
            memory = PhysicalMemory(4096)
            memory.fragment(1 / 32, seed=seed)
            return memory.counts()

        assert layout(1) == layout(1) != layout(2)

    def test_pages_in_use_are_passed_over(self) -> None:
        memory = PhysicalMemory(64, min=0)
        blocks = [memory.allocate(4, GFP.KERNEL) for _ in range(2)]
        pins = memory.fragment(1)
        assert (len(pins), memory.free_pages) == (32, 0)
        pins.release()
        for block in blocks:
            memory.free(block)
        assert memory.counts() == PhysicalMemory(64).counts()

    def test_pinning_wakes_kswapd_and_releasing_calms_it(self) -> None:
        memory = small()
        pins = memory.fragment(0.75)
        assert (memory.under_pressure, memory.lowest_free) == (True, 16)
        pins.release()
        assert not memory.under_pressure

    @pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, "1", None, True])
    def test_a_bad_share_is_refused(self, share: Any) -> None:
        with pytest.raises(ConfigError, match=r"^share: "):
            PhysicalMemory(64).fragment(share)

    def test_buddyinfo_is_a_line_of_proc(self) -> None:
        memory = PhysicalMemory(1024 + 512 + 1)
        expected = (
            "Node 0, zone   Normal      1      0      0      0      0      0      0      0      0      1      1"
        )
        assert memory.buddyinfo() == expected


@pytest.mark.anyio
class TestDirectReclaim:
    @pytest.fixture
    def memory(self) -> PhysicalMemory:
        self.full = memory = PhysicalMemory(64, min=0)
        self.blocks = take(memory, 64)
        self.asked: list[tuple[int, GFP]] = []
        memory.reclaimer = self.reclaim
        return memory

    async def reclaim(self, pages: int, gfp: GFP) -> int:
        self.asked.append((pages, gfp))
        await anyio.lowlevel.checkpoint()
        if not self.blocks:
            return 0
        self.full.free(self.blocks.pop())
        return 1

    async def test_it_tries_again_for_as_long_as_something_is_freed(self, memory: PhysicalMemory) -> None:
        block = await memory.get(2, GFP.NOFS)
        assert block.order == 2
        assert self.asked == [(4, GFP.NOFS)] * 4

    async def test_it_fails_when_there_is_nothing_more_to_reclaim(self, memory: PhysicalMemory) -> None:
        del self.blocks[3:]
        for _ in range(3):
            await memory.get(0, GFP.KERNEL)
        with pytest.raises(PageAllocationFailure):
            await memory.get(0, GFP.KERNEL)
        assert len(self.asked) == 4
        assert sum(memory.failures_by_order) == 1, "tries that reclaim made good are no failures"

    async def test_what_others_freed_meanwhile_counts_too(self, memory: PhysicalMemory) -> None:
        async def reclaim(pages: int, gfp: GFP) -> int:
            memory.free(self.blocks.pop())
            return 0

        memory.reclaimer = reclaim
        await memory.get(0, GFP.KERNEL)

    @pytest.mark.parametrize("gfp", [GFP.NOWAIT, GFP.MEMALLOC])
    async def test_who_may_not_wait_fails_at_once(self, memory: PhysicalMemory, gfp: GFP) -> None:
        with pytest.raises(PageAllocationFailure):
            await memory.get(0, gfp)
        assert not self.asked

    async def test_without_a_reclaimer_it_fails_at_once(self, memory: PhysicalMemory) -> None:
        memory.reclaimer = None
        with pytest.raises(PageAllocationFailure):
            await memory.get(0, GFP.KERNEL)

    async def test_allocate_never_reclaims(self, memory: PhysicalMemory) -> None:
        with pytest.raises(PageAllocationFailure):
            memory.allocate(0, GFP.KERNEL)
        assert not self.asked


def test_threads_never_get_the_same_page_and_lose_none() -> None:
    memory = PhysicalMemory(2048, min=0)
    owners = bytearray(2048)
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(400):
            try:
                blocks = [memory.allocate((number + turn) % 4, GFP.KERNEL) for _ in range(8)]
            except MemoryError:
                continue
            for block in blocks:
                for pfn in range(block.pfn, block.pfn + (1 << block.order)):
                    if owners[pfn]:
                        wrong.append(pfn)
                    owners[pfn] = 1
            for block in blocks:
                for pfn in range(block.pfn, block.pfn + (1 << block.order)):
                    owners[pfn] = 0
                memory.free(block)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory.counts() == PhysicalMemory(2048).counts()
