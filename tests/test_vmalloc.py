"""Vmalloc: its lock, its delays, its page tables, and that it never keeps a page it should not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

import aslab
from aslab import GFP, ConfigError
from aslab.backends import Region
from aslab.backends._libc import PAGE_SIZE
from aslab.emulation import (
    AddressSpace,
    Kmalloc,
    PageAllocationFailure,
    PageCache,
    PhysicalMemory,
    Vmalloc,
)
from aslab.faults import Uniform
from aslab.testing import check_backend

from .helpers import Loop
from .support import settle, start

pytestmark = pytest.mark.anyio

SIZE = 128 * PAGE_SIZE


async def test_it_keeps_the_contract_of_a_backend() -> None:
    for options in ({}, {"per_page": 1e-7, "per_call": Uniform(0, 1e-5), "lock": 1e-6, "honour_gfp": True}):
        memory = PhysicalMemory(2048)
        await check_backend(partial(Vmalloc, memory, **options))  # type: ignore[arg-type]
        assert memory.free_pages == 2048


async def test_an_allocator_lives_on_it_and_leaves_nothing() -> None:
    memory = PhysicalMemory(8192)
    async with aslab.open_allocator(slabs=Vmalloc(memory), emergency=Kmalloc(memory)) as kmem:
        cache = kmem.create_cache("c", 2**20)
        async with cache.lease() as buf:
            buf.view[:5] = b"hello"
            assert memory.free_pages < 8192 - 8 * 256
    assert memory.free_pages == 8192


async def test_a_release_in_another_threads_loop_gives_the_pages_back() -> None:
    memory = PhysicalMemory(256)
    backend = Vmalloc(memory)
    region = await backend.acquire(SIZE, 8, GFP.KERNEL)
    await anyio.to_thread.run_sync(anyio.run, backend.release, region)
    assert memory.free_pages == 256


async def test_memory_is_real_and_zero_and_somebody_elses_view_outlives_it() -> None:
    backend = Vmalloc(PhysicalMemory(256))
    region = await backend.acquire(SIZE, 2 * PAGE_SIZE, GFP.KERNEL)
    assert region.address % (2 * PAGE_SIZE) == 0
    assert not any(region.memory[:SIZE])
    kept = region.memory[:10]
    kept[0] = 7
    await backend.release(region)
    assert kept[0] == 7


async def test_a_second_release_is_refused_and_frees_nothing_twice() -> None:
    memory = PhysicalMemory(256)
    backend = Vmalloc(memory)
    region = await backend.acquire(SIZE, 8, GFP.KERNEL)
    await backend.release(region)
    with pytest.raises(ValueError, match="not acquired here"):
        await backend.release(region)
    assert memory.free_pages == 256


async def test_a_cancelled_release_releases() -> None:
    memory = PhysicalMemory(256)
    backend = Vmalloc(memory)
    region = await backend.acquire(SIZE, 8, GFP.KERNEL)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend.release(region)
    assert memory.free_pages == 256


class Simulated:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual


class TestDelays(Simulated):
    async def test_it_keeps_the_contract_in_simulated_time(self) -> None:
        memory = PhysicalMemory(2048)
        await check_backend(lambda: Vmalloc(memory, per_page=0.01, per_call=1, lock=Uniform(1, 2)))
        assert memory.free_pages == 2048

    async def test_a_call_takes_its_delay_the_lock_and_each_page(self) -> None:
        backend = Vmalloc(PhysicalMemory(256), per_page=0.5, per_call=10, lock=3)
        begin = anyio.current_time()
        await backend.acquire(100 * PAGE_SIZE, 8, GFP.KERNEL)
        assert anyio.current_time() - begin == pytest.approx(10 + 3 + 50)

    async def test_page_tables_take_a_page_for_each_512(self) -> None:
        memory = PhysicalMemory(2048)
        backend = Vmalloc(memory)
        for pages, tables in ((1, 1), (512, 1), (513, 2)):
            before = memory.free_pages
            region = await backend.acquire(pages * PAGE_SIZE, 8, GFP.KERNEL)
            assert before - memory.free_pages == pages + tables
            await backend.release(region)

    async def test_concurrent_calls_interleave_at_64_pages(self) -> None:
        memory = PhysicalMemory(512, min=0)
        backend = Vmalloc(memory, per_page=1)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(backend.acquire, SIZE, 8, GFP.KERNEL)
            await anyio.sleep(64.5)
            assert memory.free_pages == 512 - 2 * 64

    async def test_the_seed_decides_the_delays(self) -> None:
        async def spent(seed: int) -> float:
            delay = Uniform(1, 2)
            backend = Vmalloc(PhysicalMemory(256), per_page=delay, per_call=delay, lock=delay, seed=seed)
            begin = anyio.current_time()
            await backend.acquire(SIZE, 8, GFP.KERNEL)
            return round(anyio.current_time() - begin, 6)

        assert await spent(1) == await spent(1) != await spent(2)

    @pytest.mark.parametrize(
        "options",
        [{"per_call": [1.0, 0.0]}, {"lock": [1.0, 0.0]}, {"per_page": [0.0] * 127 + [1.0] + [0.0] * 128}],
    )
    async def test_acquire_nowait_would_block_where_a_delay_is_drawn(self, options: dict[str, Any]) -> None:
        memory = PhysicalMemory(256)
        backend = Vmalloc(memory, **options)
        with pytest.raises(anyio.WouldBlock):
            backend.acquire_nowait(SIZE, 8, GFP.NOWAIT)
        assert memory.free_pages == 256
        await backend.release(backend.acquire_nowait(SIZE, 8, GFP.NOWAIT))
        assert (memory.free_pages, backend.calls) == (256, 2)

    @pytest.mark.parametrize("field", ["per_page", "per_call", "lock", "honour_gfp"])
    async def test_bad_options_are_refused(self, field: str) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            Vmalloc(PhysicalMemory(8), **{field: -1})  # type: ignore[arg-type]


class TestTheLock(Simulated):
    async def test_one_searches_at_a_time_in_the_order_they_came_and_the_waits_are_counted(self) -> None:
        memory = PhysicalMemory(256)
        space = AddressSpace()
        one, other = Vmalloc(memory, lock=10, space=space), Vmalloc(memory, lock=10, space=space)
        ends: list[tuple[str, float]] = []
        begin = anyio.current_time()

        async def call(name: str, backend: Vmalloc) -> None:
            await backend.acquire(1, 8, GFP.KERNEL)
            ends.append((name, round(anyio.current_time() - begin, 6)))

        async with anyio.create_task_group() as tasks:
            for name, backend in (("a", one), ("b", other), ("c", one)):
                tasks.start_soon(call, name, backend)
                await anyio.sleep(1)
        assert ends == [("a", 10), ("b", 20), ("c", 30)]
        assert (space.calls, one.calls, other.calls, space.lock_waits) == (3, 2, 1, 2)
        assert space.lock_wait_total == pytest.approx(9 + 18)
        assert space.lock_wait_longest == pytest.approx(18)
        assert space.lock_held_total == pytest.approx(30)
        assert not space.held

    async def test_vmallocs_have_locks_of_their_own_by_default(self) -> None:
        memory = PhysicalMemory(256)
        begin = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for backend in (Vmalloc(memory, lock=10), Vmalloc(memory, lock=10)):
                tasks.start_soon(backend.acquire, 1, 8, GFP.KERNEL)
        assert anyio.current_time() - begin == pytest.approx(10)

    async def test_pages_are_got_without_the_lock(self) -> None:
        backend = Vmalloc(PhysicalMemory(256), per_page=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.acquire, 10 * PAGE_SIZE, 8, GFP.KERNEL)
            await anyio.sleep(5)
            assert not backend.space.held
        assert backend.space.lock_held_total == 0

    async def test_acquire_nowait_would_block_while_the_lock_is_held(self) -> None:
        memory = PhysicalMemory(256)
        backend = Vmalloc(memory, lock=[10.0, 0.0])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.acquire, 1, 8, GFP.KERNEL)
            await anyio.sleep(1)
            with pytest.raises(anyio.WouldBlock):
                backend.acquire_nowait(1, 8, GFP.NOWAIT)
        assert memory.free_pages == 256 - 2

    @pytest.mark.parametrize("who", [0, 1, 2])
    async def test_who_is_cancelled_in_the_queue_or_with_the_lock_lets_the_others_through(self, who: int) -> None:
        space = AddressSpace()
        scopes = [anyio.CancelScope() for _ in range(3)]
        through: list[int] = []

        async def call(number: int) -> None:
            with scopes[number]:
                await space.search(10)
                through.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(call, number)
                await anyio.sleep(1)
            scopes[who].cancel()
        assert through == [number for number in range(3) if number != who]
        assert not space.held
        assert not space._queue

    @pytest.mark.parametrize("native", [False, True], ids=["scope", "Task.cancel"])
    async def test_a_lock_handed_to_one_who_is_cancelled_at_that_moment_goes_on_to_the_next(
        self, native: bool, virtual: Loop
    ) -> None:
        if native and virtual[0] == "trio":
            pytest.skip("trio has no Task.cancel")
        space = AddressSpace()
        space.held = True
        cancels: list[Callable[[], object]] = []
        through: list[int] = []

        async def call(number: int) -> None:
            scope = anyio.CancelScope()
            task = asyncio.current_task() if native else None
            cancels.append(scope.cancel if task is None else task.cancel)
            # what a task is cancelled by must not cancel the task group too
            with contextlib.suppress(asyncio.CancelledError) if native else scope:
                await space.search(10)
                through.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(2):
                await start(tasks, call, number)
            space._pass_on()
            cancels[0]()  # the lock is on its way, and the task has not run yet
        assert through == [1]
        assert not space.held


class TestPages(Simulated):
    async def test_more_than_all_memory_is_refused_before_anything_is_taken(self) -> None:
        memory = PhysicalMemory(64)
        with pytest.raises(MemoryError, match="more than all memory"):
            await Vmalloc(memory).acquire(65 * PAGE_SIZE, 8, GFP.KERNEL)
        assert memory.lowest_free == 64

    async def test_a_failure_in_the_middle_gives_everything_back(self) -> None:
        memory = PhysicalMemory(128, min=16)
        backend = Vmalloc(memory)
        with pytest.raises(PageAllocationFailure):
            await backend.acquire(120 * PAGE_SIZE, 8, GFP.KERNEL)
        with pytest.raises(PageAllocationFailure):
            backend.acquire_nowait(112 * PAGE_SIZE, 8, GFP.NOWAIT)  # one short: the page table
        assert (memory.free_pages, memory.lowest_free) == (128, 16)

    async def test_fragmentation_is_no_hindrance(self) -> None:
        memory = PhysicalMemory(1024)
        memory.fragment(1 / 2)
        assert not any(memory.counts()[1:])
        await Vmalloc(memory).acquire(SIZE, 8, GFP.KERNEL)

    def full_but(self, free: int) -> tuple[PhysicalMemory, PageCache]:
        memory = PhysicalMemory(128 + 40, min=0)
        cache = PageCache(memory, dirty=40, writeback=1000)
        while memory.free_pages > free:
            memory.allocate(0, GFP.MEMALLOC)
        return memory, cache

    async def test_page_tables_reclaim_with_io_though_the_caller_asked_for_none(self) -> None:
        memory, cache = self.full_but(16)
        with anyio.move_on_after(500) as scope:
            await Vmalloc(memory).acquire(16 * PAGE_SIZE, 8, GFP.NOIO)
        assert scope.cancelled_caught, "it is stuck in writeback"
        assert cache.reclaims == 1
        assert memory.free_pages == 16

    async def test_with_honour_gfp_it_is_refused_instead(self) -> None:
        memory, cache = self.full_but(16)
        begin = anyio.current_time()
        with pytest.raises(PageAllocationFailure):
            await Vmalloc(memory, honour_gfp=True).acquire(16 * PAGE_SIZE, 8, GFP.NOIO)
        assert anyio.current_time() == begin
        assert (cache.written, memory.free_pages) == (0, 16)

    async def test_acquire_nowait_never_reclaims(self) -> None:
        memory, cache = self.full_but(16)
        with pytest.raises(PageAllocationFailure):
            Vmalloc(memory).acquire_nowait(16 * PAGE_SIZE, 8, GFP.KERNEL)
        assert (cache.reclaims, memory.free_pages) == (0, 16)

    async def test_cancelled_at_any_moment_every_page_is_accounted_for(self) -> None:
        moment, finished = 0.0, False
        while not finished:
            memory = PhysicalMemory(256, min=0)
            cache = PageCache(memory, clean=64, dirty=64, scan=0.1, writeback=0.2)
            backend = Vmalloc(memory, per_page=0.05, per_call=1, lock=1)
            regions: list[Region] = []
            with anyio.CancelScope(deadline=anyio.current_time() + moment):
                regions.append(await backend.acquire(250 * PAGE_SIZE, 8, GFP.KERNEL))
            for region in regions:
                await backend.release(region)
            assert memory.free_pages + cache.clean + cache.dirty == 256
            assert not backend.space.held
            moment, finished = moment + 0.37, bool(regions)
        assert moment > 20, "it went through reclaim and writeback"

    async def test_cancelled_after_any_number_of_checkpoints_every_page_is_accounted_for(self) -> None:
        checkpoints, finished = 0, False
        while not finished:
            memory = PhysicalMemory(256, min=0)
            cache = PageCache(memory, clean=64, dirty=64)
            backend = Vmalloc(memory)
            regions: list[Region] = []
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_after, scope, checkpoints)
                    regions.append(await backend.acquire(250 * PAGE_SIZE, 8, GFP.KERNEL))
            for region in regions:
                await backend.release(region)
            assert memory.free_pages + cache.clean + cache.dirty == 256
            assert not backend.space.held
            checkpoints, finished = checkpoints + 1, bool(regions)
        assert checkpoints > 5


def test_a_run_in_simulated_time_is_the_same_each_time(virtual: Loop) -> None:
    if virtual[0] == "trio":
        pytest.skip("trio runs tasks that are ready in random order")

    def one_run() -> list[object]:
        trace: list[object] = []

        async def caller(memory: PhysicalMemory, backend: Vmalloc, number: int) -> None:
            for _ in range(5):
                try:
                    with anyio.move_on_after(20 + number):
                        region = await backend.acquire((number + 1) * 20 * PAGE_SIZE, 8, GFP.KERNEL)
                        try:
                            await anyio.sleep(number)
                        finally:
                            await backend.release(region)
                except MemoryError as exc:
                    trace.append(str(exc))
                trace.append((number, anyio.current_time(), memory.counts()))

        async def main() -> None:
            memory = PhysicalMemory(512)
            PageCache(memory, clean=100, dirty=200, scan=Uniform(0, 0.1), writeback=Uniform(0, 1))
            backend = Vmalloc(memory, per_page=Uniform(0, 0.1), lock=Uniform(0, 3))
            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    tasks.start_soon(caller, memory, backend, number, name=f"caller {number}")

        anyio.run(main, backend=virtual[0], backend_options=virtual[1])
        return trace

    assert one_run() == one_run()


async def cancel_after(scope: anyio.CancelScope, checkpoints: int) -> None:
    await settle(checkpoints)
    scope.cancel()
