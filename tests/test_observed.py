"""What an operator sees: health, events, durations, and the bound on waiting callers."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import aslab
from aslab import (
    KM,
    Allocator,
    Buffer,
    Cache,
    CacheEvent,
    CacheFlags,
    ConfigError,
    EventKind,
    HealthState,
    TooManyWaiting,
)
from aslab._events import MOST
from aslab._histogram import BOUNDS, Times

from .helpers import Loop
from .support import SIZE, Gate, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


async def use(cache: Cache[memoryview], *, hold: float = 0.0, flags: KM = KM.SLEEP) -> None:
    async with cache.lease(flags):
        await anyio.sleep(hold)


@asynccontextmanager
async def all_held(
    kmem: Allocator, **options: Any
) -> AsyncIterator[tuple[Cache[memoryview], list[Buffer[memoryview]]]]:
    """A cache at its limit, all of whose objects are held until the end of the block."""
    cache = kmem.create_cache("frames", SIZE, objects_per_slab=1, max_objects=2, **options)
    held = await cache.alloc_many(2)
    yield cache, held
    for buf in held:
        buf.free()


class TestHealth:
    async def test_of_a_new_allocator_is_ok(self) -> None:
        async with allocator() as kmem:
            kmem.create_cache("frames", SIZE)
            assert kmem.health() == aslab.Health(HealthState.OK, ())
            assert kmem.health().ok

    async def test_callers_at_the_limit_make_it_degraded_and_then_stuck(self) -> None:
        async with allocator() as kmem, all_held(kmem) as (cache, held), anyio.create_task_group() as tasks:
            for _ in range(2):
                await start(tasks, use, cache)
            await anyio.sleep(0.9)
            assert kmem.health().ok
            await anyio.sleep(0.6)
            assert kmem.health() == aslab.Health(
                HealthState.DEGRADED,
                ("cache 'frames': 2 callers wait, the oldest for 1.5 s, at the limit: 2 objects are held",),
            )
            assert kmem.health(stuck=1.2).state is HealthState.STUCK
            await anyio.sleep(9)
            assert kmem.health().state is HealthState.STUCK
            held.pop().free()
            await settle()
            assert kmem.health().ok

    async def test_late_growth_is_degraded_while_emergency_objects_serve_everybody(self) -> None:
        async with allocator(slabs=Gate(), kick_after=None) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            buf = await cache.alloc()
            await anyio.sleep(30)
            reason = "cache 'frames': growth has been late for 30.0 s, and 1 emergency object is out"
            assert kmem.health() == aslab.Health(HealthState.DEGRADED, (reason,))
            buf.free()

    async def test_a_stuck_grow_without_room_for_emergency_objects_is_stuck(self) -> None:
        async with allocator(slabs=Gate(), kick_after=None) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("frames", SIZE, max_emergency=1)
            never = kmem.create_cache("never", SIZE, flags=CacheFlags.NOEMERGENCY)
            buf = await cache.alloc()
            await start(tasks, use, cache)
            await start(tasks, use, never)
            await anyio.sleep(12)
            health = kmem.health()
            assert health.state is HealthState.STUCK
            waits = "1 caller waits, the oldest for 12.0 s"
            assert health.reasons[1] == f"cache 'frames': {waits}, and there is no room for more emergency objects"
            assert health.reasons[3] == f"cache 'never': {waits}, and a slab has been on its way for 12.0 s"
            tasks.cancel_scope.cancel()
            buf.free()

    async def test_failing_grows_are_degraded_until_one_succeeds(self) -> None:
        gate = Gate()
        gate.error = MemoryError("none")
        gate.open()
        async with allocator(slabs=gate, emergency=Gate()) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("frames", SIZE)
            await start(tasks, use, cache)
            assert kmem.health().reasons == ("cache 'frames': the last grow failed, 1 so far",)
            gate.error = None
            await anyio.sleep(1)
            assert kmem.health().ok

    async def test_a_failed_grow_that_no_caller_is_in_need_of_is_no_trouble(self) -> None:
        gate = Gate()
        gate.open()
        async with allocator(slabs=gate) as kmem:
            cache = kmem.create_cache("frames", SIZE, objects_per_slab=2)
            held = await cache.alloc_many(2)
            gate.error = MemoryError("none")
            held.append(await cache.alloc())  # an emergency object
            (reason,) = kmem.health().reasons
            assert "the last grow failed" in reason
            held.pop(0).free()
            assert cache.stats().growth_failing
            assert kmem.health().ok
            for buf in held:
                buf.free()

    async def test_refuses_bounds_that_make_no_sense(self) -> None:
        async with allocator() as kmem:
            with pytest.raises(ConfigError, match="stuck: 1 is not allowed; it must be at least slow, 2"):
                kmem.health(slow=2, stuck=1)
            with pytest.raises(ConfigError, match="slow"):
                kmem.health(slow=-1)


class TestFigures:
    async def test_late_growth_is_timed_over_all_episodes(self) -> None:
        gate = Gate()
        async with allocator(slabs=gate, kick_after=None) as kmem:
            cache = kmem.create_cache("frames", SIZE, objects_per_slab=1)
            held = [await cache.alloc()]
            await anyio.sleep(2)
            stats = cache.stats()
            assert stats.growth_late
            assert stats.deadlocked
            assert stats.growth_late_for == pytest.approx(2)
            assert stats.growing_for == pytest.approx(2.1)
            gate.open()
            await anyio.sleep(5)
            stats = cache.stats()
            assert (stats.growth_late, stats.growth_late_for, stats.growing_for) == (False, 0.0, 0.0)
            assert stats.growth_late_total == pytest.approx(2)
            gate.shut()
            held += [await cache.alloc() for _ in range(3)]
            await anyio.sleep(1)
            assert cache.stats().growth_late_total == pytest.approx(3)
            for buf in held:
                buf.free()

    async def test_emergency_objects_are_counted_with_their_bytes(self) -> None:
        async with allocator(slabs=Gate(), kick_after=None) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            for _ in range(3):
                (await cache.alloc()).free()
                await anyio.sleep(1)
            buf = await cache.alloc()
            stats = cache.stats()
            assert (stats.obj_emergency, stats.obj_emergency_made, stats.emergency_bytes) == (1, 4, SIZE)
            assert kmem.stats().emergency_time.count == 4
            buf.free()

    async def test_waits_and_grows_are_in_their_buckets(self) -> None:
        async with allocator() as kmem, all_held(kmem) as (cache, held), anyio.create_task_group() as tasks:
            before = cache.stats().wait_time.count
            assert kmem.stats().grow_time.count == 2
            await start(tasks, use, cache)
            await anyio.sleep(0.3)
            held.pop().free()
            await settle()
            after = cache.stats().wait_time
            assert after.count == before + 1
            assert after.counts[BOUNDS.index(0.5)] == 1
            assert after.seconds == pytest.approx(0.3)

    async def test_age_of_the_oldest_waiter_is_that_of_its_own_cache_and_right_in_every_thread(self) -> None:
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            one = kmem.create_cache("one", SIZE, objects_per_slab=1, max_objects=1, merge=True)
            two = kmem.create_cache("two", SIZE, objects_per_slab=1, max_objects=1, merge=True)
            buf = await one.alloc()
            await start(tasks, use, one)
            await anyio.sleep(2)
            await start(tasks, use, two)
            await start(tasks, use, one)
            await anyio.sleep(1)
            assert [cache.stats().oldest_wait for cache in (one, two)] == pytest.approx([3, 1])
            found: list[float] = []

            def look() -> None:
                found.append(one.stats().oldest_wait)

            async def look_in_a_loop() -> None:
                look()

            for target in (look, lambda: anyio.run(look_in_a_loop, backend="trio")):  # which has another clock
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()
            assert found == pytest.approx([3, 3])
            buf.free()

    def test_a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed(self) -> None:
        times = Times()
        for seconds in (0.0, BOUNDS[0], BOUNDS[0] * 1.001, 1000.0):
            times.note(seconds)
        counts = times.snapshot().counts
        assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 1, 4)


class TestMaxWaiting:
    async def test_one_caller_too_many_is_turned_away_at_once(self) -> None:
        async with (
            allocator() as kmem,
            all_held(kmem, max_waiting=2) as (cache, held),
            anyio.create_task_group() as tasks,
        ):
            for _ in range(2):
                await start(tasks, use, cache)
            said = r"cache 'frames' \(2 held, 2 waiting, max_objects 2\): no object is free, and max_waiting is 2"
            with pytest.raises(TooManyWaiting, match=said):
                await cache.alloc()
            with pytest.raises(TooManyWaiting):
                await cache.alloc_many(2)
            stats = cache.stats()
            assert (stats.turned_away, stats.waiters, stats.max_waiting) == (2, 2, 2)
            assert kmem.health().reasons == ("cache 'frames': max_waiting 2 is reached",)
            held.pop().free()
            await settle()
            (await cache.alloc()).free()

    async def test_urgent_callers_may_always_wait(self) -> None:
        async with (
            allocator() as kmem,
            all_held(kmem, max_waiting=1) as (cache, held),
            anyio.create_task_group() as tasks,
        ):
            await start(tasks, use, cache)
            tasks.start_soon(lambda: use(cache, flags=KM.PUSHPAGE))
            tasks.start_soon(lambda: use(cache, flags=KM.MEMALLOC))
            await settle()
            assert (cache.stats().waiters, cache.stats().turned_away) == (3, 0)
            held.pop().free()


class TestEvents:
    async def test_each_event_comes_once_and_carries_its_facts(self, caplog: pytest.LogCaptureFixture) -> None:
        gate = Gate()
        got: list[CacheEvent] = []
        caplog.set_level(logging.DEBUG, "aslab")
        async with (
            anyio.create_task_group() as readers,
            allocator(slabs=gate, kick_after=1.0, grow_timeout=0.5) as kmem,
        ):

            async def read(hear: Callable[[CacheEvent], None]) -> None:
                with kmem.events() as events:
                    async for event in events:
                        hear(event)

            await start(readers, read, got.append)
            cache = kmem.create_cache("frames", SIZE, objects_per_slab=1, max_objects=2)
            held = [await cache.alloc()]
            await anyio.sleep(2.5)
            assert [event.kind for event in got] == [EventKind.LATE, EventKind.SET_ASIDE]
            gate.error = MemoryError("none left")
            gate.open()
            await settle()
            gate.error = None
            await anyio.sleep(1)
            await cache.prefill(1)
            held += [await cache.alloc() for _ in range(2)]
            for pause in (0.1, 0.1, 30):
                await anyio.sleep(pause)
                with anyio.move_on_after(1):
                    await cache.alloc()
            for buf in held:
                buf.free()
        assert [(event.kind, event.seconds) for event in got] == [
            (EventKind.LATE, 0),
            (EventKind.SET_ASIDE, 1.0),
            (EventKind.FAILED, 0),
            (EventKind.RECOVERED, pytest.approx(2.5)),
            (EventKind.AT_LIMIT, 0),
            (EventKind.AT_LIMIT, 0),
        ]
        assert {event.cache for event in got} == {"frames"}
        told = [vars(record) for record in caplog.records if hasattr(record, "aslab_event")]
        assert [[one[key] for key in ("msg", "aslab_event", "aslab_cache", "aslab_seconds")] for one in told] == [
            [event.text, event.kind, event.cache, event.seconds] for event in got
        ]

    async def test_a_reader_that_falls_behind_loses_the_oldest_and_is_told_how_many(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("frames", SIZE)
            reports = aslab._cache.pool_of(cache).growth.reports
            with kmem.events() as events:
                for number in range(MOST + 3):
                    reports.set_aside(float(number))
                assert events.lost == 3
                assert (await anext(events)).seconds == 3.0
            assert not aslab._cache.pool_of(cache).arena.listeners.readers

    async def test_reading_ends_with_the_allocator_even_if_it_begins_later(self) -> None:
        async with allocator() as kmem:
            pass
        with kmem.events() as events:
            assert [event async for event in events] == []
