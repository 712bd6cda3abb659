"""Under pressure: the order of the steps, how much, how soon, and that nobody is harmed."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import aslab
from aslab import Allocator, ConfigError
from aslab.backends import Mmap
from aslab.emulation import Kmalloc, PhysicalMemory, Shrinker, Vmalloc
from aslab.pressure import Cgroup, Signal
from aslab.testing import check_consistency

from .support import SIZE, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio
SLAB = 8 * SIZE
INTERVAL = 5.0
"""Seconds: a third of ``expire``."""


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


def asking(asked: list[int]) -> Callable[[int], int]:
    """A client that notes what it is asked for, and frees nothing."""

    def ask(objects: int) -> int:
        asked.append(objects)
        return 0

    return ask


async def use_and_free(cache: aslab.Cache[memoryview], objects: int) -> None:
    for buf in await cache.alloc_many(objects):
        buf.free()


# -- the steps


async def test_steps_are_taken_in_order_until_enough_is_back() -> None:
    """Empty slabs, then magazines, then what clients free, then defragmentation."""
    held: list[aslab.Buffer[memoryview]] = []

    def give_up(objects: int) -> int:
        for _ in range(objects):
            held.pop().free()
        return objects

    async def prepared(kmem: Allocator) -> None:
        empty = kmem.create_cache("empty", SIZE, magazine_size=2)
        magazine = kmem.create_cache("magazine", SIZE)
        asked = kmem.create_cache("asked", SIZE, reclaim=give_up, objects_per_slab=1)
        sparse = kmem.create_cache("sparse", SIZE, movable=True)
        await empty.prefill(8)
        await use_and_free(magazine, 8)
        assert magazine.stats().obj_cached == 8
        held.extend(await asked.alloc_many(8))
        bufs = await sparse.alloc_many(16)
        one_of_each = {buf._slot.slab: buf for buf in bufs}.values()
        for buf in bufs:
            if buf not in one_of_each:
                buf.free()
        kept.extend(one_of_each)
        await sparse.reap()

    for steps in range(1, 5):
        kept: list[aslab.Buffer[memoryview]] = []
        async with allocator() as kmem:
            await prepared(kmem)
            before = {cache.name: cache.stats().slab_total for cache in kmem.caches}
            assert before == {"empty": 1, "magazine": 1, "asked": 8, "sparse": 2}
            assert await kmem.reap(steps * SLAB) == steps * SLAB
            after = [cache.stats().slab_total for cache in kmem.caches]
            assert after == [0, int(steps < 2), 8 if steps < 3 else 0, 2 if steps < 4 else 1]
            for buf in [*held, *kept]:
                buf.free()
            held.clear()


async def test_without_a_number_reap_takes_all_steps() -> None:
    asked: list[int] = []
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reclaim=asking(asked))
        bufs = await cache.alloc_many(12)
        for buf in bufs[:3]:
            buf.free()
        await kmem.reap()
        assert asked == [9]
        for buf in bufs[3:]:
            buf.free()


@pytest.mark.parametrize("nbytes", [0, -1, 1.5, "1"])
async def test_reap_refuses_what_is_no_number_of_bytes(nbytes: Any) -> None:
    async with allocator() as kmem:
        with pytest.raises(ConfigError, match=r"^nbytes: "):
            await kmem.reap(nbytes)


@pytest.mark.parametrize("answer", [None, -1, "many", 1.5], ids=repr)
async def test_a_client_that_answers_nonsense_or_raises_is_logged_and_the_rest_goes_on(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(objects: int) -> int:
        raise ZeroDivisionError

    async with allocator() as kmem:
        one = kmem.create_cache("one", SIZE, reclaim=lambda objects: answer)  # type: ignore[arg-type,return-value]
        two = kmem.create_cache("two", SIZE, reclaim=fails)
        bufs = [await one.alloc(), await two.alloc()]
        with caplog.at_level(logging.ERROR):
            assert await kmem.reap() == 0
        assert caplog.text.count("its reclaim callback failed") == 2
        assert "reclaim(n)" in caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert one.stats().obj_reclaimed == 0
        for buf in bufs:
            buf.free()


async def test_a_client_is_asked_for_no_more_than_it_holds_and_not_at_all_if_it_holds_nothing() -> None:
    asked: list[int] = []
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reclaim=asking(asked))
        await cache.prefill(8)
        await kmem.reap(100 * SIZE)
        assert asked == []
        buf = await cache.alloc()
        await kmem.reap(100 * SIZE)
        await kmem.reap(1)
        assert asked == [1, 1]
        buf.free()


# -- how soon, and how much


async def test_pressure_takes_at_once_what_was_idle_during_the_last_interval() -> None:
    signal = Signal()
    async with allocator(pressure=[signal]) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await use_and_free(cache, 80)
        await anyio.sleep(2 * INTERVAL + 0.1)
        bufs = await cache.alloc_many(10)
        assert cache.stats().slab_total == 10
        signal.press(None)
        await settle()
        assert cache.stats().slab_total == 6, "with what may lie in a magazine"
        await anyio.sleep(INTERVAL + 0.1)
        assert cache.stats().slab_total == 2
        for buf in bufs:
            buf.free()


async def test_what_was_in_use_just_before_is_back_an_interval_later() -> None:
    signal = Signal()
    async with allocator(pressure=[signal]) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await use_and_free(cache, 80)
        signal.press(None)
        await settle()
        assert cache.stats().slab_total == 10, "it may well be needed again"
        await anyio.sleep(INTERVAL)
        await settle()
        assert kmem.stats().slab_bytes == 0


async def test_what_callers_use_again_and_again_stays() -> None:
    signal = Signal()
    async with allocator(pressure=[signal]) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)

        async def caller() -> None:
            while True:
                async with cache.lease():
                    await anyio.sleep(0.5)
                await anyio.sleep(0.5)

        for _ in range(40):
            tasks.start_soon(caller)
        await anyio.sleep(20)
        for _ in range(60):
            signal.press(None)
            await anyio.sleep(1)
        stats = cache.stats()
        assert (stats.slab_create, stats.slab_destroy, stats.slab_regret) == (5, 0, 0)
        tasks.cancel_scope.cancel()


async def test_no_more_is_given_back_than_is_wanted() -> None:
    signal = Signal()
    async with allocator(pressure=[signal]) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        other = kmem.create_cache("d", SIZE, objects_per_slab=1)
        for one in (cache, other):
            await one.prefill(8)
        await anyio.sleep(2 * INTERVAL + 0.1)
        signal.press(3 * SIZE)
        await anyio.sleep(0.1)
        assert (cache.stats().slab_total, other.stats().slab_total) == (0, 8), "whole caches, one after the other"


async def test_a_cache_that_grows_is_left_alone() -> None:
    signal = Signal()
    slabs = aslab.faults.Latency(Instant(), 20.0)
    async with (
        allocator(slabs=slabs, pressure=[signal], expire=None) as kmem,
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        await anyio.sleep(2 * INTERVAL + 0.1)
        await start(tasks, cache.prefill, 16)
        signal.press(None)
        await anyio.sleep(INTERVAL + 0.1)
        assert cache.stats().slab_destroy == 0


@pytest.mark.parametrize("period", [3.0, 7.0, 11.0, 14.0])
async def test_a_slab_given_back_under_lasting_pressure_is_asked_for_again_once_and_never_more(
    period: float,
) -> None:
    """Bursts with less than the ageing time between them, and pressure all the time."""
    signal = Signal()
    async with allocator(pressure=[signal]) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE)

        async def press() -> None:
            while True:
                signal.press(None)
                await anyio.sleep(1)

        tasks.start_soon(press)
        for _ in range(30):
            await use_and_free(cache, 80)
            await anyio.sleep(period)
        stats = cache.stats()
        assert stats.slab_regret <= 1
        assert stats.slab_create <= 20
        await anyio.sleep(15 + 2 * INTERVAL)
        assert kmem.stats().slab_bytes == 0, "when the bursts have ended it goes"
        tasks.cancel_scope.cancel()


async def test_pressure_in_the_middle_of_traffic_harms_no_caller() -> None:
    signal = Signal()
    draw = random.Random(1)
    async with allocator(pressure=[signal]) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True)

        async def caller(rounds: int) -> None:
            for number in range(rounds):
                bufs = await cache.alloc_many(draw.randint(1, 9), timeout=2)
                for buf in bufs:
                    with buf.pin() as view:
                        view[:] = bytes([number]) * SIZE
                await anyio.sleep(draw.expovariate(1))
                for buf in bufs:
                    with buf.pin() as view:
                        assert view[0] == view[-1] == number
                    buf.free()

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(caller, 20 if number else 100)
            for _ in range(100):
                signal.press(draw.choice([None, SIZE, 100 * SIZE]))
                await anyio.sleep(draw.uniform(0, 1))
        check_consistency(cache)
        assert cache.stats().slab_destroy > 0
        await anyio.sleep(15)
        signal.press(None)
        await anyio.sleep(INTERVAL + 0.1)
        assert kmem.stats().slab_bytes == 0


# -- where it comes from


async def test_a_cgroup_that_nears_its_limit_gets_memory_back(tmp_path: Path) -> None:
    files = {"memory.events": "low 0\nhigh 0\nmax 0\noom 0\n", "memory.high": "1000000\n"}
    files |= {"memory.max": "max\n", "memory.current": "1200000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    async with allocator(pressure=[Cgroup(tmp_path)]) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        await cache.prefill(100)
        await anyio.sleep(2 * INTERVAL + 0.1)
        (tmp_path / "memory.events").write_text("low 0\nhigh 1\nmax 0\noom 0\n")
        while cache.stats().slab_destroy == 0:
            await anyio.sleep(0.01)
        await anyio.sleep(0.1)
        assert cache.stats().slab_destroy * SIZE >= 200000


async def test_an_emulated_machine_short_of_pages_gets_them_back() -> None:
    memory = PhysicalMemory(1024, min=32, low=128, high=256)
    slabs, single = Vmalloc(memory), Kmalloc(memory)
    async with aslab.open_allocator(slabs=slabs, emergency=single, pressure=[Shrinker(memory)]) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=8)
        await use_and_free(cache, 700)
        await anyio.sleep(2 * INTERVAL + 0.1)
        blocks = [memory.allocate(0, aslab.GFP.KERNEL) for _ in range(150)]
        assert memory.under_pressure
        await anyio.sleep(0.1)
        assert memory.free_pages >= 256
        for block in blocks:
            memory.free(block)


async def test_a_source_that_fails_is_logged_and_the_allocator_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def run(self, on_pressure: object) -> None:
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        async with allocator(pressure=[Broken()]) as kmem, kmem.create_cache("c", SIZE).lease():
            await settle()
    assert "the allocator goes on without it" in caplog.text


async def test_a_source_that_the_machine_does_not_have_is_no_matter(tmp_path: Path) -> None:
    async with allocator(pressure=[Cgroup(tmp_path / "none")]) as kmem, kmem.create_cache("c", SIZE).lease():
        await settle()


@pytest.mark.parametrize("source", [None, Signal, "psi", 3], ids=repr)
async def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(ConfigError, match=r"^pressure: .* it must be a source"):
        async with allocator(pressure=[source]):
            pass


# -- an idle service


async def test_idle_service_gives_everything_back_after_expire_and_one_interval() -> None:
    async with allocator(expire=15.0) as kmem:
        caches = [kmem.create_cache(f"{size}", size, movable=size == SIZE) for size in (SIZE, 3 * SIZE)]
        for cache in caches:
            await use_and_free(cache, 100)
        await anyio.sleep(15 + INTERVAL)
        await settle()
        assert kmem.stats().slab_bytes == 0


async def test_gibibyte_of_an_idle_service_goes_back_to_the_machine() -> None:
    """Real memory, in simulated time: the resident set is within 5 % of the start."""
    gc.collect()
    begin = _resident()
    async with aslab.open_allocator(slabs=Mmap(), expire=15.0) as kmem:
        cache = kmem.create_cache("c", 8 * 2**20, objects_per_slab=4)
        await use_and_free(cache, 128)
        full = _resident()
        assert full - begin > 0.95 * 2**30
        await anyio.sleep(15 + INTERVAL)
        while kmem.stats().slab_bytes:
            await settle()
        assert kmem.stats().slab_bytes == 0
        assert _resident() - begin < 0.05 * begin


def _resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * SIZE
