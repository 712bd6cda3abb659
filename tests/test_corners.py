"""What comes in between: another thread, a finaliser, or a caller that goes away at the wrong moment."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from aslab import GFP, KM, Cache
from aslab._allocator import tasks_of
from aslab._cache import pool_of
from aslab.backends import Region

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Taken:
    """A lock that this very thread holds: whoever waits for it waits for ever."""

    def locked(self) -> bool:
        return True

    def __enter__(self) -> None:
        raise AssertionError("a free waits for a lock that its own thread holds")

    def __exit__(self, *_: object) -> None:
        raise AssertionError


class Ordered(Gate):
    """Notes in which order slabs are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[int] = []

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.order.append(nbytes)
        return await super().acquire(nbytes, align, gfp)


async def use(cache: Cache[memoryview], flags: KM = KM.SLEEP, timeout: float | None = None) -> None:
    """Get one and free it, or give up."""
    with contextlib.suppress(TimeoutError):
        (await cache.alloc(flags, timeout=timeout)).free()


async def test_a_pool_whose_urgent_caller_gave_up_is_not_urgent_any_more() -> None:
    slabs = Ordered()
    async with allocator(slabs=slabs, grow_timeout=100.0) as kmem, anyio.create_task_group() as tasks:
        caches = [kmem.create_cache(str(size), size * SIZE, objects_per_slab=1) for size in (1, 2, 3)]
        await start(tasks, use, caches[0])  # the worker is busy
        await start(tasks, use, caches[1])
        await start(tasks, use, caches[2], KM.PUSHPAGE, 1.0)
        await anyio.sleep(2)
        slabs.open()
        await settle()
    assert [nbytes // SIZE for nbytes in slabs.order] == [1, 2, 3]


async def test_an_emergency_object_that_comes_when_growth_is_well_is_for_nobody() -> None:
    slabs, singles = Gate(), Gate()
    async with allocator(slabs=slabs, emergency=singles) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1)
        await start(tasks, use, cache, KM.SLEEP, 1.0)
        await anyio.sleep(2)
        assert singles.waiting == 1, "it has gone, and its object is in the making"
        slabs.open()
        await settle()
        async with cache.lease():
            await start(tasks, use, cache)  # at the limit
            singles.open()
            await settle()
            assert cache.stats().waiters == 1
            assert not singles.outstanding


async def test_a_finaliser_may_free_into_a_closed_cache_under_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        view = buf.view  # kept: so the slot lingers, and the magazine stays empty
        with pytest.warns(ResourceWarning, match="still held"):
            await cache.aclose()
        with monkeypatch.context() as patch:
            patch.setattr(pool_of(cache).depot, "lock", Taken())
            buf.free()
        del view
        await settle()
        assert not cache.stats().slab_total


async def test_a_finaliser_may_free_an_emergency_object_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    slabs = Gate()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        async with anyio.create_task_group() as tasks:
            buf = await cache.alloc()
            await start(tasks, use, cache)
            await anyio.sleep(1)
            assert buf.emergency
            assert cache.stats().waiters == 1
            with monkeypatch.context() as patch:
                patch.setattr(pool_of(cache).depot, "lock", Taken())
                patch.setattr(pool_of(cache).emergency, "_lock", Taken())  # the same
                buf.free()
            await anyio.sleep(0.01)
            assert not cache.stats().waiters


async def test_what_comes_free_as_a_caller_is_about_to_sleep_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1)
        held = [await cache.alloc()]
        arena = tasks_of(kmem).arena
        monkeypatch.setattr(
            arena.alarms, "make_future", freeing(held, arena.alarms.make_future, lambda buf: buf.free())
        )
        with anyio.fail_after(0.5):
            (await cache.alloc()).free()


async def test_what_a_thread_frees_as_prefill_is_about_to_sleep_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1)
        held = [await cache.alloc()]
        arena = tasks_of(kmem).arena
        monkeypatch.setattr(arena.alarms, "make_future", freeing(held, arena.alarms.make_future, in_a_thread))
        with anyio.fail_after(0.5):
            await cache.prefill(1)


def freeing(held: list[Any], make_future: Callable[[], Any], free: Callable[[Any], object]) -> Callable[[], Any]:
    """Makes futures; as it makes the first one, what is held is freed."""

    def make() -> Any:
        while held:
            free(held.pop())
        return make_future()

    return make


def in_a_thread(buf: Any) -> None:
    thread = threading.Thread(target=buf.free)
    thread.start()
    thread.join()


async def test_a_caller_that_is_refused_has_the_room_that_a_thread_makes_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slabs, singles = Gate(), Instant()
    async with allocator(slabs=slabs, emergency=singles) as kmem:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        emergency = pool_of(cache).emergency
        asked, go_on = threading.Event(), threading.Event()

        def fail(*_: object) -> Region:
            asked.set()
            assert go_on.wait(30)
            raise MemoryError

        def alloc_in_vain() -> None:
            with pytest.raises(anyio.WouldBlock):
                cache.alloc_nowait()

        with monkeypatch.context() as patch:
            patch.setattr(singles, "acquire_nowait", fail)
            thread = threading.Thread(target=alloc_in_vain)
            thread.start()
            assert asked.wait(30)  # it has the only permit
        possible = emergency.possible

        def and_meanwhile(objects: int, level: int) -> bool:
            go_on.set()
            thread.join()
            return possible(objects, level)

        monkeypatch.setattr(emergency, "possible", and_meanwhile)
        with anyio.fail_after(0.5):
            (await cache.alloc()).free()


async def test_clients_are_asked_for_callers_at_the_limit_while_a_pass_of_moves_takes_long() -> None:
    asked: list[int] = []

    def reclaim(objects: int) -> int:
        asked.append(objects)
        return 0

    async with allocator(limit=2 * SIZE, expire=3.0, emergency_limit=0) as kmem:
        moving = kmem.create_cache("moving", SIZE, objects_per_slab=1, movable=True)
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1, reclaim=reclaim)
        async with tasks_of(kmem).arena.moving, moving.lease(), cache.lease():
            with anyio.move_on_after(10):
                await cache.alloc()
        assert len(asked) >= 9


@pytest.mark.parametrize("free", [lambda buf: buf.free(), in_a_thread])
async def test_a_free_that_is_watched_finds_what_is_not_exported_any_more(free: Callable[[Any], object]) -> None:
    async with allocator(expire=3600.0) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2, max_objects=2)
        one, forgotten = await cache.alloc_many(2)
        part = forgotten.view[:4]
        with pytest.warns(ResourceWarning, match="without free"):
            del forgotten
        tasks.start_soon(use_both, cache)
        await settle()
        part.release()
        del part
        free(one)
        await anyio.sleep(1)
        assert not cache.stats().waiters


async def use_both(cache: Cache[memoryview]) -> None:
    for buf in await cache.alloc_many(2):
        buf.free()
