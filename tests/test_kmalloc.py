"""Kmalloc: orders, flags that are kept, and the failures of a fragmented machine."""

from __future__ import annotations

import logging
from functools import partial

import anyio
import pytest

from aslab import GFP, ConfigError
from aslab.backends import Region
from aslab.backends._libc import PAGE_SIZE
from aslab.emulation import Kmalloc, PageAllocationFailure, PageCache, PhysicalMemory
from aslab.faults import Uniform
from aslab.testing import check_backend

from .helpers import Loop
from .support import settle

pytestmark = pytest.mark.anyio

ORDER_5 = 32 * PAGE_SIZE


@pytest.mark.parametrize("vmap", [False, True])
async def test_it_keeps_the_contract_of_a_backend(vmap: bool) -> None:
    for options in ({}, {"per_page": 1e-7, "per_call": Uniform(0, 1e-5)}):
        memory = PhysicalMemory(2048)
        await check_backend(partial(Kmalloc, memory, vmap=vmap, **options))  # type: ignore[arg-type]
        assert memory.free_pages == 2048


class TestSimulated:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    @pytest.mark.parametrize("vmap", [False, True])
    async def test_it_keeps_the_contract_in_simulated_time(self, vmap: bool) -> None:
        memory = PhysicalMemory(2048)
        await check_backend(lambda: Kmalloc(memory, per_page=0.01, per_call=Uniform(0, 1), vmap=vmap))
        assert memory.free_pages == 2048

    @pytest.mark.parametrize(
        ("nbytes", "align", "pages"),
        [
            (1, 8, 1),
            (PAGE_SIZE, 8, 1),
            (PAGE_SIZE + 1, 8, 2),
            (3 * PAGE_SIZE, 8, 4),
            (ORDER_5, 8, 32),
            (ORDER_5 + 1, 8, 64),
            (1024 * PAGE_SIZE, 8, 1024),
            (1, 4 * PAGE_SIZE, 4),
        ],
    )
    async def test_sizes_are_rounded_up_to_an_order(self, nbytes: int, align: int, pages: int) -> None:
        memory = PhysicalMemory(2048)
        backend = Kmalloc(memory)
        region = await backend.acquire(nbytes, align, GFP.KERNEL)
        assert memory.free_pages == 2048 - pages
        assert region.memory.nbytes >= nbytes
        await backend.release(region)
        region = backend.acquire_nowait(nbytes, align, GFP.NOWAIT)
        assert memory.free_pages == 2048 - pages
        await backend.release(region)
        assert (memory.free_pages, backend.calls) == (2048, 2)

    async def test_over_order_10_is_never_possible(self) -> None:
        memory = PhysicalMemory(4096)
        for backend in (Kmalloc(memory), Kmalloc(memory, per_call=1)):
            with pytest.raises(MemoryError, match="order 11, over 10"):
                await backend.acquire(1024 * PAGE_SIZE + 1, 8, GFP.KERNEL)
            with pytest.raises(MemoryError, match="order 11, over 10"):
                backend.acquire_nowait(1024 * PAGE_SIZE + 1, 8, GFP.KERNEL)

    async def test_vmap_takes_no_page_too_many_and_any_size(self) -> None:
        memory = PhysicalMemory(4096)
        backend = Kmalloc(memory, vmap=True)
        region = await backend.acquire(1025 * PAGE_SIZE, 8, GFP.KERNEL)
        assert memory.free_pages == 4096 - 1025
        await backend.release(region)
        assert memory.free_pages == 4096
        with pytest.raises(MemoryError, match="more than all memory"):
            await backend.acquire(4097 * PAGE_SIZE, 8, GFP.KERNEL)
        assert memory.lowest_free == 4096 - 1025

    async def test_a_fragmented_machine_refuses_order_5_in_linuxs_words_once_and_vmap_mends_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        memory = PhysicalMemory(4096)
        memory.fragment(1 / 32)
        before = memory.counts()

        async def fail() -> None:
            with pytest.raises(PageAllocationFailure):
                await Kmalloc(memory).acquire(ORDER_5, 8, GFP.NOIO)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail, name="z_wr_int")
        (record,) = caplog.records
        assert record.getMessage() == "z_wr_int: page allocation failure. order:5, mode:0x10"
        assert (record.name, record.levelno) == ("aslab.emulation", logging.WARNING)
        with pytest.raises(PageAllocationFailure):
            Kmalloc(memory).acquire_nowait(ORDER_5, 8, GFP.NOIO)
        assert len(caplog.records) == memory.failures_by_order[5] == 2
        vmap = Kmalloc(memory, vmap=True)
        for region in (await vmap.acquire(ORDER_5, 8, GFP.NOIO), vmap.acquire_nowait(ORDER_5, 8, GFP.NOIO)):
            await vmap.release(region)
        assert memory.counts() == before

    @pytest.mark.parametrize("vmap", [False, True])
    async def test_without_io_it_never_waits_for_writeback(self, vmap: bool) -> None:
        memory = PhysicalMemory(64, min=0)
        cache = PageCache(memory, dirty=64, writeback=1)
        backend = Kmalloc(memory, vmap=vmap)
        begin = anyio.current_time()
        with pytest.raises(PageAllocationFailure):
            await backend.acquire(PAGE_SIZE, 8, GFP.NOIO)
        assert anyio.current_time() == begin
        region = await backend.acquire(PAGE_SIZE, 8, GFP.KERNEL)
        assert anyio.current_time() - begin == pytest.approx(32)
        await backend.release(region)
        assert (cache.dirty, memory.free_pages) == (32, 32)

    async def test_acquire_nowait_never_reclaims(self) -> None:
        memory = PhysicalMemory(64, min=0)
        cache = PageCache(memory, clean=64)
        with pytest.raises(PageAllocationFailure):
            Kmalloc(memory).acquire_nowait(PAGE_SIZE, 8, GFP.KERNEL)
        assert cache.reclaims == 0

    async def test_a_vmap_that_fails_in_the_middle_keeps_nothing(self) -> None:
        memory = PhysicalMemory(128, min=16)
        backend = Kmalloc(memory, vmap=True)
        with pytest.raises(PageAllocationFailure):
            await backend.acquire(120 * PAGE_SIZE, 8, GFP.KERNEL)
        with pytest.raises(PageAllocationFailure):
            backend.acquire_nowait(120 * PAGE_SIZE, 8, GFP.NOWAIT)
        assert (memory.free_pages, memory.lowest_free) == (128, 16)

    @pytest.mark.parametrize("vmap", [False, True])
    async def test_a_call_takes_its_delay_and_each_page(self, vmap: bool) -> None:
        backend = Kmalloc(PhysicalMemory(256), per_page=0.5, per_call=10, vmap=vmap)
        begin = anyio.current_time()
        await backend.acquire(128 * PAGE_SIZE, 8, GFP.KERNEL)
        assert anyio.current_time() - begin == pytest.approx(10 + 64)

    async def test_the_seed_decides_the_delays(self) -> None:
        async def spent(seed: int) -> float:
            delay = Uniform(1, 2)
            backend = Kmalloc(PhysicalMemory(256), per_page=delay, per_call=delay, seed=seed)
            begin = anyio.current_time()
            await backend.acquire(ORDER_5, 8, GFP.KERNEL)
            return round(anyio.current_time() - begin, 6)

        assert await spent(1) == await spent(1) != await spent(2)

    @pytest.mark.parametrize("vmap", [False, True])
    async def test_acquire_nowait_would_block_where_a_delay_is_drawn(self, vmap: bool) -> None:
        memory = PhysicalMemory(256)
        for backend in (
            Kmalloc(memory, per_call=[1.0, 0.0], vmap=vmap),
            Kmalloc(memory, per_page=[0.0] * 31 + [1.0] + [0.0] * 32, vmap=vmap),
        ):
            with pytest.raises(anyio.WouldBlock):
                backend.acquire_nowait(ORDER_5, 8, GFP.NOWAIT)
            assert memory.free_pages == 256
            await backend.release(backend.acquire_nowait(ORDER_5, 8, GFP.NOWAIT))

    @pytest.mark.parametrize("delay", [0.0, 0.05])
    @pytest.mark.parametrize("vmap", [False, True])
    async def test_cancelled_anywhere_every_page_is_accounted_for(self, vmap: bool, delay: float) -> None:
        step, finished = 0, False
        while not finished:
            memory = PhysicalMemory(256, min=0)
            cache = PageCache(memory, clean=64, dirty=64, scan=delay, writeback=delay)
            others = [memory.allocate(0, GFP.KERNEL) for _ in range(128)]
            backend = Kmalloc(memory, per_page=delay, per_call=delay, vmap=vmap)
            regions: list[Region] = []
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_after, scope, 0 if delay else step, step * delay * 2.3)
                    regions.append(await backend.acquire((100 if vmap else 64) * PAGE_SIZE, 8, GFP.KERNEL))
            for region in regions:
                await backend.release(region)
            assert memory.free_pages + cache.clean + cache.dirty + len(others) == 256
            step, finished = step + 1, bool(regions)
        assert step > (3 if delay else 1)  # on trio, which of two tasks is first is a matter of chance
        assert cache.written == (64 if vmap else 0)

    @pytest.mark.parametrize("field", ["per_page", "per_call", "vmap"])
    async def test_bad_options_are_refused(self, field: str) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            Kmalloc(PhysicalMemory(8), **{field: -1})  # type: ignore[arg-type]


async def cancel_after(scope: anyio.CancelScope, checkpoints: int, seconds: float) -> None:
    await anyio.sleep(seconds)
    await settle(checkpoints)
    scope.cancel()
