"""Bounds: what backends have outstanding, at every instant, and who is served within them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aslab
from aslab import GFP, KM, CacheFlags, ConfigError, ConstructorError
from aslab._cache import pool_of
from aslab._flags import FINISHES
from aslab.backends import Heap, Mmap, Region
from aslab.cli._demo._service import Settings, checksum
from aslab.faults import Deadlock, Latency
from aslab.lab.scenarios import builtin, load, play
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, Meter, Metered, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def use(cache: aslab.Cache[Any], flags: KM = KM.SLEEP, *, rounds: int = 5, hold: float = 0.01) -> None:
    for _ in range(rounds):
        async with cache.lease(flags):
            await anyio.sleep(hold)


class TestWhatIsOnItsWay:
    async def test_room_of_a_grow_that_failed_is_promised_again_only_when_its_region_is_back(self) -> None:
        meter = Meter()
        slabs = Metered(Instant(), meter, release_takes=0.05)

        def ctor(memory: memoryview) -> None:
            raise ValueError("no")

        async with allocator(slabs=slabs, limit=8 * SIZE, emergency_limit=0) as kmem:
            cache = kmem.create_cache("c", SIZE, ctor=ctor)
            for _ in range(20):
                with pytest.raises(ConstructorError):
                    await cache.alloc()
            assert meter.highest <= 8 * SIZE
        assert slabs.acquired == 20

    async def test_region_that_breaks_the_contract_counts_until_it_is_back(self) -> None:
        class Short(Instant):
            async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
                region = await super().acquire(nbytes, align, gfp)
                region.memory = region.memory[: nbytes - 1]
                return region

        meter = Meter()
        slabs = Metered(Short(), meter, release_takes=0.05)
        async with allocator(slabs=slabs, limit=8 * SIZE, emergency_limit=0) as kmem:
            cache = kmem.create_cache("c", SIZE)
            for _ in range(5):
                with pytest.raises(aslab.BackendError):
                    await cache.alloc()
            assert meter.highest <= 8 * SIZE

    async def test_emergency_object_counts_until_the_backend_has_it_back(self) -> None:
        meter = Meter()
        emergency = Metered(Instant(), meter, release_takes=0.05)
        async with allocator(slabs=Gate(), emergency=emergency, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE, max_emergency=2)
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(use, cache)
            assert meter.highest <= 2 * SIZE

    async def test_emergency_objects_do_not_queue_behind_slabs(self) -> None:
        meter = Meter()
        slabs = Metered(Instant(), Meter(), release_takes=10.0)
        async with allocator(slabs=slabs, emergency=Metered(Instant(), meter)) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            buf = cache.alloc_nowait()
            await cache.prefill(2)
            kmem_reap = cache.reap()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: kmem_reap)
                await settle()
                buf.free()
                await settle()
                assert meter.outstanding == 0, "the slabs are still on their way"


class TestEmergencyLimit:
    @pytest.mark.parametrize(
        ("options", "limit"),
        [
            ({"limit": 64 * SIZE}, 16 * SIZE),
            ({"limit": 8 * SIZE}, 3 * SIZE),  # the largest object of a cache
            ({"limit": 64 * SIZE, "emergency_limit": 5 * SIZE}, 5 * SIZE),
            ({"limit": 64 * SIZE, "emergency_limit": None}, None),
            ({}, None),
            ({"emergency_limit": 7 * SIZE}, 7 * SIZE),
        ],
    )
    async def test_default_is_a_quarter_of_limit_and_at_least_one_object(
        self, options: dict[str, Any], limit: int | None
    ) -> None:
        async with allocator(**options) as kmem:
            kmem.create_cache("small", SIZE)
            kmem.create_cache("large", 3 * SIZE, objects_per_slab=1)
            assert kmem.stats().emergency_limit == limit

    async def test_holds_over_all_caches_and_everybody_goes_on(self) -> None:
        meter = Meter()
        options = {"slabs": Gate(), "emergency": Metered(Instant(), meter, release_takes=0.003)}
        async with allocator(**options, emergency_limit=4 * SIZE, kick_after=None) as kmem:
            caches = [kmem.create_cache(name, SIZE) for name in ("one", "two", "three")]
            async with anyio.create_task_group() as tasks:
                for cache in caches:
                    for flags in (KM.SLEEP, KM.SLEEP, KM.SLEEP, KM.PUSHPAGE):
                        tasks.start_soon(use, cache, flags)
            assert meter.highest <= 4 * SIZE
            assert kmem.stats().emergency_bytes_max <= 4 * SIZE
            for cache in caches:
                assert cache.stats().waiters == 0
                check_consistency(cache)

    async def test_last_quarter_is_for_pushpage_alone(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=4 * SIZE, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE)
            held = [cache.alloc_nowait() for _ in range(3)]
            with pytest.raises(anyio.WouldBlock):
                cache.alloc_nowait()
            with pytest.raises(TimeoutError):
                await cache.alloc(timeout=5)
            held.append(cache.alloc_nowait(KM.PUSHPAGE))
            with pytest.raises(anyio.WouldBlock):
                cache.alloc_nowait(KM.PUSHPAGE)
            for buf in held:
                buf.free()

    async def test_one_object_is_for_anybody(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=SIZE, kick_after=None) as kmem:
            await use(kmem.create_cache("c", SIZE))

    async def test_0_is_none_of_them(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=0, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE)
            with pytest.raises(anyio.WouldBlock):
                cache.alloc_nowait()
            with pytest.raises(TimeoutError):
                await cache.alloc(timeout=5)

    async def test_less_than_one_object_is_refused_where_a_cache_may_make_some(self) -> None:
        async with allocator(emergency_limit=SIZE - 1) as kmem:
            with pytest.raises(
                ConfigError, match=rf"^emergency_limit: {SIZE - 1} .* {SIZE} bytes, one object of cache 'c'$"
            ):
                kmem.create_cache("c", SIZE)
            kmem.create_cache("never", SIZE, flags=CacheFlags.NOEMERGENCY)
            kmem.create_cache("none", SIZE, max_emergency=0)

    async def test_who_was_refused_first_is_permitted_first_whichever_cache_it_asks(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=SIZE, kick_after=None) as kmem:
            one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
            held = await one.alloc()
            order: list[str] = []

            async def caller(cache: aslab.Cache[Any], name: str, flags: KM) -> None:
                async with cache.lease(flags):
                    order.append(name)
                    await anyio.sleep(0.01)

            async with anyio.create_task_group() as tasks:
                for cache, name, flags in (
                    (two, "two", KM.SLEEP),
                    (one, "one", KM.SLEEP),
                    (two, "urgent", KM.PUSHPAGE),
                ):
                    await start(tasks, caller, cache, name, flags)
                    await anyio.sleep(1)
                held.free()
            assert sorted(order) == ["one", "two", "urgent"]
            assert order.index("two") < order.index("one") or order[0] == "one", "one's own is handed over"

    async def test_room_that_a_cancelled_caller_was_permitted_goes_to_the_next(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=SIZE, kick_after=None) as kmem:
            one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
            held = await one.alloc()
            for _ in range(5):
                with anyio.move_on_after(1):
                    await two.alloc()
            assert kmem.stats().emergency_bytes == SIZE
            held.free()
            with anyio.fail_after(5):
                await use(two, rounds=1)


class TestRefused:
    """Who was refused by emergency_limit is not forgotten, and in nobody's way."""

    @asynccontextmanager
    async def two(self, **options: Any) -> AsyncIterator[tuple[aslab.Cache[Any], aslab.Cache[Any]]]:
        """Two caches whose growth is stuck; SLEEP callers may have 6 emergency objects between them."""
        async with allocator(
            slabs=Gate(), kick_after=None, expire=3600.0, emergency_limit=8 * SIZE, **options
        ) as kmem:
            yield kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)

    async def test_what_another_cache_frees_is_not_kept_from_them(self) -> None:
        async with self.two() as (one, two), anyio.create_task_group() as tasks:
            held = [await one.alloc() for _ in range(6)]
            for _ in range(3):
                tasks.start_soon(use, two)
            await anyio.sleep(1)
            assert two.stats().waiters == 3
            for buf in held:
                buf.free()
            await anyio.sleep(1)
            assert two.stats().waiters == 0

    async def test_who_cannot_wait_finds_room_the_next_time(self) -> None:
        async with self.two() as (one, two):
            for buf in await one.alloc_many(6):
                buf.free()
            with pytest.raises(anyio.WouldBlock):
                two.alloc_nowait()
            await settle()
            two.alloc_nowait().free()

    async def test_one_that_can_never_have_so_many_any_more_lets_those_behind_it_try(self) -> None:
        """Once there was a MEMALLOC caller the last object is for such, which leaves too few for who wants two."""
        gate = Gate()
        bounds: dict[str, Any] = {"slabs": gate, "emergency_limit": SIZE * 28 // 10, "kick_after": None}
        async with allocator(**bounds) as kmem, anyio.create_task_group() as tasks:
            one, two, three = (kmem.create_cache(name, SIZE) for name in ("one", "two", "three"))
            held = await one.alloc()

            async def both() -> None:
                for buf in await two.alloc_many(2):
                    buf.free()

            tasks.start_soon(both)
            await anyio.sleep(1)
            (await one.alloc(KM.MEMALLOC)).free()
            tasks.start_soon(use, three)
            await anyio.sleep(1)
            assert (two.stats().waiters, three.stats().waiters) == (1, 1)
            held.free()
            await anyio.sleep(1)
            assert (two.stats().waiters, three.stats().waiters) == (1, 0)
            gate.open()

    async def test_one_that_gives_up_lets_those_behind_it_try(self) -> None:
        async with self.two() as (one, two), anyio.create_task_group() as tasks:
            held = [await one.alloc() for _ in range(2)]

            async def patient() -> None:
                with pytest.raises(TimeoutError):
                    await one.alloc_many(6, timeout=2)

            tasks.start_soon(patient)
            await anyio.sleep(1)
            tasks.start_soon(use, two)
            await anyio.sleep(0.5)
            assert two.stats().waiters == 1, "in order"
            await anyio.sleep(1)
            assert two.stats().waiters == 0
            for buf in held:
                buf.free()

    async def test_one_whose_slab_comes_lets_those_behind_it_try(self) -> None:
        gate, stuck = Gate(), Gate()

        class Either(Instant):
            async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
                return await (gate if nbytes == 8 * SIZE else stuck).acquire(nbytes, align, gfp)

            async def release(self, region: Region) -> None:
                await gate.release(region)

        async with (
            allocator(slabs=Either(), expire=3600.0, emergency_limit=8 * SIZE, growth_workers=2) as kmem,
            anyio.create_task_group() as tasks,
        ):
            one = kmem.create_cache("one", SIZE, max_objects=8)
            two = kmem.create_cache("two", SIZE, objects_per_slab=1)
            held = [one.alloc_nowait() for _ in range(3)]

            async def many() -> None:
                async with one.lease_many(6):
                    await anyio.sleep(50)

            for _ in range(2):
                await start(tasks, many)
            await anyio.sleep(1)
            tasks.start_soon(use, two)
            await anyio.sleep(1)
            gate.open()
            await anyio.sleep(1)
            assert two.stats().waiters == 0
            for buf in held:
                buf.free()
            stuck.open()

    async def test_one_that_finds_room_by_itself_leaves_no_place_among_the_refused(self) -> None:
        async with self.two() as (one, two), anyio.create_task_group() as tasks:
            held = [await one.alloc() for _ in range(6)]
            tasks.start_soon(use, two)
            await anyio.sleep(1)
            pool = pool_of(two)
            permits, refused = pool.arena.permits, pool.waiters.first
            assert refused in list(permits.refused)
            assert refused is not None
            permits.uncharge(SIZE)  # another thread gives up room, and has not told the loop yet
            refused.wake()
            await settle()
            assert two.stats().obj_held == 1
            check_consistency(two)
            assert not len(permits.refused)
            assert permits.try_charge(SIZE, FINISHES)
            for buf in held:
                buf.free()
            await anyio.sleep(1)
            assert permits.outstanding == 0

    @pytest.mark.parametrize(("others", "need"), [(3, 1), (0, 5)], ids=["refused", "more than the bound"])
    async def test_one_for_which_a_new_cache_raises_the_default_bound_is_served(
        self, others: int, need: int
    ) -> None:
        gate = Gate()
        async with (
            allocator(slabs=gate, limit=16 * SIZE, kick_after=None) as kmem,
            anyio.create_task_group() as tasks,
        ):
            cache = kmem.create_cache("c", SIZE)
            held = [await cache.alloc() for _ in range(others)]
            got: list[int] = []

            async def many() -> None:
                async with cache.lease_many(need) as bufs:
                    got.append(len(bufs))

            tasks.start_soon(many)
            await anyio.sleep(1)
            assert not got
            kmem.create_cache("large", 8 * SIZE, objects_per_slab=1)
            await settle()
            assert got
            for buf in held:
                buf.free()
            gate.open()

    async def test_one_that_misses_less_by_now_asks_for_less(self) -> None:
        gate = Gate()
        gate.open()
        options = {"slabs": gate, "kick_after": None, "expire": 3600.0, "emergency_limit": 3 * SIZE}
        async with allocator(**options) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=4)
            held = await cache.alloc_many(4)
            gate.shut()
            got: list[int] = []

            async def many() -> None:
                async with cache.lease_many(6) as bufs:
                    got.append(sum(buf.emergency for buf in bufs))

            await start(tasks, many)
            await anyio.sleep(1)
            for buf in held:
                buf.free()
            await anyio.sleep(1)
            assert got == [2]
            gate.open()

    async def test_one_that_another_bound_refuses_by_now_leaves_the_place_that_it_had(self) -> None:
        gate = Gate()
        gate.open()
        options = {"slabs": gate, "kick_after": None, "expire": 3600.0, "emergency_limit": 4 * SIZE}
        async with allocator(**options) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=4, max_emergency=4)
            held = await cache.alloc_many(4)
            gate.shut()
            held += await cache.alloc_many(2)
            got: list[int] = []

            async def many() -> None:
                async with cache.lease_many(3) as bufs:
                    got.append(sum(buf.emergency for buf in bufs))

            await start(tasks, many)
            await anyio.sleep(1)
            assert cache.stats().refused == 1, "by max_emergency"
            held.pop(0).free()
            await anyio.sleep(1)
            assert cache.stats().refused == 0, "as emergency_limit refuses it"
            check_consistency(cache)
            held.pop().free()
            await anyio.sleep(1)
            assert got == [2]
            for buf in held:
                buf.free()
            gate.open()

    async def test_one_that_another_bound_refuses_by_now_lets_those_behind_it_try(self) -> None:
        gate = Gate()
        options = {"slabs": gate, "kick_after": None, "expire": 3600.0, "emergency_limit": 8 * SIZE}
        async with allocator(**options) as kmem, anyio.create_task_group() as tasks:
            one, two = kmem.create_cache("one", SIZE, max_emergency=3), kmem.create_cache("two", SIZE)
            held = await two.alloc_many(4)
            await start(tasks, one.alloc_many, 3)
            await anyio.sleep(1)
            got: list[aslab.Buffer[Any]] = []

            async def behind() -> None:
                got.append(await two.alloc())

            await start(tasks, behind)
            await anyio.sleep(1)
            assert not got
            held.append(await one.alloc(KM.PUSHPAGE))
            await anyio.sleep(1)
            assert len(got) == 1
            assert one.stats().refused == 1
            tasks.cancel_scope.cancel()
            for buf in held + got:
                buf.free()

    @pytest.mark.parametrize("turns", range(8))
    async def test_what_it_was_permitted_and_misses_no_more_is_for_others(self, turns: int) -> None:
        """An object of a slab comes free at any moment while it is being permitted two emergency objects."""
        gate = Gate()
        gate.open()
        options = {"slabs": gate, "kick_after": None, "expire": 3600.0, "emergency_limit": 4 * SIZE}
        async with allocator(**options) as kmem, anyio.create_task_group() as tasks:
            one, two, three = (
                kmem.create_cache(name, SIZE, objects_per_slab=4) for name in ("one", "two", "three")
            )
            held = await one.alloc_many(4)
            gate.shut()
            others = await two.alloc_many(2)

            async def many() -> None:
                for buf in await one.alloc_many(2):
                    buf.free()

            await start(tasks, many)
            await anyio.sleep(1)
            assert one.stats().waiters == 1
            others.pop().free()
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            held.pop().free()
            await anyio.sleep(1)
            assert one.stats().waiters == 0
            for buf in held + others:
                buf.free()
            await anyio.sleep(1)
            for buf in await three.alloc_many(3, timeout=2):  # all that there may be for such a caller
                buf.free()
            gate.open()


class TestKeptEmergencyObjects:
    async def test_freed_while_slabs_are_late_serves_the_next_and_is_not_made_again(self) -> None:
        emergency = Instant()
        async with allocator(slabs=Gate(), emergency=emergency, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await use(cache, rounds=50)
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(use, cache)
            assert len(emergency.asked) == 4
            assert cache.stats().obj_emergency == 0
            assert cache.stats().obj_emergency_spare == 4
            check_consistency(cache)

    async def test_goes_back_when_slabs_come_again(self) -> None:
        gate, emergency = Gate(), Instant()
        async with allocator(slabs=gate, emergency=emergency, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await use(cache)
            assert len(emergency.outstanding) == 1
            gate.open()
            await settle()
            assert not emergency.outstanding

    async def test_goes_back_for_another_cache_that_finds_no_room(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=SIZE, kick_after=None, expire=None) as kmem:
            one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
            await use(one)
            assert one.stats().obj_emergency_spare == 1
            with anyio.fail_after(1):
                await use(two, rounds=1)

    async def test_where_slabs_cannot_be_had_they_are_asked_for_all_the_same(self) -> None:
        gate = Gate()
        gate.error = MemoryError()
        gate.open()
        async with allocator(slabs=gate) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await use(cache, rounds=20, hold=0.1)
            gate.error = None
            await use(cache, rounds=20, hold=0.1)
            assert cache.stats().slab_total == 1
            assert cache.stats().obj_emergency_spare == 0


class TestAtTheLimit:
    async def test_slab_that_comes_free_elsewhere_is_had_at_once(self) -> None:
        async with allocator(limit=16 * SIZE, expire=60.0) as kmem, anyio.create_task_group() as tasks:
            one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
            held = sorted(await one.alloc_many(16), key=lambda buf: buf.address)  # by slabs
            got: list[float] = []

            async def caller() -> None:
                async with two.lease():
                    got.append(anyio.current_time())

            await start(tasks, caller)
            await anyio.sleep(1)
            for buf in held[3::-1]:  # some before that do not empty a slab
                buf.free()
            await anyio.sleep(1)
            assert not got
            for buf in held[4:8]:
                buf.free()
            now = anyio.current_time()
            await settle()
            assert got == [now]
            for buf in held[8:]:
                buf.free()

    @pytest.mark.parametrize(
        ("limit", "options", "objects"),
        [
            (12 * SIZE, {}, 12),
            (4 * SIZE, {}, 4),
            (13 * SIZE, {}, 13),
            (64 * SIZE, {}, 64),
            (None, {"max_objects": 12}, 12),
            (100 * SIZE, {"max_objects": 7}, 7),
        ],
    )
    async def test_default_slabs_use_all_that_there_may_be(
        self, limit: int | None, options: dict[str, Any], objects: int
    ) -> None:
        async with allocator(limit=limit) as kmem:
            cache = kmem.create_cache("c", SIZE, **options)
            bufs = [await cache.alloc() for _ in range(objects)]
            for buf in bufs:
                buf.free()

    async def test_one_object_always_fits_a_slab_by_default(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("frames", 64 * 2**20)
            assert cache.stats().slab_size == 64 * 2**20

    async def test_alloc_that_can_never_be_served_is_refused_as_alloc_many_is(self) -> None:
        async with allocator(limit=16 * SIZE) as kmem:
            kmem.create_cache("all", SIZE, min_objects=8)
            reserved = kmem.create_cache("reserved", SIZE, reserve=8, max_objects=8)
            with pytest.raises(ConfigError, match="less the reserve of 8"):
                await reserved.alloc()
            async with reserved.lease(KM.PUSHPAGE):
                pass
        async with allocator(limit=8 * SIZE) as kmem:
            late = kmem.create_cache("late", SIZE)
            kmem.create_cache("all", SIZE, min_objects=8)
            with pytest.raises(ConfigError, match="less other guarantees"):
                await late.alloc()
        async with allocator(limit=8 * SIZE) as kmem:
            late = kmem.create_cache("late", SIZE)
            kmem.create_cache("reserved", SIZE, reserve=2)
            with pytest.raises(ConfigError, match="less other guarantees"):
                await late.alloc()
            with pytest.raises(ConfigError, match=r"^reserve: 2 "):
                kmem.create_cache("another", SIZE, reserve=2)


class TestWhatIsSaid:
    async def test_timeout_and_would_block_say_what_is_held_and_who_waits(self) -> None:
        async with allocator(limit=8 * SIZE) as kmem:
            cache = kmem.create_cache("frames", SIZE, max_objects=8)
            held = await cache.alloc_many(8)
            said = r"cache 'frames' \(8 held, {} waiting, max_objects 8, 32 KiB of slabs under a limit of 32 KiB\)"
            with pytest.raises(TimeoutError, match=said.format(0) + ": no object came within 2 s"):
                await cache.alloc(timeout=2)
            with pytest.raises(anyio.WouldBlock, match=said.format(0) + ": no object is free, and its limit"):
                cache.alloc_nowait()
            for buf in held:
                buf.free()

    async def test_entering_and_leaving_deadlocked_a_row_of_failures_and_the_limit_are_logged_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate()
        with caplog.at_level(logging.INFO, "aslab"):
            async with allocator(slabs=gate, kick_after=None) as kmem, anyio.create_task_group() as tasks:
                cache = kmem.create_cache("c", SIZE, max_objects=8)
                for _ in range(5):
                    tasks.start_soon(use, cache)
                await anyio.sleep(1)
                gate.error = MemoryError("none left")
                gate.open()
                async with cache.lease():
                    await anyio.sleep(3)
                gate.error = None
            said = [record.getMessage() for record in caplog.records]
        assert len([text for text in said if "is DEADLOCKED:" in text]) == 1
        assert len([text for text in said if "no longer DEADLOCKED" in text]) == 1
        assert [text for text in said if "cannot grow" in text] == ["cache 'c' cannot grow: none left"]
        caplog.clear()
        with caplog.at_level(logging.INFO, "aslab"):
            async with allocator(limit=SIZE) as kmem, anyio.create_task_group() as tasks:
                cache = kmem.create_cache("c", SIZE)
                for _ in range(5):
                    tasks.start_soon(use, cache)
        assert len([record for record in caplog.records if "at its limit" in record.getMessage()]) == 1

    async def test_a_ctor_that_fails_again_and_again_is_logged_once(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def ctor(memory: memoryview) -> None:
            raise ValueError("no")

        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, ctor=ctor)
            for _ in range(5):
                with pytest.raises(ConstructorError):
                    await cache.alloc()
        assert len([text for text in caplog.messages if "cannot grow" in text]) == 1

    async def test_allocator_has_a_repr(self) -> None:
        async with allocator(limit=64 * SIZE) as kmem, kmem.create_cache("c", SIZE).lease():
            said = "<Allocator, 1 caches, 32 KiB of 256 KiB of slabs: 1 held, 0 waiting>"
            assert repr(kmem) == said
        assert "closed" in repr(kmem)


async def test_slow_backend_is_late_and_each_slab_has_its_own_time() -> None:
    async with allocator(slabs=Latency(Instant(), 0.09), grow_timeout=0.1) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(use, cache)
        stats = cache.stats()
        assert (stats.obj_deadlock, stats.timeouts, stats.obj_emergency_max) == (0, 0, 0)


class Books:
    """Opens allocators on metered backends, and keeps the bounds that each had."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened
        self.meters: list[tuple[Meter, aslab.Allocator]] = []

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[aslab.Allocator]:
        meter = Meter()
        for name, default in (("slabs", Mmap), ("emergency", Heap)):
            options[name] = Metered(options.get(name) or default(), meter)
        async with self.opened(**options) as kmem:
            self.meters.append((meter, kmem))
            yield kmem

    def check(self) -> None:
        assert self.meters
        for meter, kmem in self.meters:
            stats = kmem.stats()
            assert stats.limit is not None
            assert stats.emergency_limit is not None
            assert 0 < meter.highest <= stats.limit + stats.emergency_limit


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("path", builtin().values(), ids=builtin().keys())
def test_no_scenario_has_more_outstanding_than_its_bounds(
    path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books(aslab.open_allocator)
    monkeypatch.setattr("aslab.lab._scenario._play.open_allocator", books.open)
    scenario = load(path)
    if scenario.allocator.limit is None:
        allocator = scenario.allocator.model_copy(update={"limit": 8 * 2**20})
        scenario = scenario.model_copy(update={"allocator": allocator})
    play(scenario, seed=1, loop=loop)
    books.check()


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("stuck", [False, True], ids=["healthy", "stuck"])
def test_demo_has_no_more_outstanding_than_its_bounds(
    loop: str, stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    books = Books(aslab.open_allocator)
    monkeypatch.setattr("aslab.cli._demo._service.open_allocator", books.open)
    files = [str(path) for path in Path(aslab.__file__).parent.rglob("*.py")]
    settings = Settings(buffer=64 * 2**10, limit=2**20, tasks=64)
    slabs = Deadlock(Mmap(), duration=0.6) if stuck else Mmap()
    outcome = anyio.run(checksum, files, settings, slabs, 10.0, lambda *_: None, backend=loop)
    assert len(outcome.sums) == len(files)
    assert outcome.emergency_used or not stuck
    books.check()
