"""Who may pass those who wait, for how long, and what is kept for whom."""

from __future__ import annotations

import itertools
import math
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aslab import KM, Buffer, Cache, ConfigError, lab
from aslab._cache import pool_of
from aslab._kmem._handover import BESIDE
from aslab.testing import check_consistency

from .support import SIZE, Gate, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Party:
    """Callers of one cache, by name, in the order in which they were served."""

    def __init__(self, cache: Cache[memoryview], tasks: Any) -> None:
        self.cache, self.tasks = cache, tasks
        self.order: list[str] = []

    async def wait(self, name: str, flags: KM = KM.SLEEP, n: int = 1) -> None:
        async def caller() -> None:
            async with self.cache.lease_many(n, flags):
                self.order.append(name)

        await start(self.tasks, caller)


def at_once(cache: Cache[memoryview], flags: KM = KM.SLEEP) -> Buffer[memoryview] | None:
    """What an allocation gets that does not suspend."""
    allocating = cache.alloc(flags)
    try:
        allocating.send(None)
    except StopIteration as done:
        found: Buffer[memoryview] = done.value
        return found
    allocating.close()
    return None


async def test_what_comes_free_is_told_to_the_first_in_line_who_has_it_when_it_runs() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        party = Party(kmem.create_cache("c", SIZE, max_objects=1), tasks)
        held = await party.cache.alloc()
        for name in ("one", "two"):
            await party.wait(name)
        held.free()
        assert party.cache.stats().obj_cached == 1
        await settle()
        assert party.order == ["one", "two"]


async def test_whoever_runs_before_may_pass_for_so_long_and_no_longer() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        party = Party(cache, tasks)
        held = await cache.alloc()
        await party.wait("first")
        began = anyio.current_time()
        rounds = 0
        while anyio.current_time() - began < BESIDE:
            held.free()
            again = at_once(cache)
            assert again is not None
            held = again
            rounds += 1
            await anyio.sleep(BESIDE / 4)
            assert not party.order
        assert rounds == 4
        held.free()
        assert cache.stats().obj_handover == 1
        assert at_once(cache) is None
        with pytest.raises(anyio.WouldBlock):
            cache.alloc_nowait()
        await settle()
        assert party.order == ["first"]


@pytest.mark.parametrize(
    ("waits", "n", "passes"),
    [
        (KM.PUSHPAGE, 1, [KM.PUSHPAGE, KM.MEMALLOC]),
        (KM.MEMALLOC, 1, []),
        (KM.SLEEP, 2, [KM.PUSHPAGE, KM.MEMALLOC]),
        (KM.SLEEP, 1, [KM.SLEEP, KM.PUSHPAGE, KM.MEMALLOC]),
    ],
)
@pytest.mark.parametrize("flags", [KM.SLEEP, KM.PUSHPAGE, KM.MEMALLOC])
async def test_who_is_more_urgent_or_needs_several_is_not_passed(
    waits: KM, n: int, passes: list[KM], flags: KM
) -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1, memalloc_reserve=0)
        party = Party(cache, tasks)
        held, other = await cache.alloc_many(2)
        await party.wait("first", waits, n)
        held.free()
        found = at_once(cache, flags)
        assert (found is not None) is (flags in passes)
        if found is not None:
            found.free()
        other.free()
        await settle()
        assert party.order == ["first"]


async def test_memalloc_before_pushpage_before_sleep_and_the_oldest_first_within_each() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        party = Party(kmem.create_cache("c", SIZE, max_objects=1, memalloc_reserve=0), tasks)
        held = await party.cache.alloc()
        flags = {"s": KM.SLEEP, "p": KM.PUSHPAGE, "m": KM.MEMALLOC}
        for name in ("s1", "p1", "m1", "s2", "p2", "m2"):
            await party.wait(name, flags[name[0]])
        held.free()
        await settle()
        assert party.order == ["m1", "m2", "p1", "p2", "s1", "s2"]


@given(
    seed=st.integers(0, 2**32),
    loop=st.sampled_from(["asyncio", "trio"]),
    objects=st.integers(1, 4),
    flags=st.sampled_from([KM.SLEEP, KM.PUSHPAGE, KM.MEMALLOC]),
    callers=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12)),  # tenths of BESIDE that it holds, and rests
        min_size=2,
        max_size=8,
    ),
)
@settings(deadline=None, max_examples=30)
def test_nobody_stands_beside_what_is_free_for_longer_than_the_bound(
    seed: int, loop: str, objects: int, flags: KM, callers: list[tuple[int, int]]
) -> None:
    """Passed for `BESIDE`, then the next object that comes free is its own: at most one more hold."""
    longest: list[float] = [0.0]

    async def work(cache: Cache[memoryview], hold: int, rest: int) -> None:
        for _ in range(12):
            async with cache.lease(flags):
                await anyio.sleep(hold * BESIDE / 10)
            await anyio.sleep(rest * BESIDE / 10)

    async def run() -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=objects, memalloc_reserve=0)
            await cache.prefill(objects)
            handover = pool_of(cache).handover
            leave = pool_of(cache).waiters.leave

            def note(waiter: Any) -> bool:
                if waiter.beside is not None:
                    longest[0] = max(longest[0], anyio.current_time() - waiter.beside)
                return leave(waiter)

            pool_of(cache).waiters.leave = note  # type: ignore[method-assign]
            async with anyio.create_task_group() as tasks:
                for one in callers:
                    tasks.start_soon(work, cache, *one)
            assert not handover.given
            check_consistency(cache)

    lab.run(run, seed=seed, loop=loop)
    assert longest[0] <= BESIDE + max(hold for hold, _ in callers) * BESIDE / 10 + 1e-9


class TestKept:
    """Objects for MEMALLOC callers alone."""

    @staticmethod
    async def convoy(cache: Cache[memoryview], writes: int, finishes: KM) -> int:
        done = 0

        async def write() -> None:
            nonlocal done
            async with cache.lease(KM.PUSHPAGE):
                await anyio.lowlevel.checkpoint()
                async with cache.lease(finishes):
                    await anyio.sleep(0.0001)
            done += 1

        with anyio.move_on_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(writes):
                    tasks.start_soon(write)
        return done

    @pytest.mark.parametrize(
        ("kept", "finishes", "all_do"),
        [(1, KM.MEMALLOC, True), (0, KM.MEMALLOC, False), (1, KM.PUSHPAGE, False)],
    )
    async def test_with_what_one_needs_to_finish_all_do(self, kept: int, finishes: KM, *, all_do: bool) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=8, memalloc_reserve=kept)
            await kmem.ready()
            assert (await self.convoy(cache, 40, finishes) == 40) is all_do

    async def test_it_is_set_aside_from_the_start_and_refilled_first(self) -> None:
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, max_objects=4, objects_per_slab=2, reserve=1, memalloc_reserve=1)
            party = Party(cache, tasks)
            await kmem.ready()
            assert cache.stats().obj_reserved == 2
            held = [await cache.alloc() for _ in range(2)]
            pushed = await cache.alloc(KM.PUSHPAGE, timeout=0)
            with pytest.raises(TimeoutError):
                await cache.alloc(KM.PUSHPAGE, timeout=0)
            last = await cache.alloc(KM.MEMALLOC, timeout=0)
            await party.wait("pushpage", KM.PUSHPAGE)
            await party.wait("sleep")
            held.pop().free()
            await settle()
            assert cache.stats().obj_reserved == 1
            assert not party.order, "kept for who finishes, before anybody else gets any"
            last.free()
            await settle()
            assert party.order == ["pushpage"], "then PUSHPAGE callers, then their reserve"
            held.pop().free()
            await settle()
            assert party.order == ["pushpage", "sleep"]
            pushed.free()

    async def test_unless_given_it_is_learned_and_taken_from_the_reserve_all_but_one(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=8, reserve=4)
            await kmem.ready()
            assert pool_of(cache).reserve.kept == 0
            for asked, kept in ((1, 1), (2, 2), (1, 2), (5, 3)):
                for buf in await cache.alloc_many(asked, KM.MEMALLOC):
                    buf.free()
                assert pool_of(cache).reserve.kept == kept
            await settle()
            assert cache.stats().obj_reserved == 4

    async def test_what_is_learned_leaves_enough_for_what_pushpage_callers_ask_for(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=4, objects_per_slab=1, reserve=3)
            for buf in await cache.alloc_many(2, KM.MEMALLOC):
                buf.free()
            assert pool_of(cache).reserve.kept == 2
            for buf in await cache.alloc_many(3, KM.PUSHPAGE, timeout=1):
                buf.free()
            assert pool_of(cache).reserve.kept == 1

    async def test_without_a_reserve_nothing_is_learned_and_no_other_cache_goes_short(self) -> None:
        async with allocator(limit=8 * SIZE) as kmem:
            caches = [kmem.create_cache(name, SIZE) for name in ("a", "b")]
            for _ in range(3):
                for cache in caches:
                    (await cache.alloc(KM.MEMALLOC, timeout=1)).free()
                    assert cache.stats().obj_reserved == 0

    async def test_given_it_counts_among_what_can_never_be_had(self) -> None:
        async with allocator() as kmem:
            with pytest.raises(ConfigError, match="memalloc_reserve"):
                kmem.create_cache("d", SIZE, max_objects=8, reserve=4, memalloc_reserve=5)
            cache = kmem.create_cache("c", SIZE, max_objects=8, memalloc_reserve=8)
            for flags in (KM.SLEEP, KM.PUSHPAGE):
                with pytest.raises(ConfigError, match="max_objects"):
                    await cache.alloc(flags)
            (await cache.alloc(KM.MEMALLOC)).free()

    async def test_the_last_emergency_object_is_for_such_a_caller(self) -> None:
        options = {"slabs": Gate(), "grow_timeout": 0.1, "kick_after": None, "limit": 64 * SIZE}
        async with allocator(**options, emergency_limit=3 * SIZE) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            first = await cache.alloc(KM.MEMALLOC)
            second = await cache.alloc(KM.PUSHPAGE)
            with pytest.raises(TimeoutError):
                await cache.alloc(KM.PUSHPAGE, timeout=1)
            (await cache.alloc(KM.MEMALLOC, timeout=1)).free()
            first.free()
            second.free()


class TestClaims:
    """Whoever has just given back comes first for what is kept."""

    async def test_who_gave_back_two_and_needs_one_finds_it_though_others_who_finish_run_and_wait(self) -> None:
        """As z_wr_int of ZFS, on which all other writes depend."""
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, max_objects=4, objects_per_slab=1, memalloc_reserve=1)
            await kmem.ready()
            party = Party(cache, tasks)
            held = [await cache.alloc() for _ in range(3)]
            last = at_once(cache, KM.MEMALLOC)
            assert last is not None
            others: list[bool] = []

            async def waits() -> None:
                held.append(await cache.alloc(KM.MEMALLOC))
                party.order.append("waits")

            async def other() -> None:
                others.append(at_once(cache, KM.MEMALLOC) is None)

            await start(tasks, waits)

            held.pop().free()
            held.pop().free()
            await start(tasks, other)
            await anyio.sleep(BESIDE / 2)
            mine = at_once(cache, KM.MEMALLOC)
            assert mine is not None
            assert others == [True]
            assert party.order == ["waits"], "what is not kept is for those who wait"
            for buf in (mine, last, *held):
                buf.free()

    async def test_a_claim_ends_and_then_it_is_anybodys_who_finishes(self) -> None:
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1, memalloc_reserve=1)
            await kmem.ready()
            held = await cache.alloc()
            last = await cache.alloc(KM.MEMALLOC)
            last.free()
            got: list[Buffer[memoryview] | None] = []

            async def other() -> None:
                got.append(at_once(cache, KM.MEMALLOC))

            await start(tasks, other)
            await anyio.sleep(2 * BESIDE)
            await start(tasks, other)
            assert got[0] is None
            assert got[1] is not None
            for buf in (got[1], held):
                buf.free()

    async def test_there_are_no_more_claims_than_objects_kept_and_the_latest_hold(self) -> None:
        async with allocator() as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE, max_objects=4, objects_per_slab=1, memalloc_reserve=1)
            await kmem.ready()
            bufs = [await cache.alloc() for _ in range(3)]
            claims = pool_of(cache).handover.claims
            mine: list[bool] = []

            async def free() -> None:
                bufs.pop().free()
                await anyio.sleep(BESIDE / 4)
                mine.append(claims.mine)

            for _ in range(3):
                await start(tasks, free)
            await anyio.sleep(BESIDE / 2)
            assert sorted(mine) == [False, False, True]


class TestEverySchedule:
    """Three writes, each in three steps, in every order in which the steps can come: 1,680 of them."""

    STEPS = 3

    @classmethod
    def schedules(cls, writes: int) -> set[tuple[int, ...]]:
        steps = [number for number in range(writes) for _ in range(cls.STEPS)]
        return set(itertools.permutations(steps)) if writes < 3 else cls._merge(writes)

    @classmethod
    def _merge(cls, writes: int) -> set[tuple[int, ...]]:
        found: set[tuple[int, ...]] = set()

        def extend(done: tuple[int, ...], left: tuple[int, ...]) -> None:
            if not any(left):
                found.add(done)
            for number in range(writes):
                if left[number]:
                    rest = tuple(count - (one == number) for one, count in enumerate(left))
                    extend((*done, number), rest)

        extend((), (cls.STEPS,) * writes)
        return found

    @staticmethod
    async def play(cache: Cache[memoryview], schedule: tuple[int, ...], finishes: KM) -> int:
        """Answers how many of the writes are done once nothing moves any more."""
        done = 0
        turns = {number: anyio.Semaphore(0) for number in set(schedule)}

        async def write(number: int) -> None:
            nonlocal done
            await turns[number].acquire()
            async with cache.lease(KM.PUSHPAGE):
                await turns[number].acquire()
                async with cache.lease(finishes):
                    await turns[number].acquire()
            done += 1

        with anyio.move_on_after(10):
            async with anyio.create_task_group() as tasks:
                for number in turns:
                    tasks.start_soon(write, number)
                for number in schedule:
                    turns[number].release()
                    await settle(6)
        return done

    @pytest.mark.parametrize(("kept", "stuck"), [(1, False), (0, True)])
    async def test_somebody_can_always_finish_if_what_that_takes_is_kept(self, kept: int, stuck: bool) -> None:
        schedules = self.schedules(3)
        assert len(schedules) == math.factorial(9) // math.factorial(3) ** 3
        hung = 0
        async with allocator(expire=None) as kmem:
            cache = kmem.create_cache("c", SIZE, max_objects=3, objects_per_slab=1, memalloc_reserve=kept)
            for schedule in sorted(schedules):
                hung += await self.play(cache, schedule, KM.MEMALLOC) < 3
                check_consistency(cache)
        assert (hung > 0) is stuck


async def test_once_told_the_first_in_line_hears_of_no_further_free_until_it_runs() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        party = Party(kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=2), tasks)
        held = await party.cache.alloc_many(2)
        await party.wait("one")
        magazine = pool_of(party.cache).magazine
        assert magazine.watch
        held[0].free()
        assert not magazine.watch
        held[1].free()
        await settle()
        assert party.order == ["one"]


async def test_once_told_and_woken_for_another_reason_it_is_consistent() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        party = Party(kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=2), tasks)
        held = await party.cache.alloc_many(2)
        await party.wait("one")
        held[0].free()
        first = pool_of(party.cache).waiters.first
        assert first is not None
        first.wake()
        check_consistency(party.cache)
        await settle()
        assert party.order == ["one"]
        held[1].free()


async def test_so_few_are_kept_under_a_limit_that_pushpage_callers_can_have_what_they_ask_for() -> None:
    async with allocator(limit=8 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, reserve=8)
        await kmem.ready()
        for n, flags in ((3, KM.PUSHPAGE), (8, KM.MEMALLOC), (3, KM.PUSHPAGE)):
            with anyio.fail_after(1):
                async with cache.lease_many(n, flags):
                    pass
            await settle()
