"""Moving: what each answer of a callback means, what movable caches do by themselves, and what may go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from aslab import KM, KMEM_CBRC, Allocator, Buffer, BufferFreedError, Cache, CacheClosedError, ConfigError
from aslab._cache import pool_of
from aslab._fastpath import ManagedBuffer, Slot, lease_view
from aslab._kmem import _move as move
from aslab._kmem._pool import Pool
from aslab._kmem._slab import Slab, SlabLists
from aslab.faults import Deadlock
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio

Buf = Buffer[memoryview]
YES, NO, LATER, DONT_NEED, DONT_KNOW = KMEM_CBRC


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Client:
    """Keeps its objects in a list, moves them when asked, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Buf, Buf], object] | KMEM_CBRC = YES) -> None:
        self.kept: list[Buf] = []
        self.asked: list[Buf] = []
        self._answer = answer

    def move(self, old: Buf, new: Buf, size: int) -> Any:
        self.asked.append(old)
        assert size == len(old) == len(new) == SIZE
        assert old.address != new.address
        assert old in self.kept
        if isinstance(self._answer, KMEM_CBRC):
            if self._answer is YES:
                new.view[:] = old.view
                self.kept[self.kept.index(old)] = new
            elif self._answer is DONT_NEED:
                self.kept.remove(old)
            return self._answer
        return self._answer(old, new)

    def free_all(self) -> None:
        for buf in self.kept:
            buf.free()
        self.kept.clear()


async def sparse(
    kmem: Allocator, client: Client | None = None, slabs: int = 4
) -> tuple[Cache[memoryview], list[Buf]]:
    """A cache with so many slabs of 4 objects; of the first all are held, of each other one."""
    cache = kmem.create_cache("c", SIZE, objects_per_slab=4, movable=client is None, magazine_size=2)
    if client is not None:
        cache.set_move(client.move)
    bufs = [await cache.alloc() for _ in range(4 * slabs)]
    # Each slab's objects are handed out together.
    kept = [buf for number, buf in enumerate(bufs) if number % 4 == 0 or number < 3]
    for buf in bufs:
        if buf not in kept:
            buf.free()
    for number, buf in enumerate(kept):
        with buf.pin() as view:
            view[:] = bytes([number + 1]) * SIZE
    if client is not None:
        client.kept = list(kept)
    await cache.reap()
    check_consistency(cache)
    return cache, kept


def contents(bufs: list[Buf]) -> list[int]:
    found = []
    for buf in bufs:
        with buf.pin() as view:
            assert len(set(view)) == 1
            found.append(view[0])
    return found


# -- the answers


async def test_yes_the_old_is_freed_the_new_is_the_clients_and_whole_slabs_go() -> None:
    client = Client(YES)
    async with allocator() as kmem:
        cache, old = await sparse(kmem, client)
        assert cache.stats().slab_total == 4
        assert await cache.defragment() == 2 * 4 * SIZE
        stats = cache.stats()
        assert (stats.slab_total, stats.obj_held, stats.obj_cached) == (2, 6, 0)
        assert stats.move_yes == len(client.asked) == 2
        assert contents(client.kept) == [1, 2, 3, 4, 5, 6]
        for buf in client.asked:
            with pytest.raises(BufferFreedError):
                buf.free()
        check_consistency(cache)
        client.free_all()
        assert len(old) == 6


async def test_what_comes_back_by_a_move_goes_past_the_magazine() -> None:
    client = Client(NO)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client)
        await cache.defragment()
        assert cache.stats().obj_cached == 0
        client.free_all()


async def test_no_the_new_is_freed_and_the_slab_left_alone_until_it_leaves_the_partial_list() -> None:
    client = Client(NO)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        for _ in range(5):
            assert await cache.defragment() == 0
        assert len(client.asked) == 1
        assert cache.stats().move_no == 1
        more = [await cache.alloc() for _ in range(cache.stats().obj_total - cache.stats().obj_held)]
        for buf in more:
            buf.free()
        client._answer = YES
        assert await cache.defragment() == 4 * SIZE
        assert contents(client.kept) == [1, 2, 3, 4]
        client.free_all()


async def test_later_is_asked_again_and_is_no_from_the_third_time_on() -> None:
    client = Client(LATER)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        for _ in range(6):
            await cache.defragment()
        assert len(client.asked) == 3
        assert (cache.stats().move_later, cache.stats().move_no) == (3, 0)
        client.free_all()


async def test_dont_need_frees_both() -> None:
    client = Client(DONT_NEED)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client)
        await cache.defragment()
        stats = cache.stats()
        assert stats.move_dont_need == len(client.asked) == 3
        assert (stats.slab_total, stats.obj_held) == (1, 3)
        assert contents(client.kept) == [1, 2, 3]
        client.free_all()


async def test_dont_know_frees_the_new_and_is_counted_apart() -> None:
    client = Client(DONT_KNOW)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        for _ in range(4):
            await cache.defragment()
        stats = cache.stats()
        assert stats.move_dont_know == len(client.asked) == 4, "it may know the next time"
        assert (stats.move_no, stats.move_later, stats.obj_held) == (0, 0, 4)
        assert contents(client.kept) == [1, 2, 3, 4]
        client.free_all()


# -- callbacks that do what they should not


async def test_a_callback_that_raises_is_logged_and_counts_as_no(caplog: pytest.LogCaptureFixture) -> None:
    def fails(old: Buf, new: Buf) -> object:
        raise ZeroDivisionError

    client = Client(fails)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await cache.defragment()
        assert caplog.text.count("move callback failed") == 1
        assert "ZeroDivisionError" in caplog.text
        assert (cache.stats().move_no, len(client.asked)) == (1, 1)
        assert contents(client.kept) == [1, 2, 3, 4]
        client.free_all()


@pytest.mark.parametrize("answer", [None, True, "yes", 1], ids=repr)
async def test_any_other_answer_counts_as_no_and_the_log_says_what_is_allowed(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(lambda old, new: answer)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        with caplog.at_level(logging.ERROR):
            await cache.defragment()
        assert f"it returned {answer!r}; it must return a member of aslab.KMEM_CBRC" in caplog.text
        assert contents(client.kept) == [1, 2, 3, 4]
        client.free_all()


async def test_a_callback_that_says_yes_and_still_uses_the_old_memory_hurts_nobody() -> None:
    parts: list[memoryview] = []

    def lies(old: Buf, new: Buf) -> object:
        parts.append(old.view[:4])
        client.kept[client.kept.index(old)] = new
        return YES

    client = Client(lies)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        await cache.defragment()
        check_consistency(cache)
        everything = [await cache.alloc() for _ in range(12)]
        parts[0][:] = b"mine"
        for buf in everything:
            assert bytes(buf.view[:4]) != b"mine"
            buf.free()
        parts.clear()
        client.free_all()
        await anyio.sleep(30)  # it is looked at by the ageing task
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_a_callback_that_keeps_the_new_object_and_says_no_hurts_nobody() -> None:
    stolen: list[Buf] = []

    def steals(old: Buf, new: Buf) -> object:
        stolen.append(new)
        return NO

    client = Client(steals)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=2)
        await cache.defragment()
        with pytest.raises(BufferFreedError):
            stolen[0].free()
        check_consistency(cache)
        client.free_all()


@pytest.mark.parametrize("which", ["old", "new", "both"])
@pytest.mark.parametrize("answer", list(KMEM_CBRC), ids=lambda answer: answer.value)
async def test_a_callback_that_frees_an_object_itself_frees_it_once(which: str, answer: KMEM_CBRC) -> None:
    def frees(old: Buf, new: Buf) -> object:
        client.kept.remove(old)
        if which != "new":
            old.free()
        if which != "old":
            new.free()
        survivor = {YES: new, DONT_NEED: None}.get(answer, old)
        if survivor is not None and hasattr(survivor, "_slot"):
            client.kept.append(survivor)
        return answer

    client = Client(frees)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client)
        await cache.defragment()
        check_consistency(cache)
        assert cache.stats().obj_held == len(client.kept)
        client.free_all()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_a_callback_may_allocate_and_free_others() -> None:
    more: list[Buf] = []

    def allocates(old: Buf, new: Buf) -> object:
        more.append(cache.alloc_nowait())
        if len(more) > 1:
            more.pop(0).free()
        new.view[:] = old.view
        client.kept[client.kept.index(old)] = new
        return YES

    client = Client(allocates)
    async with allocator() as kmem:
        cache, _ = await sparse(kmem, client, slabs=6)
        await cache.defragment()
        check_consistency(cache)
        assert contents(client.kept) == [1, 2, 3, 4, 5, 6, 7, 8]
        for buf in [*more, *client.kept]:
            buf.free()
        client.kept.clear()
        check_consistency(cache)


async def test_constructed_objects_are_moved_to_constructed_objects() -> None:
    made: list[bytearray] = []

    def ctor(view: memoryview) -> bytearray:
        made.append(bytearray(1))
        return made[-1]

    kept: list[Buffer[bytearray]] = []

    def moves(old: Buffer[bytearray], new: Buffer[bytearray], size: int) -> KMEM_CBRC:
        assert any(new.obj is one for one in made)
        assert new.obj is not old.obj
        new.obj[:] = old.obj
        kept[kept.index(old)] = new
        return YES

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, ctor=ctor)
        cache.set_move(moves)
        bufs = [await cache.alloc() for _ in range(8)]
        kept += [bufs[0], bufs[4]]
        kept[0].obj[:], kept[1].obj[:] = b"a", b"b"
        for buf in bufs:
            if buf not in kept:
                buf.free()
        await cache.defragment()
        assert [bytes(buf.obj) for buf in kept] == [b"a", b"b"]
        assert cache.stats().slab_total == 1
        for buf in kept:
            buf.free()


@pytest.mark.parametrize(
    ("options", "callback", "words"),
    [
        ({}, None, "it must be a function"),
        ({"movable": True}, Client().move, "it excludes movable and merge"),
        ({"merge": True}, Client().move, "it excludes movable and merge"),
    ],
)
async def test_set_move_refuses_what_makes_no_sense(options: dict[str, Any], callback: Any, words: str) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        with pytest.raises(ConfigError, match=words):
            cache.set_move(callback)


async def test_a_closed_cache_moves_nothing_and_learns_no_callback() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.aclose()
        with pytest.raises(CacheClosedError):
            cache.set_move(Client(YES).move)
        with pytest.raises(CacheClosedError):
            await cache.defragment()


async def test_set_move_comes_once_and_before_the_first_allocation() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        (await cache.alloc()).free()
        with pytest.raises(ConfigError, match="before the first allocation"):
            cache.set_move(Client().move)
        other = kmem.create_cache("d", SIZE)
        other.set_move(Client().move)
        with pytest.raises(ConfigError, match="once"):
            other.set_move(Client().move)


# -- caches that move by themselves


async def test_movable_buffers_move_without_being_asked_and_their_handles_lead_to_the_new_place() -> None:
    async with allocator() as kmem:
        cache, kept = await sparse(kmem)
        before = [buf.address for buf in kept]
        assert await cache.defragment() == 2 * 4 * SIZE
        moved = [buf.address != old for buf, old in zip(kept, before, strict=True)]
        assert sum(moved) == cache.stats().move_yes == 2
        assert contents(kept) == [1, 2, 3, 4, 5, 6]
        assert len({buf.address for buf in kept}) == 6
        check_consistency(cache)
        for buf in kept:
            buf.free()
        check_consistency(cache)


async def test_churn_of_200_slabs_with_a_tenth_left_needs_25_and_pinned_ones_stay() -> None:
    async with allocator(expire=None) as kmem:
        cache = kmem.create_cache("c", 512, objects_per_slab=64, movable=True)
        bufs = [await cache.alloc() for _ in range(200 * 64)]
        draw = random.Random(1)
        draw.shuffle(bufs)
        live, rest = bufs[: len(bufs) // 10], bufs[len(bufs) // 10 :]
        for buf in rest:
            buf.free()
        for buf in live:
            with buf.pin() as view:
                view[:] = draw.randbytes(512)
        pinned = [(buf, buf.view, buf.address) for buf in live[:8]]
        await cache.reap()
        before = [_digest(buf) for buf in live]
        assert cache.stats().slab_total >= 190
        await cache.defragment()
        assert cache.stats().slab_total <= 25
        assert [_digest(buf) for buf in live] == before
        assert all(buf.address == address and view.nbytes == 512 for buf, view, address in pinned)
        check_consistency(cache)
        pinned.clear()
        for buf in live:
            buf.free()


def _digest(buf: Buf) -> str:
    with buf.pin() as view:
        return hashlib.sha256(view).hexdigest()


async def test_others_have_their_turn_while_much_is_moved() -> None:
    async with allocator(expire=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=64, movable=True)
        bufs = [await cache.alloc() for _ in range(40 * 64)]
        live = bufs[::8]
        for number, buf in enumerate(bufs):
            if number % 8:
                buf.free()
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        tasks.start_soon(other)
        await cache.defragment()
        tasks.cancel_scope.cancel()
        assert turns >= cache.stats().move_yes * SIZE // move.AT_ONCE > 3
        for buf in live:
            buf.free()


@pytest.mark.parametrize("hold", ["pin", "view", "slice kept past the pin"])
async def test_a_pinned_buffer_stays_and_moves_when_nothing_holds_it(hold: str) -> None:
    async with allocator() as kmem:
        cache, kept = await sparse(kmem, slabs=2)
        buf = kept[-1]
        address = buf.address
        if hold == "view":
            view = buf.view
            await cache.defragment()
            assert view[0] == 4
            view.release()
        else:
            with buf.pin() as view:
                await cache.defragment()
                part = view[:8]
                if hold == "pin":
                    part.release()
            if hold != "pin":
                await cache.defragment()
                assert buf.address == address
                part[:] = b"still me"
                part.release()
                with buf.pin() as view:
                    assert bytes(view[:8]) == b"still me"
                    view[:8] = b"\4" * 8
            del part
        del view  # its object, too, would keep the slab
        assert buf.address == address
        assert await cache.defragment() == 4 * SIZE
        assert buf.address != address
        assert contents(kept) == [1, 2, 3, 4]
        for one in kept:
            one.free()


async def test_nothing_leaves_a_slab_in_which_something_is_pinned() -> None:
    """It could not go all the same, so nothing is copied out of it, nor is it tried in vain."""
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, movable=True, magazine_size=2)
        bufs = [await cache.alloc() for _ in range(8)]
        bufs.sort(key=lambda buf: buf.address)  # one slab, then the other
        for number in (6, 4, 3):
            bufs.pop(number).free()
        addresses = [buf.address for buf in bufs]
        with bufs[-1].pin():
            await cache.defragment()
        assert (cache.stats().move_yes, cache.stats().move_later) == (0, 0)
        assert [buf.address for buf in bufs] == addresses
        await cache.defragment()
        assert cache.stats().move_yes == 1
        for buf in bufs:
            buf.free()


@pytest.mark.parametrize("meanwhile", ["freed", "pinned"])
async def test_a_slab_is_emptied_though_something_of_it_is_freed_meanwhile_and_not_if_it_is_pinned(
    meanwhile: str,
) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", move.AT_ONCE, objects_per_slab=16, movable=True, magazine_size=2)
        bufs = [await cache.alloc() for _ in range(32)]
        bufs.sort(key=lambda buf: buf.address)
        for number in reversed([*range(8, 16), *range(21, 32)]):
            bufs.pop(number).free()
        pin = bufs[-2].pin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.defragment)
            while not cache.stats().move_yes:
                await anyio.lowlevel.checkpoint()
            # There is a turn for others after each object so large: one or two of five are moved by now.
            if meanwhile == "freed":
                bufs.pop(-2).free()
            else:
                pin.__enter__()
        if meanwhile == "freed":
            assert (cache.stats().slab_total, cache.stats().move_yes) == (1, 4)
        else:
            assert (cache.stats().slab_total, cache.stats().move_yes) == (2, 3)
            pin.__exit__(None, None, None)
        for buf in bufs:
            buf.free()


async def test_what_is_written_by_a_pin_between_the_look_and_the_copy_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with allocator() as kmem:
        cache, kept = await sparse(kmem, slabs=2)
        look, copy = move._may_move, ctypes.memmove
        pins: list[Any] = []

        def looks(pool: Pool[Any], owner: Any, slot: Any) -> bool:
            found = look(pool, owner, slot)
            if found and owner.moving and not pins:  # as another thread may do at this moment
                pins.append((owner.pin(), owner))
                pins.append(pins[0][0].__enter__())
            return found

        def copies(*args: Any) -> None:
            copy(*args)
            if len(pins) == 2:
                pins[1][:] = b"x" * SIZE
                pins.pop()
                pins[0][0].__exit__(None, None, None)

        monkeypatch.setattr(move, "_may_move", looks)
        monkeypatch.setattr("aslab._kmem._move.ctypes", type("ctypes", (), {"memmove": staticmethod(copies)}))
        await cache.defragment()
        with pins[0][1].pin() as view:
            assert bytes(view) == b"x" * SIZE
        del view
        for buf in kept:
            buf.free()
        check_consistency(cache)


async def test_sparse_slabs_are_found_under_the_lock_as_other_threads_change_the_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with allocator() as kmem:
        cache, kept = await sparse(kmem, slabs=3)
        depot, look, locked = pool_of(cache).depot, SlabLists.may_empty, []

        def looks(slabs: SlabLists[memoryview], slab: Slab[memoryview], steps: int, of: int) -> bool:
            locked.append(depot.lock.locked())
            return look(slabs, slab, steps, of)

        monkeypatch.setattr(SlabLists, "may_empty", looks)
        await cache.defragment()
        assert set(locked) == {True}
        for buf in kept:
            buf.free()


async def test_handle_is_moving_until_it_leads_to_the_new_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache, kept = await sparse(kmem, slabs=2)
        seen, lead = [], ManagedBuffer.lead_to

        def leads(buf: ManagedBuffer[memoryview], slot: Slot[memoryview]) -> None:
            seen.append(buf.moving)
            lead(buf, slot)

        monkeypatch.setattr(ManagedBuffer, "lead_to", leads)
        await cache.defragment()
        assert seen == [True]
        for buf in kept:
            assert not buf.moving  # type: ignore[attr-defined]
            buf.free()


async def test_the_reserve_moves_out_of_a_slab_that_is_emptied() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, movable=True, magazine_size=2, reserve=1)
        bufs = [await cache.alloc() for _ in range(7)]  # the reserve has the eighth
        assert (cache.stats().slab_total, cache.stats().obj_reserved) == (2, 1)
        for buf in bufs[1:]:
            buf.free()
        await cache.defragment()
        assert (cache.stats().slab_total, cache.stats().obj_reserved) == (1, 1)
        bufs[0].free()


async def test_objects_that_nobody_holds_a_handle_of_are_in_nobodys_way() -> None:
    async with allocator() as kmem:
        cache, kept = await sparse(kmem, slabs=3)
        part = kept[-1].view[:4]
        with pytest.warns(ResourceWarning, match="without free"):
            del kept[-1]  # lost, and still exported: it is parked
        await cache.defragment()
        check_consistency(cache)
        part.release()
        await anyio.sleep(30)
        assert contents(kept) == [1, 2, 3, 4]
        for buf in kept:
            buf.free()


LARGE = 2 * move.AT_ONCE


async def large_ones(kmem: Allocator, **options: Any) -> tuple[Cache[memoryview], Buf, Buf]:
    """One object each in two slabs, of a size that is copied in a thread."""
    cache = kmem.create_cache("c", LARGE, objects_per_slab=2, movable=True, **options)
    bufs = await cache.alloc_many(4)
    bufs[1].free()
    bufs[3].free()
    await cache.reap()
    for number, buf in ((1, bufs[0]), (2, bufs[2])):
        with buf.pin() as view:
            view[:] = bytes([number]) * LARGE
    return cache, bufs[0], bufs[2]


def _copy_slowly(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> list[str]:
    """Have something happen in the middle of a copy, in the thread that copies."""
    threads: list[str] = []
    really = ctypes.memmove

    def memmove(to: int, source: int, size: int) -> object:
        threads.append(threading.current_thread().name)
        really(to, source, size)
        return meanwhile()

    monkeypatch.setattr("aslab._kmem._move.ctypes", type("ctypes", (), {"memmove": staticmethod(memmove)}))
    return threads


async def test_a_large_object_is_copied_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache, one, other = await large_ones(kmem)
        threads = _copy_slowly(monkeypatch, lambda: None)
        assert await cache.defragment() == 2 * LARGE
        assert len(threads) == 1
        assert threads[0] != threading.current_thread().name
        assert [buf.view[-1] for buf in (one, other)] == [1, 2]
        one.free()
        other.free()


async def test_what_is_written_while_it_is_copied_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache, one, other = await large_ones(kmem)

        def write() -> None:
            for buf in (one, other):
                with buf.pin() as view:
                    view[0] = 77

        _copy_slowly(monkeypatch, write)
        assert await cache.defragment() == 0
        stats = cache.stats()
        assert (stats.move_yes, stats.move_later, stats.obj_held, stats.obj_handover) == (0, 1, 2, 0)
        assert [buf.view[0] for buf in (one, other)] == [77, 77]
        check_consistency(cache)
        one.free()
        other.free()


@pytest.mark.parametrize("emergency", [False, True])
async def test_a_buffer_freed_while_it_is_copied_goes_back_once(
    emergency: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = Deadlock(Instant(), at=2)
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        if emergency:
            cache = kmem.create_cache("c", LARGE, objects_per_slab=2, movable=True)
            one, free, other = [await cache.alloc() for _ in range(3)]
            assert other.emergency
            slabs.let_go()
            while cache.stats().growing:
                await anyio.sleep(0.01)
            free.free()
        else:
            slabs.let_go()
            cache, one, other = await large_ones(kmem)

        def free_all() -> None:
            for buf in (one, other):
                if hasattr(buf, "_slot"):
                    buf.free()

        threads = _copy_slowly(monkeypatch, free_all)
        await cache.defragment()
        await settle()
        assert threads
        stats = cache.stats()
        assert (stats.obj_held, stats.obj_handover, stats.obj_emergency) == (0, 0, 0)
        check_consistency(cache)
        await cache.reap()
        assert kmem.stats().slab_bytes == 0


async def test_the_memory_of_a_buffer_freed_while_it_is_copied_stays_until_the_copy_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slabs, single = Deadlock(Instant()), Instant()
    async with allocator(slabs=slabs, emergency=single, kick_after=None) as kmem:
        cache = kmem.create_cache("c", LARGE, objects_per_slab=2, movable=True)
        buf = await cache.alloc()
        there: list[int] = []

        def free_it() -> None:
            buf.free()
            there.append(len(pool_of(cache).emergency))

        threads = _copy_slowly(monkeypatch, free_it)
        slabs.let_go()
        while not there:
            await anyio.sleep(0.01)
        await settle()
        assert len(threads) == 1
        assert (there, len(pool_of(cache).emergency), single.outstanding) == ([1], 0, set())


async def test_a_buffer_given_up_while_it_is_copied_and_still_exported_stays_whose_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception leaves the block, with a slice in its frames, in the middle of the copy."""
    async with allocator() as kmem:
        cache, one, other = await large_ones(kmem)
        kept: list[memoryview] = []
        given_up: list[Buf] = []

        def give_up() -> None:
            buf = next(buf for buf in (one, other) if buf.moving)  # type: ignore[attr-defined]
            given_up.append(buf)
            with contextlib.suppress(ZeroDivisionError), buf:
                with buf.pin() as view:
                    kept.append(view[:8])
                raise ZeroDivisionError

        _copy_slowly(monkeypatch, give_up)
        await cache.defragment()
        others = [await cache.alloc() for _ in range(3)]
        kept[0][:] = b"intruder"
        for buf in others:
            with buf.pin() as view:
                assert bytes(view[:8]) != b"intruder"
        check_consistency(cache)
        kept.clear()
        await anyio.sleep(30)
        assert cache.stats().obj_held == 4
        for buf in [*others, one, other]:
            if buf not in given_up:
                buf.free()
        check_consistency(cache)


def test_cancelled_by_the_loop_itself_a_copy_is_finished_before_its_places_are_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`asyncio.Task.cancel` knows no shield: whoever awaits the thread is gone at once, the thread is not."""
    copying, go_on = threading.Event(), threading.Event()

    async def main() -> None:
        async with allocator() as kmem:
            cache, one, other = await large_ones(kmem, max_objects=4)  # no slab ahead, which would be given back
            really = ctypes.memmove

            def memmove(to: int, source: int, size: int) -> None:
                copying.set()
                go_on.wait(60)
                really(to, source, size)

            monkeypatch.setattr("aslab._kmem._move.ctypes", type("ctypes", (), {"memmove": staticmethod(memmove)}))
            task = asyncio.ensure_future(cache.defragment())
            while not copying.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert await cache.defragment() == 0, "a buffer is not moved twice at once"
            others = [cache.alloc_nowait()]
            with others[0].pin() as view:
                view[:] = bytes([9]) * LARGE
            go_on.set()
            while cache.stats().obj_handover:
                await asyncio.sleep(0.001)
            assert [buf.view[0] for buf in (one, other, *others)] == [1, 2, 9]
            check_consistency(cache)
            for buf in (one, other, *others):
                buf.free()

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:cache 'c' was closed:ResourceWarning")
async def test_a_cache_closed_while_an_object_is_copied_gives_everything_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache, one, other = await large_ones(kmem)

        def close() -> None:
            anyio.from_thread.run(cache.aclose)
            one.free()
            other.free()

        threads = _copy_slowly(monkeypatch, close)
        await start(tasks, cache.defragment)
        while not threads or pool_of(cache).moving.in_hand:
            await anyio.lowlevel.checkpoint()
        await settle(200)
        assert kmem.stats().slab_bytes == 0
        check_consistency(cache)


async def test_cancelled_between_moves_leaves_everything_in_one_place() -> None:
    async with allocator() as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=64, movable=True)
        bufs = [await cache.alloc() for _ in range(20 * 64)]
        live = bufs[::6]
        for number, buf in enumerate(live):
            with buf.pin() as view:
                view[:] = bytes([number % 256]) * SIZE
        for buf in bufs:
            if buf not in live:
                buf.free()
        scope = anyio.CancelScope()

        async def defragment() -> None:
            with scope:
                await cache.defragment()

        tasks.start_soon(defragment)
        await settle(3)
        scope.cancel()
        await settle()
        assert 0 < cache.stats().move_yes < len(live)
        assert contents(live) == [number % 256 for number in range(len(live))]
        check_consistency(cache)
        for buf in live:
            buf.free()


async def test_it_stops_where_callers_wait_and_what_it_frees_is_theirs() -> None:
    async with allocator(slabs=(slabs := Deadlock(Instant(), at=3)), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, movable=True, max_emergency=0)
        bufs = [await cache.alloc() for _ in range(8)]
        async with anyio.create_task_group() as tasks:
            got: list[bool] = []

            async def caller() -> None:
                async with cache.lease():
                    got.append(True)

            await start(tasks, caller)
            assert await cache.defragment() == 0
            bufs.pop().free()
            await settle()
            assert got == [True]
        slabs.let_go()
        for buf in bufs:
            buf.free()


async def test_other_caches_have_nothing_to_defragment() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        bufs = [await cache.alloc() for _ in range(16)]
        for number, buf in enumerate(bufs):
            if number % 8:
                buf.free()
        assert await cache.defragment() == 0
        assert (cache.stats().move_yes, cache.stats().slab_total) == (0, 2)
        bufs[0].free()
        bufs[8].free()


async def test_it_starts_by_itself_with_101_slabs_and_more_than_an_eighth_free_the_sparsest_first() -> None:
    async with allocator(expire=30.0) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=16, movable=True)
        bufs = [await cache.alloc() for _ in range(101 * 16)]
        kept, rest = bufs[::16], [buf for number, buf in enumerate(bufs) if number % 16]
        for buf in rest[: 15 * 16]:
            buf.free()  # 16 slabs hold one each; 15 % of all objects are free
        await anyio.sleep(10.5)
        assert 15 <= cache.stats().move_yes <= 16
        for buf in {*kept, *rest[15 * 16 :]}:
            buf.free()


async def test_it_does_not_start_by_itself_with_fewer_slabs() -> None:
    async with allocator(expire=30.0) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=16, movable=True)
        bufs = [await cache.alloc() for _ in range(100 * 16)]
        for number, buf in enumerate(bufs):
            if number % 16:
                buf.free()
        await anyio.sleep(25)
        assert cache.stats().move_yes == 0
        for buf in bufs[::16]:
            buf.free()


async def test_by_itself_it_empties_slabs_that_are_half_full_with_the_fourth_step_only() -> None:
    async with allocator(expire=30.0) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=4, movable=True)
        bufs = [await cache.alloc() for _ in range(102 * 4)]
        kept = [buf for number, buf in enumerate(bufs) if number >= 30 * 4 or number % 4 < 2]
        for buf in bufs:
            if buf not in kept:
                buf.free()
        await anyio.sleep(35)
        assert cache.stats().move_yes == 0
        await anyio.sleep(10)
        assert cache.stats().move_yes > 0
        for buf in kept:
            buf.free()


# -- emergency objects


@pytest.mark.parametrize("by", ["itself", "callback"])
async def test_5000_emergency_objects_are_in_slabs_within_one_pass_after_recovery(by: str) -> None:
    client = Client()
    slabs, single = Deadlock(Instant()), Instant()
    async with allocator(slabs=slabs, emergency=single, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=by == "itself")
        if by == "callback":
            cache.set_move(client.move)
        client.kept = [await cache.alloc() for _ in range(5000)]
        for number, buf in enumerate(client.kept):
            with buf.pin() as view:
                view[:] = bytes([number % 251]) * SIZE
            del view
        assert cache.stats().obj_emergency == 5000
        slabs.let_go()
        while cache.stats().growing:
            await anyio.sleep(0.01)
        await cache.defragment()
        stats = cache.stats()
        assert (stats.obj_emergency, stats.obj_held, stats.move_yes) == (0, 5000, 5000)
        assert not any(buf.emergency for buf in client.kept)
        await settle()
        assert not single.outstanding
        assert contents(client.kept) == [number % 251 for number in range(5000)]
        check_consistency(cache)
        client.free_all()


async def test_emergency_objects_move_by_themselves_when_growth_is_well_again() -> None:
    slabs = Deadlock(Instant())
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True)
        bufs = [await cache.alloc() for _ in range(20)]
        await anyio.sleep(1)
        assert cache.stats().obj_emergency == 20
        slabs.let_go()
        await anyio.sleep(0.1)
        assert (cache.stats().obj_emergency, cache.stats().slab_total) == (0, 3)
        for buf in bufs:
            buf.free()


async def test_emergency_objects_move_into_what_is_freed_where_growth_is_at_its_end() -> None:
    slabs = Deadlock(Instant(), at=2)
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True, objects_per_slab=2, max_objects=4)
        bufs = [await cache.alloc() for _ in range(6)]
        slabs.let_go()
        await anyio.sleep(1)
        assert (cache.stats().obj_emergency, cache.stats().slab_total) == (2, 2)
        bufs[0].free()
        await settle(100)
        assert cache.stats().obj_emergency == 1
        for buf in bufs[1:]:
            buf.free()


async def test_pinned_emergency_objects_wait_and_do_not_keep_the_mover_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slabs = Deadlock(Instant())
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True)
        bufs = [await cache.alloc() for _ in range(4)]
        views = [buf.view for buf in bufs]
        slabs.let_go()
        await anyio.sleep(1)
        assert cache.stats().obj_emergency == 4
        passes = 0
        repack = move._repack

        async def count(pool: Pool[Any]) -> None:
            nonlocal passes
            passes += 1
            await repack(pool)

        monkeypatch.setattr(move, "_repack", count)
        for _ in range(50):
            (await cache.alloc()).free()
            await settle(5)
        assert passes <= 1
        while views:  # and kept no longer: who keeps a view that has ended keeps its place
            views.pop().release()
        await anyio.sleep(10)
        (await cache.alloc()).free()
        await settle(100)
        assert cache.stats().obj_emergency == 0
        for buf in bufs:
            buf.free()


async def test_emergency_objects_that_were_pinned_move_into_what_is_freed_after_the_next_interval() -> None:
    slabs = Deadlock(Instant(), at=2)
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True, objects_per_slab=2, max_objects=4)
        bufs = [await cache.alloc() for _ in range(3)]
        view = bufs[2].view
        slabs.let_go()
        await anyio.sleep(1)
        bufs += [await cache.alloc() for _ in range(2)]
        view.release()
        del view  # else its place lingers
        await anyio.sleep(10)
        assert cache.stats().obj_emergency == 1
        bufs.pop(0).free()
        await settle(100)
        assert cache.stats().obj_emergency == 0
        for buf in bufs:
            buf.free()


@pytest.mark.parametrize("by", ["itself", "callback"])
async def test_an_emergency_object_freed_while_a_slab_is_grown_for_it_is_freed_once(by: str) -> None:
    client = Client()
    slabs = Gate()
    async with allocator(slabs=slabs, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, movable=by == "itself", objects_per_slab=1)
        if by == "callback":
            cache.set_move(client.move)
        bufs = client.kept = [await cache.alloc() for _ in range(2)]
        tasks.start_soon(cache.defragment)
        await anyio.sleep(0.05)
        bufs.pop(0).free()
        slabs.open()
        await anyio.sleep(1)
        check_consistency(cache)
        assert (cache.stats().obj_held, cache.stats().obj_emergency) == (1, 0)
        bufs.pop().free()


async def test_repacking_ends_in_time_where_growth_is_stuck_again() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True, objects_per_slab=2)
        bufs = [await cache.alloc(KM.PUSHPAGE) for _ in range(6)]
        slabs.open()
        while not cache.stats().slab_total:
            await settle(1)
        slabs.shut()
        begin = anyio.current_time()
        await cache.defragment()
        waited = anyio.current_time() - begin  # for a pass that had begun by itself, too, perhaps
        assert waited < 0.25, "a pass waits for growth once, and not for each object"
        assert 0 < cache.stats().obj_emergency < 5
        slabs.open()
        for buf in bufs:
            buf.free()


async def test_memory_that_is_moved_away_from_is_zeroed_where_frees_zero() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2, movable=True, init_on_free=True)
        bufs = await cache.alloc_many(4)
        with bufs[2].pin() as view:
            view[:] = b"secret!!" * (SIZE // 8)
        slot = bufs[2]._slot
        bufs[1].free()
        bufs[3].free()
        moved = bufs[2].address
        await move.defragment(pool_of(cache))
        assert bufs[2].address != moved
        assert bytes(lease_view(slot.exporter)) == bytes(SIZE)
        bufs[0].free()
        bufs[2].free()
