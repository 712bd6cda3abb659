"""Huge pages while they come quickly, and several regions by one call."""

from __future__ import annotations

import errno
import threading

import anyio
import anyio.to_thread
import pytest

import aslab
from aslab import GFP
from aslab.backends import Mmap, Region, _huge, _mmap
from aslab.backends._huge import PAUSE_FIRST, QUICK, QuickHugePages
from aslab.backends._libc import PAGE_SIZE, prefault

from .test_backends import HUGE, MIB, resident

pytestmark = pytest.mark.anyio


class Machine:
    """Pages that take so many seconds to fault in, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.small = self.huge = 0.5 * HUGE / QUICK
        self.asked: set[int] = set()
        self.steps: list[tuple[int, str]] = []
        self.refuses = False
        self.pages = QuickHugePages(lambda: self.now, lambda: self.now)
        monkeypatch.setattr(_huge, "ask_for_huge_pages", self._ask)

    def _ask(self, address: int, nbytes: int) -> None:
        if self.refuses:
            raise OSError(errno.EINVAL, "never")
        self.asked.add(address)

    def touch(self, address: int, nbytes: int) -> None:
        huge = address in self.asked
        self.asked.discard(address)
        self.steps.append((nbytes // HUGE, "huge" if huge else "small"))
        self.now += nbytes / HUGE * (self.huge if huge else self.small)

    def prefault(self, nbytes: int, address: int = 0) -> list[tuple[int, str]]:
        self.steps.clear()
        self.pages.prefault(address, nbytes, self.touch)
        return self.steps


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_the_first_is_a_trial_and_what_is_not_aligned_is_small(machine: Machine) -> None:
    assert machine.prefault(7 * HUGE) == [(1, "huge"), (2, "huge"), (2, "huge"), (2, "huge")]
    assert machine.prefault(3 * HUGE, HUGE - PAGE_SIZE) == [(0, "small"), (2, "huge"), (0, "small")]
    assert machine.prefault(HUGE - PAGE_SIZE) == [(0, "small")]


def test_after_a_slow_one_the_next_step_is_small_and_if_that_is_quicker_so_is_all_for_a_while(
    machine: Machine,
) -> None:
    machine.huge = 100.0
    assert machine.prefault(8 * HUGE) == [(1, "huge"), (1, "small"), (6, "small")]
    assert machine.prefault(2 * HUGE) == [(2, "small")]
    machine.now += PAUSE_FIRST
    machine.prefault(2 * HUGE)
    machine.now += PAUSE_FIRST
    assert machine.prefault(HUGE) == [(1, "small")], "the pause is twice as long"
    machine.now += PAUSE_FIRST
    machine.huge = machine.small
    assert machine.prefault(3 * HUGE) == [(1, "huge"), (2, "huge")]


def test_where_all_memory_is_slow_huge_pages_go_on(machine: Machine) -> None:
    machine.huge, machine.small = 4 * HUGE / QUICK, 8 * HUGE / QUICK
    assert machine.prefault(4 * HUGE) == [(1, "huge"), (1, "small"), (1, "huge"), (1, "small")]


def test_where_there_are_none_nobody_asks_again(machine: Machine) -> None:
    machine.refuses = True
    machine.prefault(4 * HUGE)
    machine.refuses = False
    assert machine.prefault(4 * HUGE) == [(4, "small")]


async def test_by_default_slabs_of_two_mib_and_more_try_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(_huge, "ask_for_huge_pages", lambda address, nbytes: asked.append(nbytes))
    backend = Mmap()
    for nbytes in (HUGE - PAGE_SIZE, 8 * MIB):
        region = await backend.acquire(nbytes, 64, GFP.KERNEL)
        assert resident(region.address, nbytes) == 1
        await backend.release(region)
    assert asked
    assert sum(asked) <= 8 * MIB


async def test_several_regions_come_by_one_call_until_the_time_is_up() -> None:
    backend = Mmap()
    several = await backend.acquire_many(3, MIB, 64, GFP.KERNEL, within=60)
    only = await backend.acquire_many(3, MIB, 64, GFP.KERNEL, within=0)
    assert (len(several), len(only)) == (3, 1)
    assert all(resident(region.address, MIB) == 1 for region in several)
    for region in several + only:
        await backend.release(region)


async def test_those_that_came_before_memory_ran_out_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []

    def touch(address: int, nbytes: int) -> None:
        touched.append(address)
        if len(touched) > 2:
            raise MemoryError("none left")

    monkeypatch.setattr(_mmap, "prefault", touch)
    backend = Mmap()
    regions = await backend.acquire_many(8, MIB, 64, GFP.KERNEL, within=60)
    assert [region.address for region in regions] == touched[:2]
    with pytest.raises(MemoryError, match="none left"):
        await backend.acquire_many(8, MIB, 64, GFP.KERNEL, within=60)
    for region in regions:
        await backend.release(region)


async def test_abandoned_all_of_them_are_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, go = threading.Event(), threading.Event()
    touched: list[int] = []

    def touch(address: int, nbytes: int) -> None:
        prefault(address, nbytes)
        touched.append(address)
        if len(touched) == 2:
            stuck.set()
            assert go.wait(30)

    monkeypatch.setattr(_mmap, "prefault", touch)
    async with anyio.create_task_group() as tasks:
        # Of 8 MiB: a gap of 1 MiB is as large as what Python itself maps, perhaps just there.
        tasks.start_soon(Mmap(huge_pages="never").acquire_many, 2, 8 * MIB, 64, GFP.KERNEL, 60)
        with anyio.fail_after(30):
            while not stuck.is_set():
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    go.set()
    with anyio.fail_after(30):
        while any(resident(address, PAGE_SIZE) is not None for address in touched):
            await anyio.sleep(0.001)


async def test_regions_come_one_by_one_and_one_that_comes_after_a_cancellation_is_passed_on_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, came = Mmap(), list[Region]()

    def three(region: Region) -> bool:
        came.append(region)
        return len(came) < 3

    await backend.acquire_each(MIB, 64, GFP.KERNEL, three)
    assert [resident(region.address, MIB) for region in came] == [1, 1, 1]
    stuck, go, late = threading.Event(), threading.Event(), threading.Event()

    def prefault_late(address: int, nbytes: int) -> None:
        stuck.set()
        go.wait()
        prefault(address, nbytes)

    def deliver(region: Region) -> bool:
        came.append(region)
        late.set()
        return False

    monkeypatch.setattr(_mmap, "prefault", prefault_late)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.acquire_each, MIB, 64, GFP.KERNEL, deliver)
        assert await anyio.to_thread.run_sync(stuck.wait, 30)
        tasks.cancel_scope.cancel()
    go.set()
    assert await anyio.to_thread.run_sync(late.wait, 30)
    assert len(came) == 4
    for region in came:
        await backend.release(region)


async def test_what_comes_after_the_allocator_has_given_up_is_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, go = threading.Event(), threading.Event()
    touched: list[int] = []

    def prefault_late(address: int, nbytes: int) -> None:
        touched.append(address)
        if len(touched) == 2:
            stuck.set()
            go.wait()
        prefault(address, nbytes)

    monkeypatch.setattr(_mmap, "prefault", prefault_late)
    with pytest.warns(ResourceWarning, match="grow"):
        async with aslab.open_allocator(slabs=Mmap(huge_pages="never")) as kmem:
            cache = kmem.create_cache("c", 4096)
            await cache.prefill(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cache.prefill, 4 * 512)
                assert await anyio.to_thread.run_sync(stuck.wait, 30)
                tasks.cancel_scope.cancel()
    go.set()
    with anyio.fail_after(30):
        while any(resident(address, PAGE_SIZE) is not None for address in touched):
            await anyio.sleep(0.001)
