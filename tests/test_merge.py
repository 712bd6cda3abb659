"""Caches that share slabs: when they do, what is common to them, and what is each one's own."""

from __future__ import annotations

import warnings
from typing import Any

import anyio
import pytest

from aslab import KM, CacheClosedError, ConfigError
from aslab.testing import check_consistency

from .support import SIZE, Gate, allocator, settle, start

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_two_that_are_the_same_in_all_but_name_share_slabs() -> None:
    async with allocator() as kmem:
        one, other = (kmem.create_cache(name, SIZE, merge=True) for name in ("one", "other"))
        bufs = [await one.alloc(), await other.alloc()]
        assert kmem.stats().slab_bytes == 8 * SIZE
        assert one.stats().slab_total == other.stats().slab_total == 1
        assert (one.stats().merged, other.stats().merged) == (("other",), ("one",))
        for buf in bufs:
            buf.free()


@pytest.mark.parametrize(
    "different",
    [
        {"size": SIZE - 1},
        {"align": 128},
        {"merge": False},
        {"max_objects": 64},
        {"objects_per_slab": 4},
        {"init_on_free": True},
        {"magazine_size": 3},
    ],
    ids=str,
)
async def test_those_that_differ_in_anything_else_do_not(different: dict[str, Any]) -> None:
    async with allocator() as kmem:
        options: dict[str, Any] = {"size": SIZE, "merge": True}
        one = kmem.create_cache("one", **options)
        other = kmem.create_cache("other", **options | different)
        await one.prefill(1)
        assert other.stats().slab_total == 0
        assert (one.stats().merged, other.stats().merged) == ((), ())


async def test_each_has_counts_of_its_own() -> None:
    async with allocator() as kmem:
        one, other = (kmem.create_cache(name, SIZE, merge=True) for name in ("one", "other"))
        first = [await one.alloc() for _ in range(3)]
        second = [await other.alloc() for _ in range(2)]
        assert (one.stats().obj_held, other.stats().obj_held) == (3, 2)
        assert (one.stats().hits, one.stats().misses, other.stats().misses) == (2, 1, 0)
        assert one.stats().obj_alloc == other.stats().obj_alloc == 8
        first.pop().free()
        assert (one.stats().obj_held, other.stats().obj_held) == (2, 2)
        check_consistency(one)
        check_consistency(other)
        with pytest.warns(ResourceWarning, match="cache 'other': a Buffer was garbage-collected"):
            del second[0]
        assert (one.stats().obj_held, other.stats().obj_held) == (2, 1)
        for buf in [*first, *second]:
            buf.free()
        check_consistency(one)


async def test_what_one_frees_serves_the_others_callers() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        one, other = (
            kmem.create_cache(name, SIZE, merge=True, max_objects=1, objects_per_slab=1)
            for name in ("one", "other")
        )
        buf = await one.alloc()
        got: list[bool] = []

        async def caller() -> None:
            async with other.lease():
                got.append(True)

        await start(tasks, caller)
        assert (one.stats().waiters, other.stats().waiters) == (0, 1)
        buf.free()
        await settle()
        assert got == [True]
        assert (one.stats().waits, other.stats().waits) == (1, 1)


async def test_emergency_objects_are_counted_for_who_has_them() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem:
        one, other = (kmem.create_cache(name, SIZE, merge=True) for name in ("one", "other"))
        first = [await one.alloc() for _ in range(3)]
        second = await other.alloc()
        assert (one.stats().obj_emergency, other.stats().obj_emergency) == (3, 1)
        assert kmem.stats().obj_emergency == 4
        for buf in first:
            buf.free()
        assert (one.stats().obj_emergency, one.stats().obj_emergency_max, other.stats().obj_emergency) == (0, 3, 1)
        second.free()


async def test_closing_one_sends_its_callers_away_and_leaves_the_others_alone() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        one, other = (kmem.create_cache(name, SIZE, merge=True, max_objects=8) for name in ("one", "other"))
        held = await other.alloc_many(8)
        got: list[bool] = []

        async def sent_away() -> None:
            with pytest.raises(CacheClosedError, match="'one'"):
                await one.alloc()
            with pytest.raises(CacheClosedError, match="'one'"):
                await one.alloc()

        async def filling() -> None:
            with pytest.raises(CacheClosedError, match="'one'"):
                await one.prefill(8)

        async def served() -> None:
            async with other.lease():
                got.append(True)

        for task in (sent_away, filling, served):
            await start(tasks, task)
        with anyio.fail_after(1):
            await one.aclose()
        await settle()
        assert other.stats().merged == ()
        for buf in held:
            buf.free()
        await settle()
        assert got == [True]
        check_consistency(other)


async def test_a_closed_ones_buffers_come_back_to_the_slabs_and_the_last_one_closed_gives_them_back() -> None:
    async with allocator() as kmem:
        one, other = (kmem.create_cache(name, SIZE, merge=True) for name in ("one", "other"))
        buf = await one.alloc()
        with pytest.warns(ResourceWarning, match="1 buffers still held"):
            await one.aclose()
        buf.view[0] = 1
        buf.free()
        check_consistency(other)
        assert other.stats().slab_total == 1
        await other.aclose()
        assert kmem.stats().slab_bytes == 0
        again = kmem.create_cache("one", SIZE, merge=True)
        async with again.lease():
            pass


async def test_each_is_asked_for_its_own_objects_under_pressure() -> None:
    asked: list[tuple[str, int]] = []

    def asks(name: str) -> Any:
        def ask(objects: int) -> int:
            asked.append((name, objects))
            return 0

        return ask

    async with allocator() as kmem:
        one = kmem.create_cache("one", SIZE, merge=True, reclaim=asks("one"))
        other = kmem.create_cache("other", SIZE, merge=True, reclaim=asks("other"))
        bufs = [*await one.alloc_many(2), *await other.alloc_many(3)]
        await kmem.reap()
        assert asked == [("one", 2), ("other", 3)]
        for buf in bufs:
            buf.free()


@pytest.mark.parametrize(
    "with_", [{"ctor": bytes}, {"movable": True}, {"reserve": 1}, {"min_objects": 1}], ids=str
)
async def test_what_can_not_be_shared_is_refused(with_: dict[str, Any]) -> None:
    async with allocator() as kmem:
        with pytest.raises(ConfigError, match=r"^merge: True is not allowed; it excludes ctor, movable,"):
            kmem.create_cache("c", SIZE, merge=True, **with_)


async def test_pushpage_callers_of_one_come_before_ordinary_ones_of_the_other() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        one, other = (kmem.create_cache(name, SIZE, merge=True, max_objects=8) for name in ("one", "other"))
        held = await one.alloc_many(8)
        order: list[str] = []

        async def caller(cache: Any, flags: KM) -> None:
            async with cache.lease(flags):
                order.append(cache.name)
                await anyio.sleep(1)

        await start(tasks, caller, one, KM.SLEEP)
        await start(tasks, caller, other, KM.PUSHPAGE)
        held[0].free()
        await settle()
        assert order == ["other"]
        for buf in held[1:]:
            buf.free()


async def test_what_is_forgotten_while_exported_counts_as_held_until_the_export_is_gone() -> None:
    async with allocator(expire=3.0) as kmem:
        one, _ = (kmem.create_cache(name, SIZE, merge=True) for name in ("one", "other"))
        buf = await one.alloc()
        part = buf.view[:8]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # one that is caught holds on to the buffer
            del buf
        assert one.stats().obj_held == 1
        part.release()
        await anyio.sleep(2)
        assert one.stats().obj_held == 0


async def test_emergency_object_that_is_forgotten_while_exported_counts_until_the_export_is_gone() -> None:
    gate = Gate()
    async with allocator(slabs=gate, expire=3.0) as kmem:
        one, _ = (kmem.create_cache(name, SIZE, merge=True) for name in ("one", "other"))
        buf = await one.alloc()
        assert buf.emergency
        part = buf.view[:8]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # one that is caught holds on to the buffer
            del buf
        assert (one.stats().obj_held, one.stats().obj_emergency) == (1, 1)
        part.release()
        await anyio.sleep(2)
        assert (one.stats().obj_held, one.stats().obj_emergency) == (0, 0)
