"""Other threads, functions that the loop calls outside of any task, other loops, and loops that are gone."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio import to_thread

import aslab
from aslab import KM, CacheClosedError, lab
from aslab._cache import pool_of
from aslab._kmem._depot import Depot
from aslab._kmem._errands import Errand
from aslab._kmem._line import Waiters
from aslab.backends import Heap, Mmap, _threads
from aslab.faults import Latency
from aslab.testing import check_consistency

from .helpers import all_slots, new_depot
from .support import SIZE, Gate, Instant, allocator, settle

pytestmark = pytest.mark.anyio


async def in_callback(call: Callable[[], Any]) -> Any:
    """Have the loop call a function outside of any task."""
    done, result = anyio.Event(), []

    def called() -> None:
        try:
            result.append(call())
        except BaseException as exc:
            result.append(exc)
        done.set()

    try:
        asyncio.get_running_loop().call_soon(called)
    except RuntimeError:
        trio.lowlevel.current_trio_token().run_sync_soon(called)
    await done.wait()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


class TestCallbacks:
    async def test_alloc_nowait_on_a_miss_asks_for_growth(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_emergency=0)
            with pytest.raises(anyio.WouldBlock):
                await in_callback(cache.alloc_nowait)
            with anyio.fail_after(30):
                while not cache.stats().slab_total:
                    await anyio.sleep(0.001)
            buf = await in_callback(cache.alloc_nowait)
            await in_callback(buf.free)

    async def test_below_the_watermark_nothing_is_lost(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, watermark=8)
            await cache.prefill(8)
            buf = await in_callback(cache.alloc_nowait)
            await settle()
            assert cache.stats().obj_held == 1
            assert cache.stats().slab_create == 2
            buf.free()

    async def test_cache_with_a_reserve_made_there_fills_it(self) -> None:
        async with allocator() as kmem:
            cache = await in_callback(lambda: kmem.create_cache("c", SIZE, reserve=2))
            with anyio.fail_after(30):
                await kmem.ready()
            async with cache.lease(KM.PUSHPAGE):
                pass

    async def test_free_there_serves_who_waits_at_the_limit_for_another_caches_slab(self) -> None:
        async with allocator(limit=8 * SIZE) as kmem, anyio.create_task_group() as tasks:
            one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
            held = await one.alloc()
            served = anyio.Event()

            async def caller() -> None:
                async with two.lease():
                    served.set()

            tasks.start_soon(caller)
            await settle()
            await in_callback(held.free)
            with anyio.fail_after(30):
                await served.wait()


class TestAllocBlocking:
    async def test_waits_in_line_for_a_free(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=1)
            held = await cache.alloc()
            got: list[aslab.Buffer[Any]] = []

            def thread() -> None:
                got.append(cache.alloc_blocking())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(to_thread.run_sync, thread)
                with anyio.fail_after(30):
                    while not cache.stats().waiters:
                        await anyio.sleep(0.001)
                assert not got
                held.free()
            got[0].view[:] = bytes(SIZE)
            got[0].free()

    async def test_on_a_hit_needs_no_loop(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE)
            await cache.prefill(1)
            got: list[aslab.Buffer[Any]] = []
            thread = threading.Thread(target=lambda: got.append(cache.alloc_blocking()))
            thread.start()
            thread.join(30)  # the loop is blocked by this
            got[0].free()

    async def test_times_out_and_loses_nothing(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=1)
            held = await cache.alloc()
            with pytest.raises(TimeoutError, match=r"cache 'c' \(1 held, .*no object came within 0.01 s"):
                await to_thread.run_sync(lambda: cache.alloc_blocking(timeout=0.01))
            with anyio.fail_after(30):
                while cache.stats().waiters:
                    await anyio.sleep(0.001)
            held.free()
            (await cache.alloc()).free()

    async def test_is_noted_if_it_waited_for_long_and_not_who_comes_before_it_goes_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        brought, goes_on = threading.Event(), threading.Event()

        class Slow(Errand[Any]):
            def run(self, *args: Any) -> Any:
                what = super().run(*args)
                brought.set()
                goes_on.wait(30)
                return what

        monkeypatch.setattr("aslab._cache.Errand", Slow)
        monkeypatch.setattr("aslab._kmem._slowpath.LONG", 0.0)
        async with allocator() as kmem:
            options: dict[str, Any] = {"objects_per_slab": 2, "max_objects": 2, "holders_sample": 2**20}
            cache = kmem.create_cache("c", SIZE, **options, movable=True)  # so that no hit is a short way
            held = await cache.alloc_many(2)
            got: list[aslab.Buffer[memoryview]] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(to_thread.run_sync, lambda: got.append(cache.alloc_blocking()))
                while not cache.stats().waiters:
                    await anyio.sleep(0.001)
                held.pop().free()
                await to_thread.run_sync(brought.wait, 30)
                held.pop().free()
                with cache.alloc_nowait():
                    assert cache.holders() == ()
                goes_on.set()
            assert len(cache.holders()) == 1
            got.pop().free()

    async def test_nosleep_never_blocks(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_emergency=0)
            with pytest.raises(anyio.WouldBlock):
                await to_thread.run_sync(lambda: cache.alloc_blocking(KM.NOSLEEP))

    async def test_is_told_if_the_last_task_ends_while_it_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asks, over = threading.Event(), threading.Event()
        told: list[type[Exception]] = []

        def at_hand(*_: object) -> None:
            asks.set()
            over.wait(30)

        monkeypatch.setattr("aslab._cache.at_hand", at_hand)

        def thread() -> None:
            try:
                cache.alloc_blocking(timeout=60)  # not what ends it
            except Exception as exc:
                told.append(type(exc))

        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE)
            caller = threading.Thread(target=thread)
            caller.start()
            assert asks.wait(30)
        over.set()
        caller.join(30)
        assert told == [CacheClosedError]

    async def test_is_sent_away_when_the_cache_closes(self) -> None:
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, max_objects=1)
            held = await cache.alloc()

            async def caller() -> None:
                with pytest.raises(CacheClosedError):
                    await to_thread.run_sync(cache.alloc_blocking)

            tasks.start_soon(caller)
            with anyio.fail_after(30):
                while not cache.stats().waiters:
                    await anyio.sleep(0.001)
            with pytest.warns(ResourceWarning):
                await cache.aclose()
            held.free()

    @pytest.mark.parametrize("merge", [False, True], ids=["alone", "one of two that share a pool"])
    async def test_is_sent_away_when_the_cache_closes_before_the_loop_hears_of_it(self, *, merge: bool) -> None:
        async with allocator() as kmem:
            cache, _ = (kmem.create_cache(name, SIZE, merge=merge) for name in ("c", "other"))
            ends: list[type[Exception]] = []

            def thread() -> None:
                try:
                    cache.alloc_blocking(timeout=60).free()  # not what ends it
                except Exception as exc:
                    ends.append(type(exc))

            caller = threading.Thread(target=thread)
            caller.start()
            while caller.is_alive() and not pool_of(cache).arena.errands:
                caller.join(0.0001)  # the loop is blocked by this
            await cache.aclose()
            await to_thread.run_sync(caller.join)
            assert ends == [CacheClosedError]

    async def test_is_refused_on_the_event_loops_thread(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE)
            with pytest.raises(RuntimeError, match="await alloc"):
                cache.alloc_blocking()

    async def test_what_there_can_never_be_is_refused(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, reserve=8, max_objects=8)
            with pytest.raises(aslab.ConfigError):
                await to_thread.run_sync(cache.alloc_blocking)

    async def test_patience_runs_while_the_loop_is_busy_and_nothing_is_lost(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE)
            late: list[type[BaseException]] = []

            def thread() -> None:
                try:
                    cache.alloc_blocking(timeout=0.01)
                except TimeoutError as exc:
                    late.append(type(exc))

            caller = threading.Thread(target=thread)
            caller.start()
            caller.join(30)  # the loop is blocked by this
            assert late == [TimeoutError]
            await anyio.sleep(0.2)
            assert cache.stats().obj_held == 0
            assert cache.stats().waiters == 0

    async def test_many_threads_with_short_patience_lose_nothing(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=3)
            ended: list[str] = []

            def thread(seed: int) -> None:
                draw = random.Random(seed)
                for _ in range(40):
                    try:
                        buf = cache.alloc_blocking(timeout=draw.choice([0.0001, 0.001, 0.01]))
                    except TimeoutError:
                        ended.append("late")
                    else:
                        time.sleep(draw.choice([0, 0.0005]))
                        buf.free()
                        ended.append("served")

            async with anyio.create_task_group() as tasks:
                for seed in range(8):
                    tasks.start_soon(to_thread.run_sync, thread, seed)
            assert len(ended) == 8 * 40
            with anyio.fail_after(30):
                while cache.stats().waiters or cache.stats().obj_held:
                    await anyio.sleep(0.001)
            check_consistency(cache)
            for buf in [await cache.alloc(timeout=30) for _ in range(3)]:
                buf.free()


async def test_what_belongs_to_the_loops_thread_is_touched_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line rebuilds its heap as who is first leaves: from another thread waiters fell out of it."""
    mine, others = threading.get_ident(), set()
    leave = Waiters.leave

    def leaving(self: Waiters[Any], waiter: Any) -> bool:
        others.add(threading.get_ident())
        return leave(self, waiter)

    monkeypatch.setattr(Waiters, "leave", leaving)
    async with allocator(limit=16 * SIZE) as kmem, anyio.create_task_group() as tasks:
        caches = [kmem.create_cache(name, SIZE) for name in ("one", "two")]

        def thread() -> None:
            for number in range(200):
                try:
                    caches[number % 2].alloc_nowait(KM.PUSHPAGE if number % 3 else KM.NOSLEEP).free()
                except anyio.WouldBlock:
                    time.sleep(0)

        async def caller(cache: aslab.Cache[Any]) -> None:
            for _ in range(50):
                async with cache.lease():
                    await anyio.lowlevel.checkpoint()

        for _ in range(2):
            tasks.start_soon(to_thread.run_sync, thread)
        for number in range(40):
            tasks.start_soon(caller, caches[number % 2])
    assert others == {mine}


async def test_another_threads_loop_is_told_at_once() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)

        async def elsewhere() -> None:
            for call in (cache.alloc(), cache.alloc_many(2), cache.prefill(1), cache.reap()):
                with pytest.raises(RuntimeError, match="another thread; from here call alloc_nowait"):
                    await call

        await to_thread.run_sync(anyio.run, elsewhere)
        await to_thread.run_sync(lambda: anyio.run(elsewhere, backend="trio"))


@pytest.mark.parametrize("waits", ["alloc", "prefill"])
def test_free_for_a_waiter_whose_loop_is_closed_raises_nothing(waits: str) -> None:
    loop = asyncio.new_event_loop()
    kept: list[Any] = []

    async def main() -> None:
        opened = aslab.open_allocator(slabs=Instant())
        kmem = await opened.__aenter__()
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        kept.extend(
            [
                opened,
                await cache.alloc(),
                asyncio.ensure_future(cache.alloc() if waits == "alloc" else cache.prefill(1)),
            ]
        )
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    loop.close()
    kept[1].free()
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]


class TestNoThreadToBeHad:
    @pytest.fixture(autouse=True)
    def no_threads(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        left = [3]
        run_sync = to_thread.run_sync

        async def refuse(call: Callable[[], Any], **options: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise RuntimeError("can't start new thread")
            return await run_sync(call, **options)

        monkeypatch.setattr(to_thread, "run_sync", refuse)
        return left

    async def test_growth_is_tried_again(self) -> None:
        async with aslab.open_allocator(grow_timeout=1000) as kmem:
            cache = kmem.create_cache("c", SIZE)
            async with cache.lease() as buf:
                assert not buf.emergency
            assert cache.stats().slab_fail == 3

    async def test_emergency_objects_need_none(self, no_threads: list[int]) -> None:
        no_threads[0] = 10**9
        async with aslab.open_allocator(grow_timeout=0.01) as kmem:
            for size in (SIZE, 2**20):
                async with kmem.create_cache(f"c{size}", size).lease() as buf:
                    assert buf.emergency
            no_threads[0] = 0

    async def test_what_must_be_done_waits_for_one(self, no_threads: list[int]) -> None:
        no_threads[0] = 0
        mmap = Mmap()
        region = await mmap.acquire(SIZE, SIZE, aslab.GFP.KERNEL)
        no_threads[0] = 3
        await mmap.release(region)
        assert no_threads[0] == 0
        assert region.token is None

    async def test_what_the_call_itself_raises_is_no_want_of_threads(self, no_threads: list[int]) -> None:
        no_threads[0] = 0

        def fails() -> None:
            raise RuntimeError("its own")

        with pytest.raises(RuntimeError, match="its own"):
            await _threads.run_blocking(fails, undo=lambda _: None)
        await Heap().release(await Heap().acquire(SIZE, 64, aslab.GFP.KERNEL))


class TestLate:
    async def test_a_grow_whose_thread_has_finished_is_not_late_however_busy_the_loop(self) -> None:
        def acquire(nbytes: int, align: int, gfp: aslab.GFP) -> bytearray:
            return bytearray(nbytes + align)

        slabs = aslab.backends.Callback(acquire, lambda _: None)
        async with aslab.open_allocator(slabs=slabs, grow_timeout=0.02) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            async with anyio.create_task_group() as tasks:

                async def busy() -> None:
                    while (
                        True
                    ):  # to the end: on an idle loop the thread would have 20 ms, which a busy machine exceeds
                        time.sleep(0.015)  # noqa: ASYNC251  (what a busy loop does)
                        await anyio.lowlevel.checkpoint()

                async def caller() -> None:
                    for _ in range(2):
                        async with cache.lease():
                            await anyio.lowlevel.checkpoint()

                for _ in range(2):
                    tasks.start_soon(busy)
                async with anyio.create_task_group() as callers:
                    for _ in range(3):
                        callers.start_soon(caller)
                tasks.cancel_scope.cancel()
            stats = cache.stats()
            assert (stats.timeouts, stats.obj_deadlock, stats.obj_emergency_max) == (0, 0, 0)

    async def test_a_stuck_grow_is_late_on_a_busy_loop_too(self) -> None:
        async with allocator(slabs=Gate(), grow_timeout=0.02, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE)
            over = anyio.Event()

            async def busy() -> None:
                while not over.is_set():
                    time.sleep(0.005)  # noqa: ASYNC251
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(busy)
                with anyio.fail_after(30):
                    async with cache.lease() as buf:
                        assert buf.emergency
                over.set()

    @pytest.mark.parametrize("loop", ["asyncio", "trio"])
    def test_one_hiccup_of_the_loop_before_the_worker_has_its_turn_is_no_lateness(self, loop: str) -> None:
        async def main() -> None:
            async with aslab.open_allocator(slabs=Latency(Instant(), 0.09), grow_timeout=0.1) as kmem:
                cache = kmem.create_cache("c", SIZE)

                async def hiccup() -> None:
                    lab.current().spend(0.15)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cache.prefill, 1)
                    tasks.start_soon(hiccup)
                    async with cache.lease() as buf:
                        assert not buf.emergency
                assert cache.stats().obj_deadlock == 0

        for seed in range(4):  # another order of tasks each
            lab.run(main, seed=seed, loop=loop)

    @pytest.mark.parametrize("loop", ["asyncio", "trio"])
    def test_objects_that_take_long_to_construct_do_not_make_growth_late(self, loop: str) -> None:
        def ctor(memory: memoryview) -> int:
            lab.current().spend(0.005)
            return len(memory)

        async def main() -> None:
            async with allocator(grow_timeout=0.01) as kmem:
                cache = kmem.create_cache("c", SIZE, ctor=ctor, objects_per_slab=32)
                async with cache.lease() as buf:
                    assert not buf.emergency
                assert cache.stats().timeouts == 0

        lab.run(main, loop=loop)


def test_an_interrupt_at_any_step_leaves_no_lock_taken() -> None:
    """Ctrl-C raises as a function starts or a call returns: here at each of these, in turn."""

    class Interrupt(BaseException):
        pass

    def at(number: int, action: Callable[[], object]) -> bool:
        """Run it, interrupted at the ``number``-th of them in the depot; whether it got so far."""
        left = [number]

        def profile(frame: Any, event: str, _: object) -> None:
            if (
                event in ("call", "c_return")
                and frame.f_code.co_filename == sys.modules[Depot.__module__].__file__
            ):
                left[0] -= 1
                if left[0] == 0:
                    raise Interrupt

        sys.setprofile(profile)
        try:
            action()
        except Interrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    for name in ("flush", "drain", "take"):
        number = 0
        while True:
            number += 1
            depot, magazine = new_depot(2)
            for _ in range(6):
                slot = depot.slabs.take()
                assert slot is not None
                magazine.append(slot)
            interrupted = at(number, getattr(depot, name))
            assert not depot.lock.locked(), f"{name}, step {number}"
            if not interrupted:
                break
        assert number > 3
        assert all_slots(depot, magazine)
