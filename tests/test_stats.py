"""Snapshots, and the text of /proc/spl/kmem/slab."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import anyio
import pytest

import aslab
from aslab import CacheFlags
from aslab._stats import CacheStats, row

from .helpers import Loop
from .support import SIZE, Gate, allocator, settle

pytestmark = pytest.mark.anyio

# facts.md, verbatim
HEADER = """\
--------------------- cache -------------------------------------------------------  \
----- slab ------  ---- object -----  --- emergency ---
name                                    flags      size     alloc slabsize  objsize  \
total alloc   max  total alloc   max  dlock alloc   max
"""


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def known(**changes: object) -> CacheStats:
    numbers = {
        field.name: number
        for number, field in enumerate(dataclasses.fields(CacheStats), 1)
        if field.name not in ("name", "growing", "growth_late")
    }
    return CacheStats(**(numbers | {"name": "c", "growing": False, "growth_late": False} | changes))  # type: ignore[arg-type]


async def test_table_of_no_caches_is_the_header_alone() -> None:
    async with allocator() as kmem:
        assert kmem.table() == HEADER


async def test_rows_in_the_order_of_creation_with_spls_columns() -> None:
    async with allocator() as kmem:
        one, two = kmem.create_cache("zio_buf_4096", SIZE, magazine_size=4), kmem.create_cache("b", 1000)
        held = [await one.alloc() for _ in range(9)]
        for _ in range(3):
            held.pop().free()
        await two.prefill(1)
        assert kmem.table() == HEADER + (
            "zio_buf_4096                          0x00080     65536     40960    32768     4096  "
            "    2     2     2     16    10    10      0     0     0\n"
            "b                                     0x00080      8192         0     8192     1000  "
            "    1     0     0      8     0     0      0     0     0\n"
        )
        for buf in held:
            buf.free()


async def test_row_of_a_deadlocked_cache() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        held = [await cache.alloc() for _ in range(3)]
        held.pop().free()
        assert kmem.table() == HEADER + (
            "c                                     0x0c080         0         0    32768     4096  "
            "    0     0     0      2     0     0      1     2     3\n"
        )
        for buf in held:
            buf.free()


def test_row_puts_each_number_in_its_column() -> None:
    stats = known(size=10, slab_size=100, slab_total=3, obj_alloc=7, flags=0x8080)
    assert row(stats).split() == [
        "c", "0x08080", "300", "70", "100", "10",
        "3", str(stats.slab_alloc), str(stats.slab_max),
        str(stats.obj_total), "7", str(stats.obj_max),
        str(stats.obj_deadlock), str(stats.obj_emergency), str(stats.obj_emergency_max),
    ]  # fmt: skip


def test_columns_stand_under_their_heads() -> None:
    text = row(known(name="n" * 36))
    heads = HEADER.splitlines()[1]
    assert len(text) - 1 == len(heads)
    for head in ("size", "alloc", "slabsize", "objsize"):
        assert text[heads.index(f" {head}") + len(head)] != " ", "numbers end where their heads end"


async def test_flags_have_spls_bit_numbers() -> None:
    gate = Gate()
    async with allocator(slabs=gate, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        never = kmem.create_cache("never", SIZE, flags=CacheFlags.NOEMERGENCY)
        assert cache.stats().flags == 1 << 7
        assert never.stats().flags == 1 << 7 | 1 << 9
        buf = await cache.alloc()
        assert cache.stats().flags == 1 << 7 | 1 << 14 | 1 << 15
        gate.open()
        await settle()
        assert cache.stats().flags == 1 << 7
        buf.free()


async def test_emergency_objects_count_in_the_total_and_nowhere_else() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        held = [await cache.alloc() for _ in range(2)]
        stats = cache.stats()
        assert (stats.obj_total, stats.obj_alloc, stats.obj_max) == (2, 0, 0)
        assert (stats.obj_held, stats.obj_emergency, stats.obj_emergency_max) == (2, 2, 2)
        assert (stats.obj_deadlock, stats.timeouts, stats.waits) == (1, 1, 1)
        assert stats.growing
        assert stats.deadlocked
        for buf in held:
            buf.free()
        stats = cache.stats()
        assert (stats.obj_total, stats.obj_emergency, stats.obj_emergency_max) == (0, 0, 2)


async def test_objects_in_the_magazine_are_out_of_their_slabs_and_held_by_nobody() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, magazine_size=4)
        held = [await cache.alloc() for _ in range(3)]
        stats = cache.stats()
        assert (stats.obj_alloc, stats.obj_held, stats.obj_cached) == (4, 3, 1)
        assert (stats.slab_alloc, stats.slab_max, stats.obj_max) == (1, 1, 4)
        assert (stats.waits, stats.misses) == (1, 2)
        for buf in held:
            buf.free()
        assert await cache.reap() == 8 * SIZE
        stats = cache.stats()
        assert (stats.obj_alloc, stats.obj_max, stats.obj_total) == (0, 4, 0)
        assert (stats.slab_total, stats.slab_create, stats.slab_destroy) == (0, 1, 1)
        assert (stats.slab_alloc, stats.slab_max) == (0, 1)


async def test_allocator_totals_are_the_sums_over_its_caches() -> None:
    async with allocator(limit=2**20) as kmem:
        caches = [kmem.create_cache(name, SIZE, max_objects=8) for name in "abc"]
        held = [await cache.alloc() for cache in caches for _ in range(2)]
        stats = kmem.stats()
        assert (stats.obj_held, stats.obj_emergency, stats.waiters) == (6, 0, 0)
        assert (stats.slab_bytes, stats.limit, stats.kicked) == (3 * 8 * SIZE, 2**20, 0)
        assert stats.caches == tuple(cache.stats() for cache in caches)
        for buf in held:
            buf.free()


async def test_totals_count_waiters_and_emergency_objects() -> None:
    async with allocator(slabs=Gate(), kick_after=None) as kmem, anyio.create_task_group() as tasks:
        caches = [kmem.create_cache(name, SIZE, max_emergency=1) for name in "ab"]
        held = [await cache.alloc() for cache in caches]
        for cache in caches:
            tasks.start_soon(cache.alloc)
        await settle()
        stats = kmem.stats()
        assert (stats.obj_held, stats.obj_emergency, stats.waiters) == (2, 2, 2)
        tasks.cancel_scope.cancel()
        for buf in held:
            buf.free()


@pytest.mark.parametrize("kind", [aslab.CacheStats, aslab.AllocatorStats])
def test_every_field_is_documented(kind: type) -> None:
    tree = ast.parse(inspect.getsource(aslab._stats))
    (definition,) = (one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == kind.__name__)
    documented = [
        one.target.id
        for one, after in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    ]
    assert documented == [field.name for field in dataclasses.fields(kind)]


async def test_stats_are_a_frozen_snapshot() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        before = kmem.stats()
        (await cache.alloc()).free()
        assert before.caches[0].slab_total == 0
        assert cache.stats().slab_total == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.limit = 1  # type: ignore[misc]
        with pytest.raises(dataclasses.FrozenInstanceError):
            before.caches[0].hits = 1  # type: ignore[misc]
        assert not hasattr(before, "__dict__")
        assert not hasattr(before.caches[0], "__dict__")
