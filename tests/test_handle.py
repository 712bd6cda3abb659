"""One handle of one place: not copied, and in the hands of several threads at once."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aslab import Buffer, BufferFreedError, ConfigError
from aslab._cache import pool_of
from aslab._fastpath import lease_view
from aslab._kmem._frees import take_back
from aslab.testing import check_consistency

from .support import SIZE, Gate, allocator

pytestmark = pytest.mark.anyio
KINDS: list[dict[str, Any]] = [{}, {"movable": True}]


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


@pytest.mark.parametrize("options", KINDS, ids=["plain", "managed"])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_buffer_is_not_copied(options: dict[str, Any], duplicate: Callable[[Any], Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        for looked in (False, True):
            if looked:
                buf.view[0] = 1
            with pytest.raises(TypeError, match=r"a Buffer cannot be copied or pickled.*bytes\(buf.view\)"):
                duplicate(buf)
        buf.free()
        with pytest.raises(TypeError, match="a Buffer cannot be copied"):
            duplicate(buf)
        check_consistency(cache)


class Stalled:
    """The making of a view in one thread, held up before or after the view is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: Callable[[], object], *, before: bool) -> None:
        self.errors: list[BaseException] = []
        self.made: list[memoryview] = []
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._look = look
        self._thread = threading.Thread(target=self._run)
        found = Buffer._allocated
        if before:
            monkeypatch.setattr(Buffer, "_allocated", lambda buf: self._stop(found(buf)))
        else:
            monkeypatch.setattr(
                "aslab._fastpath._buffer.lease_view", lambda source: self._stop(lease_view(source))
            )
        self._thread.start()
        assert self._inside.wait(30)

    def _stop(self, thing: Any) -> Any:
        if threading.current_thread() is self._thread:
            if isinstance(thing, memoryview):
                self.made.append(thing)
            self._inside.set()
            assert self._go_on.wait(30)
        return thing

    def _run(self) -> None:
        try:
            self._look()
        except BufferFreedError as exc:
            self.errors.append(exc)

    def finish(self) -> None:
        self._go_on.set()
        self._thread.join(30)


@pytest.mark.parametrize("way", ["view before it is made", "view", "pin"])
async def test_view_that_a_free_overtakes_reaches_nobody(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        if way == "pin":
            buf.view[0] = 1
        look = buf._pinned_view if way == "pin" else buf._look
        stalled = Stalled(monkeypatch, look, before=way != "view")
        slot = buf._slot
        buf.free()
        stalled.finish()
        assert stalled.errors
        for view in stalled.made:
            with pytest.raises(ValueError, match="released"):
                len(view)
        assert not slot.in_use()
        with pytest.raises(BufferFreedError):
            buf.view
        check_consistency(cache)


@pytest.mark.parametrize("way", ["view", "pin"])
async def test_error_of_a_view_that_a_free_overtook_may_be_kept(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames hold nothing that would keep the next owner from giving the memory back."""
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2, max_objects=2)
        buf = await cache.alloc()
        address = buf.address
        if way == "pin":
            buf.view[0] = 1
        look = buf._pinned_view if way == "pin" else buf._look
        stalled = Stalled(monkeypatch, look, before=way != "view")
        buf.free()
        stalled.finish()
        stalled.made.clear()
        assert stalled.errors
        heirs = [await cache.alloc() for _ in range(2)]
        assert address in [heir.address for heir in heirs]
        for heir in heirs:
            heir.view[0] = 2
            heir.free()
        assert cache.stats().obj_held == 0


async def test_of_view_free_view_in_three_threads_none_gets_memory_of_the_next_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The free has found no view; then one is put in place; then the third asks."""

    class Watched(Buffer[memoryview]):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_view" and isinstance(value, memoryview) and value.nbytes and not asked:
                asked.append(None)
                third = threading.Thread(target=ask)
                third.start()
                third.join(30)

    bufs: list[Buffer[memoryview]] = []
    asked: list[None] = []
    got: list[memoryview] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            got.append(bufs[0].view[:8])
        except BufferFreedError as exc:
            errors.append(exc)

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        given = await cache.alloc()
        buf = Watched()
        buf._home, buf._view, buf._slot = given._home, None, given._slot
        del given._slot
        slot = buf._slot
        bufs.append(buf)

        def free_in_between(source: Any) -> memoryview:
            view = lease_view(source)
            del bufs[0]._slot  # the claim of a free, which then finds no view, and comes no further yet
            return view

        monkeypatch.setattr("aslab._fastpath._buffer.lease_view", free_in_between)
        with pytest.raises(BufferFreedError):
            buf._look()
        monkeypatch.undo()
        assert asked
        assert errors
        assert not got
        assert not slot.in_use()
        take_back(pool_of(cache), slot)
        assert "freed" in repr(buf)
        bufs.clear()
        del buf
        gc.collect()
        check_consistency(cache)


async def test_view_that_its_caller_released_is_replaced_without_a_moment_in_which_a_free_finds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        buf.view.release()
        seen: list[object] = []

        def look_around(source: Any) -> memoryview:
            seen.append(buf._view)
            return lease_view(source)

        monkeypatch.setattr("aslab._fastpath._buffer.lease_view", look_around)
        buf.view[0] = 1
        assert seen
        assert None not in seen
        buf.free()


@pytest.mark.parametrize("emergency", [False, True])
async def test_repr_while_another_thread_frees_raises_nothing(emergency: bool) -> None:
    options: dict[str, Any] = {"slabs": Gate(), "grow_timeout": 0, "kick_after": None} if emergency else {}
    async with allocator(**options) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        assert repr(buf).startswith("<Buffer of 'c', 4096 bytes, at 0x")
        slot = buf._slot
        del buf._slot  # a free has begun
        assert "freed" in repr(buf)
        buf._slot = slot
        buf.free()
        assert "freed" in repr(buf)
        assert repr(Buffer()) == "<Buffer, not allocated>"


@pytest.mark.parametrize("options", KINDS, ids=["plain", "managed"])
async def test_handle_whose_free_was_overtaken_dies_in_silence(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        slot = buf._slot
        buf.view[0] = 1
        view = buf._view
        buf.free()
        buf._view = view  # as a view that came too late leaves it
        del view
        with pytest.raises(BufferFreedError):
            buf.free()
        with pytest.raises(BufferFreedError), buf:
            pass
        del buf  # an exception in __del__ would fail the test
        gc.collect()
        assert not slot.in_use()
        check_consistency(cache)


@pytest.mark.parametrize("field", ["init_on_alloc", "init_on_free"])
async def test_zeroing_spares_what_a_ctor_built(field: str) -> None:
    """Asked for in so many words it is refused; what the allocator has does not count for such a cache."""

    def ctor(memory: memoryview) -> memoryview:
        memory[:4] = b"head"
        return memory

    options: dict[str, Any] = {field: True}
    async with allocator(**options) as kmem:
        with pytest.raises(ConfigError, match=f"{field}.*it excludes a ctor"):
            kmem.create_cache("c", SIZE, ctor=ctor, **options)
        cache = kmem.create_cache("c", SIZE, ctor=ctor, max_objects=1)
        plain = kmem.create_cache("plain", SIZE, max_objects=1)
        for _ in range(2):
            async with cache.lease() as buf, plain.lease() as other:
                assert bytes(buf.obj[:4]) == b"head"
                assert bytes(other.view[:4]) == bytes(4)
                other.view[:4] = b"mine"


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Sizes are told of young views alone; a collection that comes in between makes them old."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
async def test_refused_free_says_what_to_do_and_who_holds_on() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        part = buf.view[:8]
        with pytest.raises(BufferError) as told:
            buf.free()
        text = str(told.value)
        assert "cache 'c'" in text
        assert "still in use and stays allocated" in text
        assert "1 other memoryview of it (an array's, perhaps) alive: 8 bytes" in text
        assert "Release slices (`with buf.view[:n] as part:`), del arrays" in text
        del part, told
        array = np.frombuffer(buf.view, np.float32)
        with buf.view[:3], pytest.raises(BufferError, match=r"2 other memoryviews.*3 bytes, 4096 bytes"):
            buf.free()
        del array
        buf.free()
