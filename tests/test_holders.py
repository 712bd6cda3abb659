"""Who holds what: what is noted, that a note ends with its buffer, and who is told of it."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest

import aslab
from aslab import KM, KMEM_CBRC, Buffer, Cache, EventKind, Holder
from aslab._allocator import tasks_of
from aslab._cache import pool_of
from aslab._config import MOST_SAMPLED
from aslab._kmem import _holders
from aslab._kmem._holders import LONG

from .helpers import Loop
from .support import SIZE, Gate, allocator, settle, start
from .test_move import Client, sparse

pytestmark = pytest.mark.anyio

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "movable": {"movable": True},
    "shared": {"merge": True},
    "zeroed": {"init_on_free": True},
    "with callbacks": {"ctor": bytes},
}


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def named(holders: tuple[Holder, ...]) -> list[str]:
    """By each holder's task, in what function."""
    return [f"{holder.task}: {re.split('[ .]', holder.place)[-1]}" for holder in holders]


async def hold(cache: Cache[Any], seconds: float) -> None:
    async with cache.lease():
        await anyio.sleep(seconds)


async def hold_many(cache: Cache[Any], seconds: float) -> None:
    async with cache.lease_many(2):
        await anyio.sleep(seconds)


def in_a_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


class TestNotes:
    @pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
    async def test_name_task_place_and_time_of_each_buffer_until_it_is_freed(
        self, options: dict[str, Any]
    ) -> None:
        async with allocator(holders_sample=1) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("frames", SIZE, **options)
            other = kmem.create_cache("others", SIZE, **options)
            begin = anyio.current_time()
            tasks.start_soon(hold, cache, 2, name="upload 7")
            await anyio.sleep(1)
            tasks.start_soon(hold_many, other, 1.5, name="resize")
            buf = cache.alloc_nowait()
            await anyio.sleep(0.5)
            first, mine, *_ = held = kmem.holders()
            here = "test_name_task_place_and_time_of_each_buffer_until_it_is_freed"
            assert sorted(named(held)) == sorted(
                ["upload 7: hold", f"{mine.task}: {here}", *2 * ["resize: hold_many"]]
            )
            assert (first.cache, first.size, first.since, first.seconds) == ("frames", SIZE, begin, 1.5)
            assert first.place.startswith(__file__)
            assert cache.holders() == tuple(holder for holder in held if holder.cache == "frames")
            assert str(first) == f"4 KiB of cache 'frames' for 1.5 s by 'upload 7', allocated at {first.place}"
            await anyio.sleep(0.6)
            assert [holder.task for holder in kmem.holders()] == [mine.task, "resize", "resize"]
            buf.free()
            await anyio.sleep(1)
            assert kmem.holders() == ()

    async def test_are_of_emergency_objects_and_of_objects_that_were_waited_for_too(self) -> None:
        async with allocator(slabs=Gate(), holders_sample=1) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            with await cache.alloc(timeout=10), cache.alloc_nowait(KM.PUSHPAGE) as second:
                assert second.emergency
                assert len(cache.holders()) == 2
            assert cache.holders() == ()

    @pytest.mark.parametrize("options", [{}, {"movable": True}], ids=["hits", "detour"])
    async def test_are_of_one_in_n_allocations_and_the_others_are_as_without(
        self, options: dict[str, Any]
    ) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("frames", SIZE, holders_sample=10, **options)
            plain = kmem.create_cache("plain", SIZE, holders_sample=0, **options)
            await cache.prefill(1)
            await plain.prefill(1)
            with plain.alloc_nowait() as buf:
                usual = type(buf)
            noted = 0
            for _ in range(1000):
                with cache.alloc_nowait() as buf:
                    noted += len(cache.holders())
                    assert cache.holders() or type(buf) is usual
            assert 95 <= noted <= 105
            assert cache.stats().hold_time.count == noted
            assert plain.holders() == ()

    @pytest.mark.parametrize(
        ("size", "sample"), [(64, MOST_SAMPLED), (2**16, 1024), (2**20, 64), (2**25, 2), (2**25 + 1, 1)]
    )
    async def test_are_by_default_of_one_buffer_for_each_64_mib(self, size: int, sample: int) -> None:
        async with allocator() as kmem:
            assert pool_of(kmem.create_cache("frames", size)).config.holders_sample == sample
            assert pool_of(kmem.create_cache("all", size, holders_sample=1)).config.holders_sample == 1

    async def test_are_of_every_caller_that_waited_for_long_unless_none_are_wanted(self) -> None:
        async with allocator() as kmem:
            for sample, waited, noted in ((2**20, LONG, 1), (2**20, LONG / 2, 0), (0, LONG, 0)):
                cache = kmem.create_cache("c", SIZE, objects_per_slab=1, max_objects=1, holders_sample=sample)
                async with anyio.create_task_group() as tasks:
                    await start(tasks, hold, cache, waited)
                    buf = await cache.alloc()
                    assert len(cache.holders()) == noted
                buf.free()
                assert cache.stats().hold_time.count == 0  # what was not picked stands for no other
                await cache.aclose()

    @pytest.mark.parametrize(("timeout", "cancelled_after"), [(LONG, 9), (None, LONG)], ids=["late", "cancelled"])
    async def test_are_not_of_one_served_at_once_after_another_waited_in_vain(
        self, timeout: float | None, cancelled_after: float
    ) -> None:
        async with allocator() as kmem:
            options: dict[str, Any] = {"objects_per_slab": 1, "max_objects": 1, "holders_sample": 2**20}
            cache = kmem.create_cache("c", SIZE, **options, movable=True)  # so that no hit is a short way
            with await cache.alloc(), anyio.move_on_after(cancelled_after), suppress(TimeoutError):
                await cache.alloc(timeout=timeout)
            with await cache.alloc():
                assert cache.holders() == ()

    @pytest.mark.parametrize("answer", [KMEM_CBRC.YES, KMEM_CBRC.NO, KMEM_CBRC.DONT_NEED], ids=str)
    async def test_go_with_objects_that_their_client_moves(self, answer: KMEM_CBRC) -> None:
        client = Client(answer)
        async with allocator(holders_sample=1) as kmem:
            cache, _ = await sparse(kmem, client)
            before = {holder.place for holder in cache.holders()}
            await cache.defragment()
            assert len(cache.holders()) == cache.stats().obj_held == len(client.kept)
            assert {holder.place for holder in cache.holders()} == before
            client.free_all()
            assert cache.holders() == ()

    async def test_stay_while_memory_of_a_forgotten_buffer_is_exported(self) -> None:
        async with allocator(holders_sample=1) as kmem:
            cache = kmem.create_cache("c", SIZE)
            with pytest.warns(ResourceWarning, match=r"without free\(\); it was allocated by .* at .*_exported$"):
                buf = cache.alloc_nowait()
                part = buf.view[:8]
                del buf
                gc.collect()
            assert len(cache.holders()) == cache.stats().obj_held == 1
            part.release()
            del part
            await settle()
            await tasks_of(kmem).age()  # in Python, a look has to find that the export has ended
            assert cache.holders() == ()

    async def test_end_in_finalisers_and_in_other_threads(self) -> None:
        async with allocator(holders_sample=1) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await cache.prefill(8)
            in_a_thread(cache.alloc_nowait().free)
            kept: list[Buffer[memoryview]] = []
            in_a_thread(lambda: kept.append(cache.alloc_nowait()))
            assert named(cache.holders())[0].startswith("Thread-")
            kept.pop().free()
            with pytest.warns(ResourceWarning, match="without free"):
                in_a_thread(lambda: str(cache.alloc_nowait()))
                gc.collect()
            assert cache.holders() == ()

    async def test_of_threads_that_allocate_and_free_side_by_side_leave_nothing_behind(self) -> None:
        async with allocator() as kmem:
            cache = kmem.create_cache("c", SIZE, holders_sample=3)
            await cache.prefill(16)

            def work() -> None:
                for _ in range(300):
                    first, second = cache.alloc_nowait(), cache.alloc_nowait()
                    assert len(kmem.holders()) <= 8
                    first.free()
                    second.free()

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(anyio.to_thread.run_sync, work)
            assert cache.holders() == ()
            assert 700 <= cache.stats().hold_time.count <= 900

    async def test_are_bounded_and_the_oldest_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_holders, "MOST", 8)
        async with allocator() as kmem:
            sampled = kmem.create_cache("sampled", SIZE, holders_sample=2, objects_per_slab=64)
            every = kmem.create_cache("every", SIZE, holders_sample=1)
            await sampled.prefill(512)
            bufs, oldest = [], None
            for _ in range(512):
                bufs.append(sampled.alloc_nowait())
                await anyio.sleep(0.001)
                oldest = oldest or next(iter(sampled.holders()), None)
                assert len(sampled.holders()) <= 8
            assert oldest is not None
            assert sampled.holders()[0].since == oldest.since
            assert len(sampled.holders()) > 2
            for buf in bufs:
                buf.free()
            before = sampled.stats().hold_time.count
            for _ in range(2000):  # it notes as many as before, once fewer are held
                sampled.alloc_nowait().free()
            assert sampled.stats().hold_time.count - before > 700
            many = [every.alloc_nowait() for _ in range(20)]
            assert len(every.holders()) == 20
            for buf in many:
                buf.free()

    async def test_can_be_read_and_ended_in_a_child_made_by_fork(self) -> None:
        async with allocator(holders_sample=1) as kmem:
            buf = kmem.create_cache("c", SIZE).alloc_nowait()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # there may be threads
                child = os.fork()
            if not child:
                before = len(kmem.holders())
                buf.free()
                os._exit(10 * before + len(kmem.holders()))
            _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 10
            assert len(kmem.holders()) == 1
            buf.free()


class TestTelling:
    @pytest.mark.parametrize("changes", [0, 1, 3])
    async def test_an_error_looks_at_the_oldest_notes_alone_unless_others_change_them_all_the_time(
        self, changes: int
    ) -> None:
        class Notes(dict[Any, None]):
            seen = changed = 0

            def __iter__(self) -> Any:
                for note in super().__iter__():
                    self.seen += 1
                    yield note
                    if self.changed < changes:
                        self.changed += 1
                        raise RuntimeError("dictionary changed size during iteration")

        async with allocator(holders_sample=1) as kmem:
            cache = kmem.create_cache("frames", SIZE, max_objects=64, max_emergency=0)
            held = await cache.alloc_many(64)
            holders = pool_of(cache).members[0].holders
            holders.notes = notes = Notes(holders.notes)
            with pytest.raises(TimeoutError, match=r"held longest, of 64 noted:(\n  4 KiB .*){3}$"):
                await cache.alloc(timeout=1)
            assert notes.seen == changes + (64 if changes == 3 else 3)
            for buf in held:
                buf.free()

    async def test_an_error_for_want_of_time_names_the_three_oldest(self) -> None:
        async with allocator(holders_sample=1) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("frames", SIZE, objects_per_slab=4, max_objects=4)
            for number in range(4):
                tasks.start_soon(hold, cache, 10, name=f"upload {number}")
                await anyio.sleep(1)
            with pytest.raises(TimeoutError) as caught:
                await cache.alloc(timeout=2)
            first, second, *lines = str(caught.value).splitlines()
            assert first == "cache 'frames' (4 held, 0 waiting, max_objects 4): no object came within 2 s"
            assert second == "held longest, of 4 noted:"
            assert [line.partition(", ")[0] for line in lines] == [
                f"  4 KiB of cache 'frames' for {6 - n}.0 s by 'upload {n}'" for n in range(3)
            ]
            assert all(line.endswith(" in hold") for line in lines)
            tasks.cancel_scope.cancel()

    async def test_the_error_names_those_of_other_caches_if_they_have_the_limit(self) -> None:
        async with allocator(limit=2 * SIZE) as kmem:
            theirs = kmem.create_cache("theirs", SIZE, objects_per_slab=1, holders_sample=1)
            ours = kmem.create_cache("ours", SIZE, objects_per_slab=1)
            bounded = kmem.create_cache("bounded", SIZE, objects_per_slab=1, max_objects=1)
            bufs = [await theirs.alloc(), await bounded.alloc()]
            with pytest.raises(TimeoutError, match="of cache 'theirs' for 1"):
                await ours.alloc(timeout=1)
            nobody = r"s\nwho holds them was not noted: holders_sample is 4096, and 1 notes each$"
            with pytest.raises(TimeoutError, match=nobody):
                await bounded.alloc(timeout=1)
            for buf in bufs:
                buf.free()

    async def test_the_error_names_nobody_where_nothing_is_held(self) -> None:
        async with allocator(slabs=Gate(), emergency_limit=0) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            with pytest.raises(TimeoutError, match=r"\(0 held, 0 waiting\): no object came within 1 s$"):
                await cache.alloc(timeout=1)

    async def test_what_is_held_for_leak_after_is_reported_once(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, logger="aslab")
        async with allocator(expire=3, leak_after=5, holders_sample=1) as kmem:
            cache, quiet = kmem.create_cache("frames", SIZE), kmem.create_cache("quiet", SIZE, leak_after=0)
            bufs = [cache.alloc_nowait(), quiet.alloc_nowait()]
            with kmem.events() as events:
                await anyio.sleep(3)
                bufs.append(cache.alloc_nowait())
                await anyio.sleep(1.5)
                assert caplog.records == []
                await anyio.sleep(1.6)
                (record,) = caplog.records
                event = await anext(events)
                bufs.pop().free()
                await anyio.sleep(60)
            assert caplog.records == [record]
            assert event.kind is EventKind.HELD_LONG
            assert event.holder is not None
            assert event.text == record.getMessage() == f"not freed: {event.holder}"
            fields = vars(record)
            assert (fields["aslab_event"], fields["aslab_cache"]) == ("held_long", "frames")
            assert (fields["aslab_task"], fields["aslab_place"]) == (event.holder.task, event.holder.place)
            assert 5 <= fields["aslab_seconds"] == event.seconds <= 6
            for buf in bufs:
                buf.free()

    async def test_how_long_buffers_were_held_is_counted_by_buckets(self) -> None:
        async with allocator(holders_sample=1) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("frames", SIZE)
            for seconds in (0.2, 0.2, 4.0):
                tasks.start_soon(hold, cache, seconds)
            await anyio.sleep(1)
            stats = cache.stats()
            assert stats.hold_time.counts[stats.hold_time.bounds.index(0.25)] == stats.hold_time.count == 2
            assert stats.hold_time.seconds == pytest.approx(0.4)
            assert stats.oldest_hold == pytest.approx(1.0)
        assert cache.stats().hold_time.count == 3
        assert cache.stats().oldest_hold == 0

    async def test_a_cache_closed_with_buffers_still_held_names_them(self) -> None:
        async with allocator(holders_sample=1) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            buf = cache.alloc_nowait()
            with pytest.warns(ResourceWarning, match=r"1 buffers still held, of those noted:\n  4 KiB of cache"):
                await cache.aclose()
            assert kmem.holders() == ()
            buf.free()


@pytest.mark.parametrize("options", [{"holders_sample": -1}, {"leak_after": -1.0}, {"holders_sample": 1.5}])
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    (field,) = options
    async with allocator() as kmem:
        with pytest.raises(aslab.ConfigError, match=f"{field}: .* is not allowed"):
            kmem.create_cache("c", SIZE, **options)
    with pytest.raises(aslab.ConfigError, match=f"{field}: .* is not allowed"):
        async with aslab.open_allocator(**options):
            pass
