"""The allocator's own life: what comes out of its block, closing, threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

import aslab
from aslab import GFP, Buffer, CacheClosedError, lab
from aslab._allocator import tasks_of
from aslab.backends import Callback, Mmap, Region
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle

pytestmark = pytest.mark.anyio


async def test_what_is_raised_in_the_block_comes_out_as_it_is() -> None:
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with allocator():
            raise error
    assert caught.value is error
    group = ExceptionGroup("mine", [ValueError()])
    with pytest.raises(ExceptionGroup) as caught_group:
        async with allocator() as kmem:
            (await kmem.create_cache("c", SIZE).alloc()).free()
            raise group
    assert caught_group.value is group


async def test_cancelling_the_block_closes_everything() -> None:
    slabs = Instant()
    with anyio.CancelScope() as scope:
        async with aslab.open_allocator(slabs=slabs) as kmem:
            await kmem.create_cache("c", SIZE).prefill(8)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not slabs.outstanding


async def test_failure_of_aslabs_own_tasks_does_come_out() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with allocator() as kmem:
            tasks_of(kmem).arena.attend_soon(None)  # type: ignore[arg-type]
            await anyio.sleep(10)
    assert caught.value.subgroup(AttributeError) is not None


async def test_interrupt_while_closing_leaves_no_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("aslab._tasks.Tasks.close", interrupted)
    with anyio.fail_after(30):
        try:
            async with aslab.open_allocator():
                pass
        except BaseException as exc:
            group = exc if isinstance(exc, BaseExceptionGroup) else BaseExceptionGroup("", [exc])
            assert group.subgroup(KeyboardInterrupt) is not None


async def test_closed_allocator_makes_no_caches_and_its_caches_are_closed() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
    with pytest.raises(CacheClosedError):
        kmem.create_cache("d", SIZE)
    with pytest.raises(CacheClosedError):
        await cache.alloc()
    assert kmem.caches == ()


async def test_buffers_held_over_the_end_warn_stay_valid_and_go_back_when_freed() -> None:
    released: list[object] = []
    freed = threading.Event()

    def release(memory: object) -> None:
        released.append(memory)
        freed.set()

    backend = Callback(lambda nbytes, align, gfp: bytearray(nbytes + align), release)
    with pytest.warns(ResourceWarning, match=r"'c'.* 2 buffers"):
        async with aslab.open_allocator(slabs=backend) as kmem:
            cache = kmem.create_cache("c", SIZE)
            bufs = [await cache.alloc() for _ in range(2)]
    bufs[0].view[:] = b"x" * SIZE
    assert bytes(bufs[0].view) == b"x" * SIZE
    bufs[0].free()
    assert not released
    bufs[1].free()
    assert await anyio.to_thread.run_sync(freed.wait, 30)
    assert len(released) == 1


async def test_buffers_of_real_memory_held_over_the_end_crash_nothing() -> None:
    with pytest.warns(ResourceWarning):
        async with aslab.open_allocator() as kmem:
            cache = kmem.create_cache("c", 2**20)
            buf = await cache.alloc()
    part = buf.view[8:16]
    part[:] = b"12345678"
    with pytest.warns(ResourceWarning):
        del buf, cache, kmem
        gc.collect()
    assert bytes(part) == b"12345678", "a slice outlives even the handle, and keeps the mapping"


async def test_closing_with_a_grow_stuck_in_a_thread_returns_with_a_warning_and_its_region_is_released() -> None:
    go_on = threading.Event()
    released = threading.Event()
    entered = threading.Event()

    def acquire(nbytes: int, align: int, gfp: GFP) -> bytearray:
        entered.set()
        go_on.wait()
        return bytearray(nbytes + align)

    with pytest.warns(ResourceWarning, match="'c' had been stuck"):
        async with aslab.open_allocator(slabs=Callback(acquire, lambda _: released.set())) as kmem:
            cache = kmem.create_cache("c", SIZE)
            (await cache.alloc()).free()
            assert await anyio.to_thread.run_sync(entered.wait, 30)
            begin = time.monotonic()
    # Not a measurement: without the abandonment this would hang for good.
    assert time.monotonic() - begin < 60
    assert not released.is_set()
    go_on.set()
    assert await anyio.to_thread.run_sync(released.wait, 30)


async def test_closing_with_a_release_stuck_says_so() -> None:
    class StuckRelease(Instant):
        async def release(self, region: Region) -> None:
            await anyio.sleep_forever()

    with pytest.warns(ResourceWarning, match="still to be released"):
        async with aslab.open_allocator(slabs=StuckRelease()) as kmem:
            await kmem.create_cache("c", SIZE).prefill(1)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_closing_does_not_take_its_own_loop_being_late_for_a_release_that_is_stuck(loop: str) -> None:
    class Slow(Instant):
        async def release(self, region: Region) -> None:
            await anyio.sleep(0.1)
            await super().release(region)

    async def hiccup() -> None:
        await anyio.sleep(0.05)
        lab.current().spend(0.6)  # longer than closing waits for releases

    async def main() -> None:
        async with anyio.create_task_group() as tasks, aslab.open_allocator(slabs=Slow()) as kmem:
            await kmem.create_cache("c", SIZE).prefill(1)
            tasks.start_soon(hiccup)

    for seed in range(4):  # another order of tasks each
        lab.run(main, seed=seed, loop=loop)  # a warning would be an error


async def test_warning_turned_into_an_error_does_not_stop_the_closing() -> None:
    slabs = Instant()
    bufs: list[Buffer[memoryview]] = []
    with pytest.raises(ResourceWarning):
        async with aslab.open_allocator(slabs=slabs) as kmem:
            bufs.append(await kmem.create_cache("c", SIZE).alloc())
            await kmem.create_cache("d", SIZE).prefill(1)
    assert len(slabs.outstanding) == 1
    bufs.pop().free()


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    started: list[threading.Thread] = []
    yield started
    for thread in started:
        thread.join(30)
        assert not thread.is_alive()


async def test_free_from_another_thread_wakes_the_waiter(threads: list[threading.Thread]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        for _ in range(100):
            buf = await cache.alloc()
            thread = threading.Thread(target=buf.free)
            threads.append(thread)
            thread.start()
            with anyio.fail_after(30):
                (await cache.alloc()).free()
        check_consistency(cache)


async def test_many_threads_and_tasks_share_a_cache_and_nothing_is_lost(threads: list[threading.Thread]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, magazine_size=4, objects_per_slab=4, max_emergency=0)
        await cache.prefill(16)
        counts: list[int] = []

        def churn(seed: int) -> None:
            got = 0
            held: list[Buffer[memoryview]] = []
            for turn in range(3000):
                try:
                    buf = cache.alloc_nowait()
                except anyio.WouldBlock:
                    pass
                else:
                    buf.view[0] = seed
                    held.append(buf)
                    got += 1
                if len(held) > turn % 5:
                    for one in held:
                        assert one.view[0] == seed, "somebody else has written into our object"
                        one.free()
                    held.clear()
            for one in held:
                one.free()
            counts.append(got)

        async def task() -> None:
            for _ in range(500):
                async with cache.lease() as buf:
                    buf.view[0] = 99
                    await anyio.lowlevel.checkpoint()
                    assert buf.view[0] == 99

        async with anyio.create_task_group() as tasks:
            for seed in range(4):
                thread = threading.Thread(target=churn, args=(seed,))
                threads.append(thread)
                thread.start()
            for _ in range(4):
                tasks.start_soon(task)
        while any(thread.is_alive() for thread in threads):
            await anyio.sleep(0.001)
        await settle()
        stats = cache.stats()
        assert stats.obj_held == 0
        assert stats.hits + stats.misses >= sum(counts)
        check_consistency(cache)


async def test_alloc_nowait_in_a_thread_has_the_loop_grow() -> None:
    async with aslab.open_allocator(emergency=Gate()) as kmem:
        cache = kmem.create_cache("c", SIZE)

        def work() -> None:
            while True:
                try:
                    cache.alloc_nowait().free()
                except anyio.WouldBlock:
                    time.sleep(0.001)
                else:
                    return

        with anyio.fail_after(30):
            await anyio.to_thread.run_sync(work)
        assert cache.stats().slab_total == 1


async def test_hits_are_counted_exactly_over_threads() -> None:
    """`+= 1` on an attribute is one step under the GIL: nothing in between can switch threads."""
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=64, magazine_size=256)
        await cache.prefill(64)
        held = [await cache.alloc() for _ in range(64)]
        for buf in held:
            buf.free()
        before = cache.stats().hits

        def churn() -> None:
            for _ in range(20_000):
                cache.alloc_nowait().free()

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(anyio.to_thread.run_sync, churn)
        assert cache.stats().hits - before == 4 * 20_000


async def test_checkpoints_true_suspends_on_a_hit_and_false_does_not() -> None:
    for checkpoints in (True, False):
        async with allocator(checkpoints=checkpoints) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await cache.prefill(8)
            (await cache.alloc()).free()
            ran: list[bool] = []

            async def other(ran: list[bool] = ran) -> None:
                ran.append(True)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                for _ in range(3):  # trio decides by chance which of two tasks is first
                    (await cache.alloc()).free()
                assert bool(ran) is checkpoints


async def test_growth_stuck_for_long_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    with caplog.at_level(logging.WARNING, logger="aslab"):
        async with allocator(slabs=gate, kick_after=0.01) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            (await cache.alloc()).free()
            with anyio.fail_after(30):
                while "'frames' has been stuck for" not in caplog.text:
                    await anyio.sleep(0.001)


async def test_repr_of_a_cache_tells_its_state_in_words() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("frames", SIZE)
        async with cache.lease():
            assert repr(cache) == "<Cache 'frames', 4096 bytes: 1 held, 7 free, 0 waiting, marks ->"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_plain_asyncio_needs_nothing_of_anyio() -> None:
    async with asyncio.timeout(30), aslab.open_allocator(slabs=Mmap()) as kmem:
        cache = kmem.create_cache("c", SIZE)

        async def caller() -> int:
            async with cache.lease() as buf:
                await asyncio.sleep(0)
                return len(buf)

        assert await asyncio.gather(*(caller() for _ in range(20))) == [SIZE] * 20


@pytest.mark.parametrize("ticks", range(5))
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_while_it_opens_it_leaves_nothing_behind(ticks: int) -> None:
    async def service() -> None:
        async with aslab.open_allocator():
            await anyio.sleep_forever()

    task = asyncio.create_task(service())
    await settle(ticks)
    task.cancel()
    with anyio.fail_after(30):
        await asyncio.wait([task])
    assert task.cancelled()


async def test_opened_in_a_scope_that_is_cancelled_already_it_ends() -> None:
    with anyio.fail_after(30), anyio.CancelScope() as scope:
        scope.cancel()
        async with aslab.open_allocator():
            await anyio.sleep_forever()
    assert scope.cancelled_caught


def test_buffer_that_outlives_the_program_does_not_keep_it_from_ending() -> None:
    code = (
        "import asyncio, aslab, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "async def main():\n"
        "    async with aslab.open_allocator(grow_timeout=60) as kmem:\n"
        "        return await kmem.create_cache('c', 4096).alloc()\n"
        "buf = asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_program_ends_though_its_last_free_comes_when_no_thread_can_be_started_any_more() -> None:
    code = (
        "import asyncio, threading, aslab\n"
        "async def main():\n"
        "    async with aslab.open_allocator(grow_timeout=60) as kmem:\n"
        "        return await kmem.create_cache('c', 4096).alloc()\n"
        "buf = asyncio.run(main())\n"
        "start = threading.Thread.start\n"
        "def refuse(thread):\n"  # as CPython 3.12 does, but however soon the late thread comes to it
        "    if threading.current_thread().name == 'aslab late releases':\n"
        "        threading.main_thread().join()\n"
        "        raise RuntimeError('no more threads')\n"
        "    start(thread)\n"
        "threading.Thread.start = refuse\n"
        "buf.free()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("pure", ["0", "1"])
def test_what_ends_after_the_modules_were_cleared_prints_nothing(pure: str) -> None:
    code = (
        "import string, sys, asyncio, aslab\n"
        "async def main(**options):\n"
        "    async with aslab.open_allocator(grow_timeout=60) as kmem:\n"
        "        cache = kmem.create_cache('c', 64, **options)\n"
        "        bufs = [await cache.alloc() for _ in range(4)]\n"
        "        string.kept = [bufs[0].view[:1], bufs[1].view, bufs[2], bufs[3].view]\n"
        "        bufs[3].free()\n"
        "asyncio.run(main(init_on_free=True))\n"
        "sys.kept = [string, aslab]\n"  # modules that are kept are cleared, the last imported first
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        timeout=60,
        check=False,
        capture_output=True,
        env={**os.environ, "ASLAB_PURE": pure},
    )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_many_late_releases_share_one_thread() -> None:
    threads: set[int] = set()

    class Slow(Instant):
        async def release(self, region: Region) -> None:
            threads.add(threading.get_ident())
            await anyio.sleep(0.0001)
            await super().release(region)

    slabs = Slow()
    with pytest.warns(ResourceWarning, match="50 buffers"):
        async with aslab.open_allocator(slabs=slabs) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            bufs = [await cache.alloc() for _ in range(50)]
    threads.clear()  # a slab grown ahead of demand is released by the loop as the allocator closes
    before = threading.active_count()
    for buf in bufs:
        buf.free()
        assert threading.active_count() <= before + 1
    with anyio.fail_after(30):
        while slabs.outstanding:
            await anyio.sleep(0.001)
    assert threads
    assert threading.get_ident() not in threads
