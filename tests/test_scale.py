"""Many caches, many parked buffers, slabs on their way back: what is done at once does not grow with them.

No time is measured. Calls are counted, and how many there are between two turns of another task.
"""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aslab
from aslab import _tasks
from aslab._allocator import tasks_of
from aslab._cache import Cache, pool_of
from aslab._config import CacheConfig
from aslab._fastpath import COMPILED, EmergencySlot, Slot, _views
from aslab._kmem import _budget, _frees, _held
from aslab._kmem._depot import Depot
from aslab._kmem._handover import Handover
from aslab._kmem._lingering import AT_ONCE as PARKED_AT_ONCE
from aslab._kmem._lingering import Parked
from aslab._kmem._pool import Pool
from aslab._kmem._slab import AT_ONCE as SLOTS_AT_ONCE
from aslab._kmem._supply import Supply
from aslab._kmem._waiters import Waiter
from aslab._kmem._wakeup import UrgentWork, Wakeup
from aslab.backends import Backend, Heap, Region

from .helpers import LATE_THREAD, Loop, join_late_threads
from .support import SIZE, Gate, Instant, allocator, settle

pytestmark = pytest.mark.anyio

MANY = 300
AT_ONCE = 5 * 32
"""Caches between two turns of another task: four batches, as trio draws the order of a batch, and being woken
takes one, too; and who has just given something back."""


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


class Calls:
    """Of one method: all calls, and the most between two turns of another task."""

    def __init__(self) -> None:
        self._called = anyio.Event()
        self.start_anew()

    def start_anew(self) -> None:
        self.all = self.most_at_once = self._since = 0
        self.by: set[object] = set()

    def note(self, by: object) -> None:
        self.by.add(by)
        self.all += 1
        self._since += 1
        self.most_at_once = max(self.most_at_once, self._since)
        self._called.set()

    async def take_turns(self) -> None:
        """Until cancelled: after a call as many turns as there are. Else the clock would stand still."""
        while True:
            self._called = anyio.Event()
            await self._called.wait()
            for _ in range(100):
                self._since = 0
                await anyio.lowlevel.checkpoint()


@contextmanager
def counted(owner: Any, name: str) -> Iterator[Calls]:
    """Count the calls of a method, or of a function as a module calls it."""
    calls, method = Calls(), getattr(owner, name)

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        calls.note(self)
        return method(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counting)
        yield calls


@asynccontextmanager
async def turns(calls: Calls) -> AsyncIterator[None]:
    """Another task that wants its turns; what was before does not count."""
    calls.start_anew()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(calls.take_turns)
        yield
        tasks.cancel_scope.cancel()


def caches(kmem: aslab.Allocator, count: int, prefix: str, **options: Any) -> list[Cache[Any]]:
    options.setdefault("objects_per_slab", 1)
    return [kmem.create_cache(f"{prefix}{number}", SIZE, **options) for number in range(count)]


@asynccontextmanager
async def waiting(kmem: aslab.Allocator, waiters: list[Cache[Any]]) -> AsyncIterator[list[aslab.Buffer[Any]]]:
    """One caller in each cache that waits meanwhile; what those are served gathers in the list."""
    served: list[aslab.Buffer[Any]] = []

    async def wait(cache: Cache[Any]) -> None:
        served.append(await cache.alloc())

    async with anyio.create_task_group() as tasks:
        for cache in waiters:
            tasks.start_soon(wait, cache)
        await settle(2 * len(waiters))
        yield served
        tasks.cancel_scope.cancel()
    for buf in served:
        buf.free()


# -- many caches


async def calls_of_one_free(waiters: int, owner: type, name: str) -> Calls:
    """Under a full limit, of one method for one buffer that is freed and goes to another cache."""
    with counted(owner, name) as calls:
        async with allocator(limit=20 * SIZE, expire=None) as kmem:
            held = [await cache.alloc() for cache in caches(kmem, 20, "held")]
            async with waiting(kmem, caches(kmem, waiters, "waits")) as served, turns(calls):
                held.pop().free()
                await settle(2 * waiters)
                assert len(served) == 1
                result = copy.copy(calls)
            for buf in held:
                buf.free()
    return result


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Pool, "attend"), (Handover, "note"), (Pool, "spare"), (Pool, "ask")],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_free_and_the_slab_that_comes_back_concern_no_more_caches_where_more_wait(
    owner: type, name: str
) -> None:
    few, many = [(await calls_of_one_free(waiters, owner, name)).all for waiters in (10, MANY)]
    assert many <= few + 5


async def test_caches_that_have_all_they_may_have_do_not_ask_for_more_when_a_slab_of_another_comes_back() -> None:
    async with allocator(expire=None) as kmem:
        full = caches(kmem, 40, "full", max_objects=1)
        held = [await cache.alloc() for cache in full]
        other = caches(kmem, 1, "other")[0]
        (await other.alloc()).free()
        async with waiting(kmem, full):
            with counted(Pool, "ask") as asks:
                await other.reap()
                await settle(MANY)
            assert pool_of(full[0]) not in asks.by
            held.pop().free()
        for buf in held:
            buf.free()


async def test_who_looks_for_a_slab_among_very_many_caches_lets_other_tasks_have_their_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_budget, "LOOKS", 10)
    async with allocator(limit=MANY * SIZE, expire=None) as kmem:
        held = [await cache.alloc() for cache in caches(kmem, MANY, "held")]
        held[-1].free()
        with counted(Pool, "spare") as looks:
            async with turns(looks), waiting(kmem, caches(kmem, 1, "waits")) as served:
                await settle(MANY)
                assert len(served) == 1
        assert looks.most_at_once <= 5 * 10
        for buf in held[:-1]:
            buf.free()


async def test_who_starves_is_looked_for_among_very_many_caches_in_turns() -> None:
    count = AT_ONCE + 40
    async with allocator(limit=count * SIZE, expire=3.0) as kmem:
        held = [await cache.alloc() for cache in caches(kmem, count, "held")]
        with counted(Pool, "restore") as looks, counted(Pool, "condemn") as condemned:
            async with waiting(kmem, caches(kmem, 1, "waits")) as served:
                async with turns(looks):
                    await anyio.sleep(2.5)
                assert condemned.all > 0
                held.pop(0).free()
                await settle()
                assert len(served) == 1
        assert 0 < looks.most_at_once <= AT_ONCE
        for buf in held:
            buf.free()


async def test_a_merged_cache_is_compared_with_no_more_others_where_there_are_more() -> None:
    async with allocator(expire=None) as kmem:
        for number in range(MANY):
            kmem.create_cache(f"{number}", SIZE + 64 * number, merge=True)
        with counted(CacheConfig, "__eq__") as compared:
            alike = kmem.create_cache("alike", SIZE + 64 * (MANY - 1), merge=True)
        assert compared.all <= 2
        assert alike.stats().merged == (f"{MANY - 1}",)


async def test_sealing_very_many_caches_lets_other_tasks_have_their_turns() -> None:
    async with allocator(expire=None) as kmem:
        all_of_them = caches(kmem, MANY, "c")
        with counted(Pool, "attend") as attends:
            async with turns(attends):
                kmem.seal()
                await settle(MANY)
        assert attends.by == {pool_of(cache) for cache in all_of_them}
        assert attends.most_at_once <= AT_ONCE


async def test_very_many_waiters_of_a_closed_cache_leave_some_at_a_time() -> None:
    async with allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1)
        held = await cache.alloc()
        failed: list[aslab.CacheClosedError] = []

        async def wait() -> None:
            try:
                await cache.alloc()
            except aslab.CacheClosedError as exc:
                failed.append(exc)

        async with anyio.create_task_group() as tasks:
            for _ in range(MANY):
                tasks.start_soon(wait)
            await settle()
            held.free()
            held = cache.alloc_nowait()
            with counted(Waiter, "wake") as woken, pytest.warns(ResourceWarning, match="1 buffers"):
                async with turns(woken):
                    await cache.aclose()
                    await settle(MANY)
                    assert len(failed) == MANY
            assert woken.most_at_once <= AT_ONCE
        held.free()


async def test_a_waiter_of_a_closed_cache_that_is_woken_before_its_turn_leaves_at_once() -> None:
    async with allocator(expire=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1)
        held = await cache.alloc()
        left: list[int] = []

        async def wait(number: int) -> None:
            with pytest.raises(aslab.CacheClosedError):
                await cache.alloc()
            left.append(number)

        for number in range(MANY):
            tasks.start_soon(wait, number)
            await anyio.lowlevel.checkpoint()
        await settle()
        with pytest.warns(ResourceWarning, match="1 buffers"):
            await cache.aclose()
        pool_of(cache).waiters.everybody[-1].wake()
        await settle(MANY)
        assert sorted(left) == list(range(MANY))
        assert left.index(MANY - 1) <= 2 * AT_ONCE
        held.free()


async def test_who_comes_to_the_limit_looks_closer_only_at_caches_that_may_have_a_slab_idle() -> None:
    async with allocator(limit=MANY * SIZE, expire=None) as kmem:
        held = [await cache.alloc() for cache in caches(kmem, MANY, "held")]
        held[100].free()
        with counted(Depot, "drain") as drains:
            async with waiting(kmem, caches(kmem, 1, "waits")) as served:
                await settle()
        assert len(served) == 1
        assert drains.by == {pool_of(held[100].cache).depot}
        for buf in held:
            if buf is not held[100]:
                buf.free()


async def test_of_very_many_that_a_slab_leaves_no_room_for_a_few_are_told_at_once() -> None:
    gate = Gate()
    gate.open()
    with counted(Pool, "call_off") as called_off, counted(UrgentWork, "look") as looked_at:
        async with allocator(slabs=gate, limit=SIZE, grow_timeout=60, kick_after=None, expire=None) as kmem:
            held = await caches(kmem, 1, "held")[0].alloc()
            waiters = caches(kmem, MANY, "waits")
            async with waiting(kmem, waiters) as served:
                gate.shut()
                held.free()
                await anyio.sleep(40)  # the one grow that there is room for is late: all ask
                assert all(cache.stats().growing for cache in waiters)
                async with turns(called_off), turns(looked_at):
                    gate.open()
                    await settle(3 * MANY)
                    assert called_off.all == MANY - 1
                assert called_off.most_at_once <= AT_ONCE
                assert looked_at.most_at_once <= AT_ONCE
                assert len(served) == 1


async def test_of_very_many_that_found_no_room_some_ask_at_once_and_the_rest_a_little_later() -> None:
    with counted(Pool, "ask") as asks:
        async with allocator(limit=MANY * SIZE, expire=None) as kmem:
            large = kmem.create_cache("large", SIZE, objects_per_slab=MANY)
            buf = await large.alloc()
            small = caches(kmem, MANY, "small")
            for cache in small:
                with pytest.raises(anyio.WouldBlock):
                    cache.alloc_nowait()
            buf.free()
            async with turns(asks):
                await large.reap()
                await settle(3 * MANY)
            assert asks.by >= {pool_of(cache) for cache in small}
            assert asks.most_at_once <= AT_ONCE
            assert all(cache.stats().slab_total == 1 for cache in small)


async def test_a_bell_rung_for_very_many_caches_lets_other_tasks_have_their_turns() -> None:
    async with allocator(expire=None) as kmem:
        both = caches(kmem, MANY, "c", max_objects=1)
        held = [await cache.alloc() for cache in both]
        async with waiting(kmem, both) as served:
            with counted(Pool, "attend") as attends, warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                async with turns(attends):
                    held.clear()  # forgotten: finalisers ring the bell, and do no more
                    gc.collect()
                    await settle(3 * MANY)
            assert len(served) == MANY
        assert attends.by >= {pool_of(cache) for cache in both}
        assert attends.most_at_once <= AT_ONCE


async def test_ageing_of_very_many_caches_lets_other_tasks_have_their_turns() -> None:
    async with allocator(expire=3.0) as kmem:
        all_of_them = caches(kmem, MANY, "c")
        with counted(_tasks, "age") as ages:
            async with turns(ages):
                await anyio.sleep(1.5)
        assert ages.by == {pool_of(cache) for cache in all_of_them}
        assert ages.most_at_once <= AT_ONCE


@pytest.mark.parametrize("keeping", [False, True], ids=["all free", "some buffers held"])
async def test_closing_very_many_caches_lets_other_tasks_have_their_turns(keeping: bool) -> None:
    with counted(_tasks, "shut") as shuts, counted(Pool, "attend") as attends, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        async with anyio.create_task_group() as tasks:
            async with aslab.open_allocator(slabs=Instant(), expire=None) as kmem:
                held = [await cache.alloc() for cache in caches(kmem, MANY, "c")]
                if not keeping:
                    for buf in held:
                        buf.free()
                attends.start_anew()
                tasks.start_soon(shuts.take_turns)
                tasks.start_soon(attends.take_turns)
            tasks.cancel_scope.cancel()
    assert shuts.all == MANY
    assert shuts.most_at_once <= AT_ONCE
    assert attends.all >= MANY
    assert attends.most_at_once <= AT_ONCE
    if keeping:
        for buf in held:
            buf.free()
        join_late_threads()


# -- many parked buffers


async def parked(
    cache: Cache[Any], count: int, export: Callable[[memoryview], memoryview] = memoryview
) -> list[memoryview]:
    """Buffers that are forgotten while something exports their memory: the exports."""
    exports = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(count):
            buf = await cache.alloc()
            exports.append(export(buf.view))
            del buf
    return exports


async def test_a_miss_looks_at_a_few_parked_buffers_and_ageing_at_all() -> None:
    async with allocator(expire=3.0) as kmem:
        cache = kmem.create_cache("c", 64, objects_per_slab=7_000, magazine_size=2)
        exports = await parked(cache, 6_000)
        with counted(Slot, "in_use") as looks:
            bufs = []
            for _ in range(10):
                before, misses = looks.all, cache.stats().misses
                while cache.stats().misses == misses:
                    bufs.append(await cache.alloc())
                assert 0 < looks.all - before <= PARKED_AT_ONCE
            async with turns(looks):
                await anyio.sleep(1.5)
            assert len(looks.by) == 6_000
            assert looks.most_at_once <= (AT_ONCE + 1) * PARKED_AT_ONCE
        for view in exports[::2]:
            view.release()
        await anyio.sleep(1)
        assert cache.stats().obj_held == 3_000 + len(bufs)
        for buf in bufs:
            buf.free()
        for view in exports:
            view.release()
        await anyio.sleep(3)
        assert cache.stats().obj_held == 0


async def test_the_end_of_an_export_looks_at_its_own_parked_buffer_alone() -> None:
    async with allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", 64, objects_per_slab=1_000, magazine_size=256)
        exports = await parked(cache, 200) + await parked(cache, 200, lambda view: view)
        with counted(Slot, "in_use") as looks, counted(Parked, "__eq__") as compared:
            while exports:
                exports.pop().release()
            await settle()
        assert looks.all <= 2 * 400  # for the end of the export, and for that of the view object
        assert compared.all == 0
        assert cache.stats().obj_held == (0 if COMPILED else 200)  # of which only a look can tell


async def test_a_buffer_that_is_forgotten_while_exported_does_not_look_for_who_exports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[memoryview] = []

    def company(view: memoryview) -> str:
        asked.append(view)
        return "somebody"

    monkeypatch.setattr("aslab._fastpath._buffer.company", company)
    async with allocator(expire=3.0) as kmem:
        cache = kmem.create_cache("c", 64)
        exports = await parked(cache, 10)
        buf = await cache.alloc()
        part = buf.view[:]
        with pytest.raises(BufferError, match="somebody"):
            buf.free()
        assert len(asked) == 1
        for view in (part, *exports):
            view.release()
        buf.free()


def test_a_buffer_error_names_sizes_only_where_few_objects_are_to_be_looked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = memoryview(bytearray(10))
    part = view[:7]
    gc.collect()
    part = view[:7]
    assert _views.company(view).endswith("alive: 7 bytes")
    monkeypatch.setattr(_views, "FEW", -1)
    monkeypatch.setattr(gc, "get_objects", None)
    assert _views.company(view).endswith("alive")
    with view[:1]:
        assert _views.company(view).startswith("2 other memoryviews of it"), "counted all the same"
    part.release()


def test_a_collection_looks_at_no_closed_cache_without_a_slot_that_lingers() -> None:
    async def close() -> list[aslab.Buffer[Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            async with aslab.open_allocator(slabs=Instant(), expire=None) as kmem:
                return [await cache.alloc() for cache in caches(kmem, 3, "c")]

    held = anyio.run(close)
    pools = {pool_of(buf.cache) for buf in held}
    with counted(_frees, "look_at_lingering") as looks:
        gc.collect()
        assert not looks.by & pools  # what an earlier test has left may still linger
        for buf in held:
            buf.free()
    join_late_threads()


# -- emergency objects


async def test_very_many_spares_are_given_back_some_at_a_time() -> None:
    gate = Gate()
    async with allocator(slabs=gate, expire=None, kick_after=None) as kmem:
        cache = kmem.create_cache("c", 64)
        pool = pool_of(cache)
        bufs = [cache.alloc_nowait() for _ in range(2_000)]
        pool.growth.unwell = True  # as it is once growth is late
        for buf in bufs:
            buf.free()
        assert cache.stats().obj_emergency_spare == 2_000
        pool.growth.unwell = False
        with counted(Supply, "release") as releases:
            async with turns(releases):
                pool.attend()
                await settle(MANY)
        gate.open()
        assert releases.all == 2_000
        assert releases.most_at_once <= 5 * SLOTS_AT_ONCE


def test_the_objects_held_are_in_small_tables_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_held, "PART", 4)
    held: _held.Held[Any] = _held.Held()
    slots: list[EmergencySlot[Any]] = [
        EmergencySlot(None, memoryview(bytearray(64)), 64 * number, 0, 64) for number in range(20)
    ]
    for slot in slots:
        held.add(slot)
    assert max(len(slot.part) for slot in slots) == 4
    for slot in (*slots[:6], slots[19]):
        held.remove(slot)
    assert list(held) == slots[6:19]
    assert len(held) == 13


COUNTED = 100


class Returned(Heap):
    """A heap that has each region back."""

    async def release(self, region: Region) -> None:
        await super().release(region)


PURE_SLOT = {"EmergencySlot": 1, "c_ubyte_Array_64": 1, "dict": 1, "memoryview": 1, "managedbuffer": 1}


@pytest.mark.parametrize(
    ("emergency", "options", "tracked"),
    [
        (Heap, {}, {} if COMPILED else {**PURE_SLOT, "EmergencyBuffer": 1}),
        (Heap, {"reclaim": lambda n: 0}, {"ManagedBuffer": 1} | ({} if COMPILED else PURE_SLOT)),
        (
            Returned,
            {},
            {"ManagedBuffer": 1, "Region": 1, "memoryview": 1, "managedbuffer": 1}
            | ({} if COMPILED else {**PURE_SLOT, "memoryview": 2}),
        ),
    ],
    ids=["heap", "with a callback", "another backend"],
)
async def test_an_emergency_object_has_no_container_that_the_collector_visits(
    emergency: type[Backend], options: dict[str, Any], tracked: dict[str, int]
) -> None:
    gate = Gate()
    async with allocator(slabs=gate, emergency=emergency(), expire=None, kick_after=None) as kmem:
        cache = kmem.create_cache("c", 64, **options)
        cache.alloc_nowait().free()
        gc.collect()
        before = set(map(id, gc.get_objects()))
        bufs = [cache.alloc_nowait() for _ in range(COUNTED)]
        gc.collect()
        made = Counter(type(one).__name__ for one in gc.get_objects() if id(one) not in before)
        assert {name: count // COUNTED for name, count in made.items() if count >= COUNTED} == tracked
        for buf in bufs:
            buf.free()
        gate.open()


# -- regions on their way back


class AtOnce(Instant):
    """A backend whose releases never suspend, as the heap's do not."""

    async def release(self, region: Region) -> None:
        self.outstanding.remove(id(region))


async def test_very_many_releases_that_do_not_suspend_let_other_tasks_have_their_turns() -> None:
    backend = AtOnce()
    with Wakeup() as bell, counted(AtOnce, "release") as releases:
        supply = Supply(backend, bell)
        async with turns(releases), anyio.create_task_group() as tasks:
            tasks.start_soon(supply.run)
            for _ in range(MANY):
                supply.release(backend.acquire_nowait(SIZE, 64, aslab.GFP.KERNEL))
            supply.attend()
            await supply.idle()
            tasks.cancel_scope.cancel()
    assert releases.all == MANY
    assert releases.most_at_once <= AT_ONCE


@pytest.mark.parametrize("closed", [True, False], ids=["after closing", "before closing"])
async def test_a_release_that_is_cancelled_while_its_slab_is_taken_apart_is_finished_by_a_late_thread(
    closed: bool,
) -> None:
    backend, steps = Instant(), []
    region = backend.acquire_nowait(SIZE, 64, aslab.GFP.KERNEL)
    with Wakeup() as bell:
        supply = Supply(backend, bell)

        def before() -> Iterator[None]:
            for number in range(20):
                steps.append((number, threading.current_thread().name))
                yield

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supply.run)
            supply.release(region, before=before())
            supply.attend()
            while len(steps) < 5:
                await anyio.lowlevel.checkpoint()
            if closed:
                assert supply.close() == 1
            tasks.cancel_scope.cancel()
        if not closed:
            assert supply.close() == 1
        join_late_threads()
    assert [number for number, _ in steps] == list(range(20))
    assert {thread for _, thread in steps} == {threading.main_thread().name, LATE_THREAD}
    assert not backend.outstanding


async def test_an_allocator_that_is_stopped_while_a_slab_is_taken_apart_loses_none_of_its_objects() -> None:
    backend, alive = Instant(), set(range(2_000))
    numbers = iter(range(2_000))
    stop: list[Callable[[], None]] = []

    def dtor(number: int) -> None:
        alive.remove(number)
        if len(alive) == 1_000:
            stop[0]()

    with pytest.warns(ResourceWarning, match="1 regions still to be released"):
        async with aslab.open_allocator(slabs=backend, expire=None) as kmem:
            cache = kmem.create_cache("c", 64, objects_per_slab=2_000, ctor=lambda _: next(numbers), dtor=dtor)
            await cache.prefill(1)
            stop.append(tasks_of(kmem).stop)
    join_late_threads()
    assert not alive
    assert not backend.outstanding
