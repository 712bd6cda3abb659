"""Debug letters: what each finds, whom it names, and how the service goes on."""

from __future__ import annotations

import ctypes
import gc
import logging
import pickle
import re
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

import aslab
from aslab import KM, KMEM_CBRC, Buffer, BufferFreedError, Cache
from aslab._allocator import tasks_of
from aslab._cache import pool_of
from aslab._fastpath import COMPILED
from aslab._kmem import _invariants, _move, _snapshot
from aslab._kmem._filled import CHUNK, POISON, Filled
from aslab.testing import check_consistency

from .helpers import Loop
from .support import SIZE, Gate, Instant, Meter, Metered, allocator, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def poke(address: int, byte: int = 1) -> None:
    ctypes.memset(address, byte, 1)


def culprit_allocates(cache: Cache[Any]) -> Buffer[Any]:
    return cache.alloc_nowait()


def culprit_frees(buf: Buffer[Any]) -> None:
    buf.free()


def line_in(function: Any) -> str:
    """The line of a function of this file that has one line."""
    return f"{__file__}:{function.__code__.co_firstlineno + 1} in {function.__qualname__}"


async def cache_of(kmem: aslab.Allocator, debug: str, **options: Any) -> Cache[Any]:
    given: dict[str, Any] = {"name": "c", "size": 64, "debug": debug} | options
    cache: Cache[Any] = kmem.create_cache(**given)
    await cache.prefill(1)
    return cache


class TestRedZones:
    @pytest.mark.parametrize(("offset", "which"), [(64, "right"), (64 + 47, "right"), (-1, "left"), (-16, "left")])
    async def test_a_write_outside_is_found_by_the_free_which_frees(self, offset: int, which: str) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "ZU")
            buf = culprit_allocates(cache)
            address = buf.address
            poke(address + offset, 0x12)
            with pytest.raises(aslab.RedZoneError) as found:
                buf.free()
            first, *lines = str(found.value).splitlines()
            assert first == (
                f"cache 'c': {which} red zone overwritten: buffer of 64 bytes at {address:#x}, held; byte {offset}"
                " from its start: first 0x12, expected 0xbb"
            )
            row = address + offset - offset % 16
            assert f"expected {row:#x}: bb bb" in lines[0]
            assert re.search(rf"found    {row:#x}: (bb )*12", lines[1])
            assert f"    {line_in(culprit_allocates)}" in lines
            assert (found.value.cache, found.value.address) == ("c", address)
            assert cache.stats().obj_held == 0
            culprit_allocates(cache).free()  # what was overwritten is restored

    async def test_no_object_overlaps_a_zone_and_each_is_aligned(self) -> None:
        async with allocator(emergency=Instant()) as kmem:
            cache = await cache_of(kmem, "Z", size=100, align=128)
            bufs = [cache.alloc_nowait() for _ in range(12)]
            assert any(buf.emergency for buf in bufs)
            for buf in bufs:
                assert buf.address % 128 == 0
                buf.view[:] = b"x" * 100
            assert cache.validate() == []
            for buf in bufs:
                buf.free()

    async def test_red_zones_count_against_the_bounds(self) -> None:
        meter = Meter()
        options = {"limit": 4 * SIZE, "emergency_limit": 600}
        async with allocator(
            slabs=Metered(Instant(), meter), emergency=Metered(Instant(), meter), **options
        ) as kmem:
            cache = await cache_of(kmem, "Z", size=200, align=8, objects_per_slab=17)
            with pytest.raises(aslab.ConfigError, match="it must be 0, or at least"):
                kmem.create_cache("large", 590, debug="Z")
            bufs = [cache.alloc_nowait() for _ in range(17)]
            assert meter.highest <= 4 * SIZE + 600
            for buf in bufs:
                buf.free()

    async def test_an_emergency_object_has_them_too(self) -> None:
        async with allocator(slabs=Gate()) as kmem:
            cache = kmem.create_cache("c", 64, debug="ZP")
            buf = cache.alloc_nowait()
            assert buf.emergency
            poke(buf.address - 1)
            poke(buf.address + 64)
            with pytest.raises(aslab.RedZoneError, match="left red zone"):
                buf.free()
            await settle()
            assert kmem.stats().emergency_bytes == 0

    async def test_a_lease_tells_at_its_end(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "Z")
            with pytest.raises(aslab.RedZoneError):
                async with cache.lease() as buf:
                    poke(buf.address + 64)
            assert cache.stats().obj_held == 0

    async def test_it_hides_no_other_exception_and_keeps_no_other_buffer(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "Z")
            with pytest.raises(LookupError):
                async with cache.lease() as buf:
                    poke(buf.address + 64)
                    raise LookupError
            assert "red zone overwritten" in caplog.text
            with pytest.raises(aslab.RedZoneError):
                async with cache.lease_many(3) as bufs:
                    poke(bufs[-1].address + 64)
            assert cache.stats().obj_held == 0


class TestPoison:
    async def test_a_write_after_the_free_is_found_by_the_next_allocation(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "PU")
            buf = culprit_allocates(cache)
            assert bytes(buf.view) == bytes([POISON]) * 64, "who reads before writing sees it"
            address = buf.address
            culprit_frees(buf)
            poke(address + 50, 0x9A)
            with pytest.raises(aslab.PoisonError) as found:
                await cache.alloc()
            text = str(found.value)
            assert "written to after its free" in text
            assert "byte 50 from its start: first 0x9a, expected 0x6b" in text
            assert text.index(line_in(culprit_allocates)) < text.index(line_in(culprit_frees))
            assert cache.stats().obj_held == 0
            check_consistency(cache)
            buf = await cache.alloc()
            assert buf.address == address
            buf.free()

    async def test_of_several_objects_none_is_lost(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "FP", objects_per_slab=4, max_objects=4)
            bufs = await cache.alloc_many(4)
            addresses = [buf.address for buf in bufs]
            for buf in bufs:
                buf.free()
            poke(addresses[1])
            with pytest.raises(aslab.PoisonError):
                await cache.alloc_many(4)
            check_consistency(cache)
            for buf in await cache.alloc_many(4):
                buf.free()

    async def test_what_nobody_allocates_again_is_found_when_the_slab_or_the_cache_goes(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with allocator() as kmem:
                for close in (False, True):
                    cache = await cache_of(kmem, "P", name=f"c{close}")
                    buf = await cache.alloc()
                    address = buf.address
                    buf.free()
                    poke(address + 7)
                    if not close:
                        assert await cache.reap()
        assert len(re.findall("byte 7 from its start", caplog.text)) == 2
        assert [str(one.message).splitlines()[0] for one in caught] == [
            "cache 'cTrue' was closed with damaged memory"
        ]

    async def test_nobody_sees_what_the_last_owner_left_where_frees_zero(self) -> None:
        async with allocator(init_on_free=True) as kmem:
            cache = await cache_of(kmem, "P")
            buf = await cache.alloc()
            buf.view[:6] = b"secret"
            address = buf.address
            buf.free()
            assert ctypes.string_at(address, 64) == bytes([POISON]) * 64
            buf = await cache.alloc()
            assert bytes(buf.view) == bytes(64)
            buf.free()

    async def test_a_view_that_is_kept_may_be_written_to(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "FP", objects_per_slab=1, max_objects=1)
            buf = await cache.alloc()
            view, address = buf.view, buf.address
            buf.free()
            poke(address)  # as a library does that keeps the view object
            assert cache.validate() == []
            buf = await cache.alloc()
            assert ctypes.string_at(address, 64) == bytes([POISON]) * 64
            buf.free()
            poke(address)
            del view
            (await cache.alloc()).free()
            poke(address)
            with pytest.raises(aslab.PoisonError):
                await cache.alloc()

    async def test_not_so_once_it_is_gone_whoever_hears_of_that(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=None) as kmem:
            cache = kmem.create_cache("c", 64, debug="FP")
            buf = await cache.alloc()
            assert buf.emergency
            view, address = buf.view, buf.address
            buf.free()
            del view  # the spare object is told of it
            assert cache.stats().obj_emergency_spare == 1
            poke(address)
            with pytest.raises(aslab.PoisonError):
                await cache.alloc()
        async with allocator() as kmem:
            cache = await cache_of(kmem, "FP", objects_per_slab=2)
            bufs = await cache.alloc_many(2)
            address = bufs[0].address
            with bufs[0].view[:8] as part:
                pass
            bufs[0].free()
            assert cache.stats().obj_lingering == 1
            del part  # nobody is told: the next look finds it
            await cache.reap()
            assert cache.stats().obj_lingering == 0
            poke(address)
            with pytest.raises(aslab.PoisonError):
                await cache.alloc()
            bufs[1].free()

    async def test_not_with_a_constructor_whose_work_it_would_wipe(self) -> None:
        async with allocator(debug="ZP") as kmem:
            with pytest.raises(aslab.ConfigError, match="debug: 'P' is not allowed; P excludes a ctor"):
                kmem.create_cache("refused", 64, ctor=bytes, debug="P")
            cache = kmem.create_cache("c", 64, ctor=lambda view: view.__setitem__(0, 7))
            assert pool_of(cache).config.debug == "Z"
            for _ in range(2):
                buf = await cache.alloc()
                assert buf.view[0] == 7
                buf.free()

    @pytest.mark.parametrize("nbytes", [1, 2, 40, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    def test_damage_is_found_from_its_first_byte_to_its_last(self, nbytes: int, anyio_backend: Loop) -> None:
        memory = bytearray([POISON]) * (nbytes + 2)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + 1
        place = Filled(start, nbytes, POISON)
        memory[0] = memory[-1] = 1
        assert place.damage() is None
        for first, last in {(0, 0), (0, nbytes - 1), (nbytes - 1, nbytes - 1), (nbytes // 2, nbytes - 1)}:
            memory[1 + first] = memory[1 + last] = 2
            assert place.damage() == (start + first, start + last + 1)
            place.fill()
        assert memory[0] == memory[-1] == 1


class TestFreedTwice:
    async def test_with_f_it_says_who_freed_it_first_and_harms_no_next_owner(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "FU")
            buf = culprit_allocates(cache)
            culprit_frees(buf)
            other = await cache.alloc()
            with pytest.raises(aslab.DoubleFreeError, match=re.escape(line_in(culprit_frees))):
                buf.free()
            assert issubclass(aslab.DoubleFreeError, BufferFreedError)
            other.view[0] = 1
            other.free()

    async def test_without_it_is_what_it_was(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "U")
            buf = await cache.alloc()
            buf.free()
            with pytest.raises(BufferFreedError) as found:
                buf.free()
            assert type(found.value) is BufferFreedError


class TestSites:
    async def test_buffers_left_behind_are_told_with_where_they_were_allocated(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with allocator() as kmem:
                cache = await cache_of(kmem, "U")
                culprit_allocates(cache)
                gc.collect()
                kept = [culprit_allocates(cache) for _ in range(12)]
                holders = cache.holders()
                assert len(holders) == 12, "each is noted, with its whole stack"
                assert len(holders[0].stack) > 1
                await cache.aclose()
                for buf in kept:
                    buf.free()
        forgotten, held = (str(one.message) for one in caught)
        assert forgotten.startswith("cache 'c': a Buffer was garbage-collected without free()")
        assert held.startswith("cache 'c' was closed with 12 buffers still held:\nat 0x")
        assert held.endswith("and 2 more")
        assert forgotten.count(line_in(culprit_allocates)) == 1
        assert held.count(line_in(culprit_allocates)) == 10

    async def test_each_allocation_and_free_is_logged_with_t(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "aslab")
        async with allocator() as kmem:
            cache = await cache_of(kmem, "T")
            buf = culprit_allocates(cache)
            address = buf.address
            culprit_frees(buf)
        said = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
        for one, what, where in zip(said, ("alloc", "free"), (culprit_allocates, culprit_frees), strict=True):
            assert one.startswith(f"cache 'c': {what} of the buffer at {address:#x} by ")
            assert one.endswith(line_in(where))


class Tensor:
    """A library's object that keeps a view."""

    def __init__(self, view: memoryview) -> None:
        self.view = view


class TestKeptViews:
    async def test_a_free_is_refused_and_told_who_keeps_the_view(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "V")
            buf = await cache.alloc()
            view = buf.view
            with pytest.raises(
                BufferError, match=r"a view of it is kept: variable 'view' in .*test_debug\.py:\d+"
            ):
                buf.free()
            assert cache.stats().obj_held == 1
            view[0] = 1  # it was not released
            del view
            tensor = Tensor(buf.view)
            with pytest.raises(BufferError, match="an object of type Tensor"):
                buf.free()
            del tensor
            buf.free()

    async def test_so_it_is_for_one_that_a_traceback_keeps(self) -> None:
        def fails(view: memoryview) -> None:
            raise LookupError(len(view))

        async with allocator() as kmem:
            cache = await cache_of(kmem, "V")
            buf = await cache.alloc()
            with pytest.raises(LookupError) as error:
                fails(buf.view)
            with pytest.raises(BufferError, match=r"a view of it is kept: a traceback through .*fails"):
                buf.free()
            del error
            buf.free()

    async def test_so_it_is_for_a_view_that_has_ended(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "V")
            buf = await cache.alloc()
            with buf.pin() as pinned:
                pass
            with pytest.raises(BufferError, match="a view of it is kept: variable 'pinned' in"):
                buf.free()
            del pinned
            async with cache.lease() as other:
                np.frombuffer(other.view, np.uint8)[0] = 1
            buf.free()
            assert cache.stats().obj_lingering == 0

    @pytest.mark.skipif(sys.version_info < (3, 12) and not COMPILED, reason="PEP 688")
    async def test_what_used_the_buffer_itself_keeps_no_view_of_it(self) -> None:
        async with allocator(emergency_limit=0) as kmem:
            cache = await cache_of(kmem, "V", objects_per_slab=1, max_objects=1)
            buf = await cache.alloc()
            struct.unpack_from("<I", buf)  # type: ignore[arg-type]  # before 3.12 not by its type
            with buf.view:
                pass
            struct.unpack_from("<I", buf)  # type: ignore[arg-type]  # before 3.12 not by its type
            kept = buf.view
            with pytest.raises(BufferError, match="a view of it is kept: variable 'kept' in") as refused:
                buf.free()
            assert "tuple" not in str(refused.value)
            del kept, refused
            buf.free()
            other = await cache.alloc()  # while the first handle lives, for whose sake the memory lingers
            other.view[0] = 1
            other.free()
            assert cache.stats().obj_held == 0
            del buf, other
            assert cache.stats().obj_lingering == 0

    async def test_looking_for_who_keeps_it_changes_nothing(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "V")
            buf = await cache.alloc()
            keeps_a_view_and_its_variables(buf)
            buf.free()


def keeps_a_view_and_its_variables(buf: Buffer[Any]) -> None:
    names = locals()
    before = dict(names)
    view = buf.view
    with pytest.raises(BufferError, match="variable 'view' in keeps_a_view_and_its_variables"):
        buf.free()
    del view
    assert names == before


class TestBooks:
    async def test_what_does_not_add_up_is_raised_once_at_a_miss_and_nothing_is_taken(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "F", magazine_size=2)
            slabs = pool_of(cache).depot.slabs
            slabs.slots_total += 1
            with pytest.raises(
                aslab.ConsistencyError, match="cache 'c': the books do not add up: slots in all slabs"
            ):
                await cache.alloc()
            (await cache.alloc()).free()
            slabs.slots_total -= 1

    async def test_where_other_threads_use_the_cache_only_its_slabs_are_looked_at(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "F")
            other = threading.Thread(target=lambda: cache.alloc_nowait().free())
            other.start()
            other.join()
            pool_of(cache).handover.given += 1  # as if a thread were between two steps
            assert cache.validate() == []
            pool_of(cache).handover.given -= 1
            pool_of(cache).depot.slabs.slots_out += 1
            assert len(cache.validate()) == 1
            pool_of(cache).depot.slabs.slots_out -= 1

    @pytest.mark.parametrize(
        ("at", "step"),
        [
            ("held", lambda cache, kept: kept.pop("bufs").free()),
            ("held", lambda cache, kept: kept.setdefault("new", cache.alloc_nowait())),
            ("in_handover", lambda cache, kept: kept.pop("views")),
            ("in_handover", lambda cache, kept: kept.pop("slices") is None or cache._home.look_at_lingering()),
        ],
        ids=["frees", "hits", "ends a view", "looks for views that have ended"],
    )
    async def test_a_thread_in_the_middle_of_a_look_is_no_fault(
        self, at: str, step: Callable[[Any, Any], object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Kept(dict[str, Any]):
            """One of several, as the look is repeated."""

            def pop(self, what: str) -> Any:  # type: ignore[override]
                return self[what].pop()

            def setdefault(self, what: str, one: Any) -> None:  # type: ignore[override]
                self[what].append(one)

        def meanwhile(pool: Any, *rest: Any) -> int:
            found: int = counts(pool, *rest)
            other = threading.Thread(target=step, args=(cache, kept))
            other.start()
            other.join()
            return found

        async with allocator() as kmem:
            cache = await cache_of(kmem, "F")
            bufs = await cache.alloc_many(6)
            kept = Kept(bufs=bufs[:2], new=[], views=[buf.view for buf in bufs[2:4]], slices=[])
            for buf in bufs[4:]:
                kept["slices"].append(buf.view[:4])
                kept["slices"][-1].release()
            for buf in bufs[2:]:
                buf.free()
            counts = getattr(_invariants, at)
            monkeypatch.setattr(_invariants, at, meanwhile)
            assert cache.validate() == []
            monkeypatch.undo()
            for buf in (*kept["bufs"], *kept["new"]):
                buf.free()
            assert cache.stats().obj_held == 0

    async def test_neither_is_a_finaliser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def meanwhile(pool: Any, *rest: Any) -> int:
            found = counts(pool, *rest)
            forgotten.clear()
            return found

        async with allocator() as kmem:
            cache = await cache_of(kmem, "F")
            forgotten = [await cache.alloc()]
            counts = _snapshot.held
            monkeypatch.setattr(_invariants, "held", meanwhile)
            with pytest.warns(ResourceWarning, match="was garbage-collected without free"):
                assert cache.validate() == []
            pool_of(cache).handover.given += 1  # a fault that stays
            assert len(cache.validate()) == 1
            pool_of(cache).handover.given -= 1

    async def test_a_move_in_a_thread_counts_as_one_that_uses_the_cache(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_move, "AT_ONCE", 1)
        async with allocator(expire=None) as kmem:
            cache = await cache_of(kmem, "F", objects_per_slab=4, movable=True)
            bufs = await cache.alloc_many(8)
            for buf in (*bufs[1:4], *bufs[5:]):
                buf.free()
            debug = pool_of(cache).debug
            assert debug is not None
            before = debug.threads
            assert await cache.defragment() > 0
            assert (before, debug.threads) == (False, True)
            for buf in (bufs[0], bufs[4]):
                buf.free()

    async def test_objects_that_the_loop_has_yet_to_put_back_are_no_fault(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "F", objects_per_slab=8, magazine_size=2)
            bufs = await cache.alloc_many(8)
            views = [buf.view for buf in bufs]
            for buf in bufs:
                buf.free()
            views.clear()  # now they are free, by what the garbage collector calls
            magazine = pool_of(cache).magazine
            assert len(magazine) > magazine.capacity
            assert cache.validate() == []
            await settle()
            assert len(magazine) <= magazine.capacity
            slots = pool_of(cache).depot.slabs.take_batch(2)
            magazine.extend(slots)  # nobody has been asked to put these back
            assert [str(one).rpartition(": ")[2] for one in cache.validate()] == ["magazine over its capacity"]
            pool_of(cache).depot.flush()

    async def test_the_ageing_task_and_a_grow_look_too(self, caplog: pytest.LogCaptureFixture) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "F")
            for look in (tasks_of(kmem).age, lambda: cache.prefill(cache.stats().obj_free + 1)):
                slabs = pool_of(cache).depot.slabs
                slabs.slots_out += 1
                await look()
                assert "the books do not add up: slots out of their slabs" in caplog.text
                caplog.clear()
                slabs.slots_out -= 1
                pool_of(cache).debug.told.clear()  # type: ignore[union-attr]

    async def test_an_object_handed_out_twice_stays_with_its_first_owner(self) -> None:
        async with allocator() as kmem:
            cache = await cache_of(kmem, "F")
            buf = await cache.alloc()
            buf.view[0] = 1
            pool_of(cache).magazine.append(buf._slot)
            with pytest.raises(aslab.ConsistencyError, match="is held, and was handed out again"):
                await cache.alloc()
            assert buf.view[0] == 1
            buf.free()


class TestMoving:
    @pytest.mark.parametrize("asked", [False, True])
    async def test_what_has_moved_is_checked_in_its_new_place_and_remembers_who_allocated_it(
        self, asked: bool
    ) -> None:
        async with allocator(debug="FZPU", expire=None) as kmem:
            cache = kmem.create_cache("c", 64, objects_per_slab=4, movable=not asked)
            held: dict[Buffer[Any], Buffer[Any]] = {}

            def move(old: Buffer[Any], new: Buffer[Any], size: int) -> KMEM_CBRC:
                held[new] = held.pop(old)
                new.view[:] = old.view
                return KMEM_CBRC.YES

            if asked:
                cache.set_move(move)
            await cache.prefill(8)
            bufs = [culprit_allocates(cache) for _ in range(8)]
            before = [buf.address for buf in bufs]
            for buf in (*bufs[1:4], *bufs[5:]):
                buf.free()
            for buf in (bufs[0], bufs[4]):
                held[buf] = buf
                with buf.pin() as view:
                    view[:] = b"x" * 64
            del view
            assert await cache.defragment() > 0
            assert cache.validate() == []
            (moved,) = (buf for buf in held if buf.address not in (before[0], before[4]))
            with moved.pin() as view:
                assert bytes(view) == b"x" * 64
            del view
            poke(moved.address + 64)
            with pytest.raises(aslab.RedZoneError, match=re.escape(line_in(culprit_allocates))):
                moved.free()
            for buf in held:
                if buf is not moved:
                    buf.free()

    async def test_a_damaged_place_is_not_moved_to(self, caplog: pytest.LogCaptureFixture) -> None:
        async with allocator(debug="FZP", expire=None) as kmem:
            cache = kmem.create_cache("c", 64, objects_per_slab=4, movable=True)
            bufs = await cache.alloc_many(8)
            stay = [bufs[0], bufs[4]]
            addresses = [buf.address for buf in bufs]
            for buf in bufs:
                if buf not in stay:
                    buf.free()
            for address in addresses:
                if address not in [buf.address for buf in stay]:
                    poke(address)
            assert await cache.defragment() == 0
            assert "written to after its free" in caplog.text
            assert cache.stats().obj_held == 2
            assert len(cache.validate()) < 6, "some were found before"
            assert await cache.defragment() > 0, "all is restored"
            for buf in stay:
                buf.free()


async def test_a_cache_with_letters_shares_no_slabs() -> None:
    async with allocator() as kmem:
        one, other = (kmem.create_cache(name, SIZE, merge=True, debug="F") for name in ("one", "other"))
        await one.prefill(1)
        assert (one.stats().merged, other.stats().slab_total) == ((), 0)


async def test_the_environment_chooses_letters_for_caches_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASLAB_DEBUG", "Z;P,tiles*")
    async with allocator(debug="F") as kmem:
        monkeypatch.delenv("ASLAB_DEBUG")  # it is read once
        letters = {
            name: pool_of(kmem.create_cache(name, 64, debug=debug)).config.debug
            for name, debug in (("frames", None), ("tiles-small", None), ("own", "U"), ("none", ""))
        }
    assert letters == {"frames": "FZ", "tiles-small": "FP", "own": "ZU", "none": "Z"}


async def test_wrong_letters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        for wrong in ("X", "f", 1):
            with pytest.raises(aslab.ConfigError, match=r"debug: .* is not allowed; it must be letters of FZPUTV"):
                kmem.create_cache("c", 64, debug=wrong)  # type: ignore[arg-type]
    monkeypatch.setenv("ASLAB_DEBUG", "yes")
    with pytest.raises(aslab.ConfigError, match="ASLAB_DEBUG: 'yes' is not allowed"):
        async with allocator():
            pass


async def test_without_letters_there_is_nothing_to_validate_and_the_handles_are_plain() -> None:
    async with allocator() as kmem:
        cache = await cache_of(kmem, "")
        buf = await cache.alloc()
        assert type(buf) is Buffer
        buf.free()
        assert cache.validate() == []


async def test_frees_and_allocations_of_waiters_are_checked_as_well() -> None:
    async with allocator(emergency_limit=0) as kmem:
        cache = await cache_of(kmem, "FZPU", objects_per_slab=1, max_objects=1)
        buf = await cache.alloc()
        address = buf.address

        async def wait() -> None:
            with pytest.raises(aslab.PoisonError):
                await cache.alloc(KM.SLEEP)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            assert cache.stats().waiters == 1
            buf.free()
            poke(address)
        check_consistency(cache)
        (await cache.alloc()).free()


async def test_a_finding_can_be_pickled() -> None:
    error = aslab.PoisonError("text", "c", 4096, "restored")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.cache, again.address, again.restored) == ("text", "c", 4096, "restored")
