"""The handle: what it gives, and what it never lets happen."""

from __future__ import annotations

import fcntl
import gc
import socket
import sys
import termios
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

import aslab
from aslab import Buffer, BufferFreedError, Cache, WrongCacheError
from aslab._cache import pool_of
from aslab._fastpath import COMPILED, lease_view
from aslab._kmem._frees import unpark
from aslab.testing import check_consistency

from .support import SIZE, Gate, allocator, settle, start

pytestmark = pytest.mark.anyio


async def test_view_is_the_memory_writable_of_the_exact_size_and_aligned() -> None:
    async with aslab.open_allocator(grow_timeout=60) as kmem:
        for size, align in [(1, 8), (100, 64), (5000, 4096), (1 << 20, 64)]:
            cache = kmem.create_cache(f"{size}", size, align=align)
            bufs = [await cache.alloc() for _ in range(3)]
            for buf in bufs:
                assert len(buf) == len(buf.view) == size
                assert not buf.view.readonly
                assert buf.address % align == 0
                assert np.frombuffer(buf.view, np.uint8).ctypes.data == buf.address
                buf.view[:] = b"x" * size
                assert buf.obj is buf.view
                assert buf.cache is cache
                assert not buf.emergency
                buf.free()


async def test_freed_buffer_gives_nothing_and_can_not_be_freed_again() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        view = buf.view
        buf.free()
        next_owner = await cache.alloc()
        next_owner.view[:4] = b"mine"
        for use in (lambda: buf.view, lambda: buf.obj, lambda: buf.address, buf.free, lambda: cache.free(buf)):
            with pytest.raises(BufferFreedError, match="'c'"):
                use()
        with pytest.raises(BufferFreedError), buf:
            pass
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        assert bytes(next_owner.view[:4]) == b"mine"
        assert "freed" in repr(buf)
        next_owner.free()
        check_consistency(cache)


async def test_free_on_the_wrong_cache_is_refused_and_the_buffer_stays() -> None:
    async with allocator() as kmem:
        one, two = kmem.create_cache("one", SIZE), kmem.create_cache("two", SIZE)
        buf = await one.alloc()
        with pytest.raises(WrongCacheError, match=r"'one'.*'two'"):
            two.free(buf)
        buf.view[0] = 1
        one.free(buf)
        check_consistency(one)


def _slice_of_released(view: memoryview) -> memoryview:
    second = memoryview(view)
    part = second[:4]
    second.release()
    return part


HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "numpy array": lambda view: np.frombuffer(view, np.uint8),
    "slice of a numpy array": lambda view: np.frombuffer(view, np.uint8)[8:16],
    "second memoryview": memoryview,
    "slice": lambda view: view[8:16],
    "slice of a slice": lambda view: view[8:64][1:3],
    "cast": lambda view: view.cast("I"),
    "slice of a released second memoryview": _slice_of_released,
}


@pytest.mark.parametrize("hold", list(HOLDERS))
@pytest.mark.parametrize("emergency", [False, True])
async def test_free_is_refused_while_somebody_can_still_write(hold: str, emergency: bool) -> None:
    options = {"slabs": Gate(), "grow_timeout": 0.0, "kick_after": None} if emergency else {}
    async with allocator(**options) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        assert buf.emergency is emergency
        holder = HOLDERS[hold](buf.view)
        view = buf.view
        for _ in range(2):
            with pytest.raises(BufferError, match="still in use"):
                buf.free()
        assert cache.stats().obj_held == 1
        view[0] = 7  # the buffer is as it was
        assert buf.view is view
        others = [await cache.alloc() for _ in range(9)]
        assert buf.address not in [other.address for other in others]
        del holder
        buf.free()
        for other in others:
            other.free()
        assert cache.stats().obj_held == 0


async def test_holding_the_view_itself_is_no_hindrance() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        views = [buf.view, buf.view, buf.view]
        buf.free()
        for view in views:
            with pytest.raises(ValueError, match="released"):
                len(view)


async def test_pending_recv_into_keeps_the_buffer() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        left, right = socket.socketpair()
        with left, right:
            thread = threading.Thread(target=left.recv_into, args=(buf.view, 5, socket.MSG_WAITALL))
            thread.start()
            right.send(b"h")
            while _unread(right):  # once the first byte is taken, the thread is inside, waiting for four more
                await anyio.sleep(0.001)
            with pytest.raises(BufferError):
                buf.free()
            right.send(b"ello")
            thread.join()
        assert bytes(buf.view[:5]) == b"hello"
        buf.free()


def _unread(sock: socket.socket) -> int:
    """Bytes sent through one end of a pair and not yet taken at the other."""
    answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


async def test_released_slices_lying_around_are_no_hindrance() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        with buf.view[:8] as part, memoryview(buf.view) as second, pytest.raises(BufferError):
            buf.free()
        kept = [part, second]
        buf.free()
        with pytest.raises(ValueError, match="released"):
            len(kept[0])


@pytest.mark.skipif(sys.version_info < (3, 12) and not COMPILED, reason="PEP 688")
async def test_buffer_itself_has_the_buffer_protocol() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf: Any = await cache.alloc()
        with memoryview(buf) as view:
            view[:2] = b"ab"
            with pytest.raises(BufferError):
                buf.free()
        array = np.frombuffer(buf, np.uint8)
        with pytest.raises(BufferError):
            buf.free()
        del array
        assert bytes(buf.view[:2]) == b"ab"
        buf.free()
        with pytest.raises(BufferFreedError):
            memoryview(buf)


async def test_lost_buffer_comes_back_with_a_warning_that_names_the_cache() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("frames", SIZE)
        buf = await cache.alloc()
        buf.view[0] = 1
        with pytest.warns(ResourceWarning, match="'frames'"):
            del buf
            gc.collect()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_lost_emergency_object_comes_back() -> None:
    async with allocator(slabs=Gate(), grow_timeout=0, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        assert buf.emergency
        with pytest.warns(ResourceWarning):
            del buf
            gc.collect()
        assert cache.stats().obj_emergency == 0


async def test_lost_buffer_wakes_who_waits_for_it() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = [await cache.alloc()]
        got = anyio.Event()

        async def caller() -> None:
            async with cache.lease():
                got.set()

        async with anyio.create_task_group() as tasks:
            await start(tasks, caller)
            with pytest.warns(ResourceWarning):
                held.clear()
                gc.collect()
            with anyio.fail_after(30):
                await got.wait()


@pytest.mark.parametrize("emergency", [False, True])
async def test_lost_buffer_whose_memory_is_exported_comes_back_when_the_last_holder_goes(emergency: bool) -> None:
    options = {"slabs": Gate(), "grow_timeout": 0.0, "kick_after": None} if emergency else {}
    async with allocator(**options, expire=0.03) as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1, max_emergency=1)
        buf = await cache.alloc()
        array = np.frombuffer(buf.view, np.uint8)
        part = buf.view[4:8]
        with pytest.warns(ResourceWarning):
            del buf
            gc.collect()
        assert cache.stats().obj_held == 1
        array[4] = 99
        assert part[0] == 99
        del array
        assert cache.stats().obj_held == 1
        got = anyio.Event()

        async def caller() -> None:
            async with cache.lease() as mine:
                mine.view[:] = bytes(SIZE)
                got.set()

        async with anyio.create_task_group() as tasks:
            await start(tasks, caller)
            assert not got.is_set()
            del part
            with anyio.fail_after(30):
                await got.wait()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_with_frees_at_the_end_and_does_not_mind_an_early_free() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        with await cache.alloc() as buf:
            buf.view[0] = 1
        assert cache.stats().obj_held == 0
        with await cache.alloc() as buf:
            buf.free()
        async with cache.lease() as buf:
            assert cache.stats().obj_held == 1
            buf.free()
        assert cache.stats().obj_held == 0


async def test_with_tells_of_a_holder_that_is_left() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(BufferError):
            async with cache.lease() as buf:
                part = buf.view[:8]
        assert cache.stats().obj_held == 1
        del part
        buf.free()


@pytest.mark.parametrize("options", [{}, {"movable": True}], ids=["plain", "managed"])
async def test_exception_ends_the_handle_and_a_holder_keeps_the_memory(options: dict[str, Any]) -> None:
    async with allocator(expire=0.03) as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        parts = []
        with pytest.raises(RuntimeError), await cache.alloc() as buf:
            parts.append(buf.view[:8])
            raise RuntimeError
        with pytest.raises(BufferFreedError):
            buf.free()
        with pytest.raises(BufferFreedError):
            buf.view
        assert cache.stats().obj_held == 1
        parts.pop().release()
        with anyio.fail_after(30):
            while cache.stats().obj_held:
                await anyio.sleep(0.01)
        check_consistency(cache)


async def test_exception_in_the_block_is_not_hidden_by_a_holder_in_its_frames() -> None:
    async with allocator(expire=0.03) as kmem:
        cache = kmem.create_cache("c", SIZE)

        def work(view: memoryview) -> None:
            part = view[:8]
            raise KeyError(len(part))

        caught: list[BaseException] = []
        try:
            async with cache.lease() as buf:
                work(buf.view)
        except KeyError as exc:
            caught.append(exc)
        assert cache.stats().obj_held == 1, "the frames still hold the slice"
        caught.clear()
        gc.collect()
        with anyio.fail_after(30):
            while cache.stats().obj_held:
                await anyio.sleep(0.01)
        check_consistency(cache)


async def test_of_two_threads_that_free_one_buffer_one_gets_the_error() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        outcomes: list[str] = []

        def free(buf: Buffer[memoryview], barrier: threading.Barrier) -> None:
            barrier.wait()
            try:
                buf.free()
            except BufferFreedError:
                outcomes.append("error")
            else:
                outcomes.append("freed")

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(200):
                buf = await cache.alloc()
                buf.view[0] = 1
                barrier = threading.Barrier(2)
                threads = [threading.Thread(target=free, args=(buf, barrier)) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert sorted(outcomes) == ["error", "freed"]
                outcomes.clear()
        finally:
            sys.setswitchinterval(before)
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_view_made_while_another_thread_frees_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[memoryview] = []
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(1)  # who has waited for long is noted, which makes another view
        buf = await cache.alloc()

        def view_and_free_in_between(source: Any) -> memoryview:
            made.append(lease_view(source))
            buf.free()
            return made[0]

        monkeypatch.setattr("aslab._fastpath._buffer.lease_view", view_and_free_in_between)
        with pytest.raises(BufferFreedError):
            buf._look()
        with pytest.raises(ValueError, match="released"):
            len(made[0])
        with pytest.raises(BufferFreedError):
            buf.view
        check_consistency(cache)


async def test_of_two_frees_of_an_emergency_object_at_once_one_gets_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with allocator(slabs=Gate(), grow_timeout=0, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        slot = buf._slot
        buf.free()
        monkeypatch.setattr(Buffer, "_allocated", lambda _: slot)  # read before the other free took it
        with pytest.raises(BufferFreedError):
            buf.free()


async def test_buffers_are_made_by_caches_alone() -> None:
    buf: Buffer[memoryview] = Buffer()
    with pytest.raises(BufferFreedError, match="not allocated"):
        buf.free()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del buf
        gc.collect()


async def test_ctor_builds_once_a_slot_and_its_state_survives_from_owner_to_owner() -> None:
    built: list[int] = []
    destroyed: list[np.ndarray[Any, Any]] = []

    def ctor(memory: memoryview) -> np.ndarray[Any, Any]:
        built.append(len(memory))
        array = np.frombuffer(memory, np.float32)
        array[:] = 1.5
        return array

    async with allocator() as kmem:
        cache: Cache[np.ndarray[Any, Any]] = kmem.create_cache("c", SIZE, ctor=ctor, dtor=destroyed.append)
        buf = await cache.alloc()
        assert built == [SIZE] * 8
        assert buf.obj[0] == 1.5
        buf.obj[0] = 2.5
        buf.view[4] = 0
        first = buf.address
        buf.free()
        buf = await cache.alloc()
        assert buf.address == first
        assert buf.obj[0] == 2.5
        buf.free()
        assert len(built) == 8
        await cache.reap()
        assert len(destroyed) == 8
        destroyed.clear()
    del buf


async def test_ctor_and_dtor_of_an_emergency_object_run_as_it_is_made_and_goes() -> None:
    destroyed: list[bytes] = []
    gate = Gate()
    async with allocator(slabs=gate, grow_timeout=0, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=lambda memory: bytes(memory[:2]), dtor=destroyed.append)
        buf = await cache.alloc()
        assert buf.emergency
        assert buf.obj == bytes(2)
        assert not destroyed
        buf.free()
        assert not destroyed, "kept, constructed as it is, for as long as slabs are late"
        gate.open()
        await settle()
        assert destroyed == [bytes(2)]


async def test_init_on_free_and_init_on_alloc_leave_nothing_to_read() -> None:
    for options in ({"init_on_alloc": True}, {"init_on_free": True}):
        async with allocator(**options) as kmem:
            cache = kmem.create_cache("c", SIZE)
            buf = await cache.alloc()
            address = buf.address
            buf.view[:] = b"s" * SIZE
            if "init_on_free" in options:
                with pytest.raises(BufferError):
                    part = buf.view[:1]
                    buf.free()
                assert part[0] == ord("s"), "a refused free must not touch the memory"
                del part
            buf.free()
            buf = await cache.alloc()
            assert buf.address == address
            assert bytes(buf.view) == bytes(SIZE)
            buf.free()


async def test_init_on_free_holds_for_what_the_garbage_collector_returns() -> None:
    async with allocator(init_on_free=True) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        buf.view[:] = b"s" * SIZE
        with pytest.warns(ResourceWarning):
            del buf
            gc.collect()
        buf = await cache.alloc()
        assert bytes(buf.view) == bytes(SIZE)
        buf.free()


@pytest.mark.parametrize(
    "options", [{}, {"movable": True}, {"init_on_free": True}, {"merge": True}, {"debug": "FZPU"}], ids=str
)
@pytest.mark.parametrize("emergency", [False, True], ids=["slab", "emergency"])
async def test_free_of_the_base_class_is_that_of_the_buffer(options: dict[str, Any], emergency: bool) -> None:
    gate = Gate()
    async with allocator(slabs=gate, holders_sample=1) as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        if not emergency:
            gate.open()
            await cache.prefill(1)
        for _ in range(2):
            buf = await cache.alloc()
            assert buf.emergency == emergency
            assert "init_on_free" not in options or bytes(buf.view) == bytes(SIZE)
            buf.view[:] = b"s" * SIZE
            deque(map(Buffer.free, [buf]), maxlen=0)
            assert (cache.stats().obj_held, kmem.holders()) == (0, ())
            with pytest.raises(BufferFreedError):
                Buffer.free(buf)
            del buf
        check_consistency(cache)


async def test_free_of_the_base_class_is_that_of_a_plain_emergency_object() -> None:
    async with allocator(slabs=Gate(), holders_sample=0) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = cache.alloc_nowait()
        assert buf.emergency
        Buffer.free(buf)
        assert cache.stats().obj_emergency == 0
        assert len(pool_of(cache).magazine) == 0


async def test_slice_that_outlives_a_view_the_caller_released_is_found() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        with buf.view as view:
            part = view[8:16]
        for _ in range(3):
            with pytest.raises(BufferError):
                buf.free()
        part[:] = b"still me"
        assert bytes(buf.view[8:16]) == b"still me", "a released view is made anew"
        del part, view
        buf.free()
        check_consistency(cache)


async def test_views_made_by_two_threads_at_once_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        other = lease_view(buf._slot.exporter)  # what the slower of the two threads got
        assert buf.view is not other
        with pytest.raises(BufferError):
            buf.free()
        del other
        buf.free()


async def test_slice_that_a_finaliser_brings_back_is_nobody_elses_memory() -> None:
    """The collector calls weak references back before finalisers, so a dead slice may come to life again."""
    kept: list[memoryview] = []

    class Resurrects:
        part: memoryview

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            kept.append(self.part)

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        buf = await cache.alloc()
        holder = Resurrects()
        holder.part = buf.view[8:16]
        with pytest.warns(ResourceWarning):
            del buf, holder
            gc.collect()
        next_owner = await cache.alloc()
        next_owner.view[:] = bytes(SIZE)
        kept[0][:] = b"STALE!!!"
        assert bytes(next_owner.view) == bytes(SIZE)
        next_owner.free()
        kept.clear()
        unpark(pool_of(cache))
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_init_on_free_holds_for_emergency_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    zeroed: list[int] = []
    monkeypatch.setattr("aslab._kmem._slab.zero", lambda address, size: zeroed.append(address))
    async with allocator(slabs=Gate(), grow_timeout=0, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, init_on_free=True)
        buf = await cache.alloc()
        address = buf.address
        buf.free()
        assert zeroed == [address]


async def test_init_on_alloc_and_free_of_a_cache_override_the_allocators() -> None:
    async with allocator(init_on_free=True) as kmem:
        for name, keep in (("as the allocator", None), ("not", False)):
            cache = kmem.create_cache(name, SIZE, init_on_free=keep)
            buf = await cache.alloc()
            buf.view[:4] = b"mine"
            buf.free()
            buf = await cache.alloc()
            assert bytes(buf.view[:4]) == (b"mine" if keep is False else bytes(4))
            buf.free()
