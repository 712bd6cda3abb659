"""What must hold of the fast path whether it is compiled or not; and what the compiled one alone promises."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import gc
import inspect
import os
import random
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aslab
from aslab import KM, Buffer, BufferFreedError, Cache, Lease
from aslab._cache import pool_of
from aslab._fastpath import COMPILED, Front, Magazine, Slot
from aslab.backends import Callback, Heap, Pinned
from aslab.faults import Deadlock, Failslab, Latency, Switch
from aslab.pressure import Signal
from aslab.testing import FakeDriver, check_consistency

from .support import SIZE, allocator, settle

pytestmark = pytest.mark.anyio
compiled = pytest.mark.skipif(not COMPILED, reason="of the compiled fast path alone")
between_steps = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="there the collector runs between steps of Python"
)
NEVER = "coroutine 'Cache.alloc' was never awaited"


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def warmed(kmem: aslab.Allocator, **options: Any) -> Cache[memoryview]:
    """A cache whose magazine has objects."""
    cache = kmem.create_cache("c", SIZE, **options)
    (await cache.alloc()).free()
    return cache


# -- what is public says what it is


@pytest.mark.parametrize("method", [Cache.alloc, Cache.alloc_nowait, Cache.lease, Buffer.free, Lease.__aenter__])
def test_methods_have_their_names_docstrings_and_signatures(method: Any) -> None:
    assert "self" in inspect.signature(method).parameters
    assert method.__name__ in ("alloc", "alloc_nowait", "lease", "free", "__aenter__")
    assert method.__doc__ or method.__name__ == "__aenter__"
    assert inspect.iscoroutinefunction(method) == (method.__name__ in ("alloc", "__aenter__"))


def test_signature_of_alloc_is_the_whole_one() -> None:
    given = inspect.signature(Cache.alloc).parameters
    assert list(given) == ["self", "flags", "timeout"]
    assert given["flags"].default is KM.SLEEP
    assert given["timeout"].kind is inspect.Parameter.KEYWORD_ONLY
    assert Cache.alloc.__qualname__ == "Cache.alloc"
    assert isinstance(inspect.getattr_static(Buffer, "view"), object)
    assert "writable" in str(Buffer.view.__doc__)
    assert Buffer.__module__ == Cache.__module__ == "aslab"


def test_pure_python_is_used_on_request() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "from aslab import _fastpath; print(_fastpath.COMPILED)"],
        env={**os.environ, "ASLAB_PURE": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert said == "False\n"


# -- what alloc returns is a coroutine


async def test_a_hit_passes_for_a_coroutine() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        hit: Any = cache.alloc()
        with pytest.raises(TypeError, match="not an iterator"):
            next(hit)
        assert inspect.isawaitable(hit)
        assert inspect.iscoroutine(hit)
        assert asyncio.iscoroutine(hit)
        assert isinstance(hit, collections.abc.Coroutine)
        with pytest.raises(TypeError, match="just-started"):
            hit.send(1)
        with pytest.raises(StopIteration) as stop:
            hit.send(None)
        assert inspect.getcoroutinestate(hit) == inspect.CORO_CLOSED
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            hit.send(None)
        hit.close()
        awaited: Any = cache.alloc()
        with pytest.raises(StopIteration) as other:
            next(awaited.__await__())
        other.value.value.free()
        first: Buffer[memoryview] = stop.value.value
        second = await cache.alloc()
        assert stop.value.value is first, "who keeps the StopIteration keeps its value"
        assert first is not second
        first.free()
        second.free()


@pytest.mark.parametrize("end", ["close", "throw", "forget"])
async def test_a_hit_that_is_never_awaited_loses_nothing(end: str) -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        hit: Any = cache.alloc()
        if end == "close":
            hit.close()
        elif end == "throw":
            with pytest.raises(KeyError, match="why"):
                hit.throw(KeyError("why"))
        else:
            with pytest.warns(RuntimeWarning, match=NEVER):
                del hit
                gc.collect()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


@pytest.mark.parametrize("way", ["await", "next", "send"])
async def test_a_hit_that_is_kept_does_not_keep_its_buffer(way: str) -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        hit: Any = cache.alloc()
        iterator: Any = hit.__await__() if way == "next" else None
        if way == "await":
            buf = await hit
        else:
            try:
                next(iterator) if way == "next" else hit.send(None)
            except StopIteration as stop:
                buf = stop.value
        ref = weakref.ref(buf)
        buf.free()
        del buf
        assert ref() is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_takes_a_hit_for_a_coroutine() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        (await asyncio.wait_for(cache.alloc(), 1)).free()
        (await asyncio.create_task(cache.alloc())).free()
        for buf in await asyncio.gather(cache.alloc(), cache.alloc()):
            buf.free()
        task = asyncio.create_task(cache.alloc())
        assert "Cache.alloc" in repr(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cache.stats().obj_held == 0


async def test_task_group_takes_a_hit_for_a_coroutine() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        with pytest.warns(ResourceWarning, match="without free"):  # nobody takes the result
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cache.alloc)
            gc.collect()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_a_hit_takes_its_object_when_it_is_awaited() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=8, max_objects=8)
        await cache.prefill(8)
        hits = [cache.alloc() for _ in range(9)]
        assert cache.stats().obj_held == 0
        bufs = [await hit for hit in hits[:8]]
        task_ends = anyio.Event()

        async def last() -> None:
            bufs.append(await hits[8])
            task_ends.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(last)
            await settle()
            assert not task_ends.is_set()
            waits: Any = hits[8]
            assert inspect.getcoroutinestate(waits) == inspect.CORO_SUSPENDED
            bufs.pop().free()
        late: Any = cache.alloc()
        for buf in bufs:
            buf.free()
        hit, thrown = cache.alloc(), cache.alloc()
        late.close()
        await cache.aclose()
        with pytest.raises(aslab.CacheClosedError):
            await hit
        with pytest.raises(KeyError):
            thrown.throw(KeyError())


# -- handles and slots


async def test_a_handle_is_used_again_only_once_nobody_refers_to_it() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        stale = cache.alloc_nowait()
        seen: list[object] = []
        ref = weakref.ref(stale, seen.append)
        stale.free()
        others = [cache.alloc_nowait() for _ in range(4)]
        assert all(other is not stale for other in others)
        with pytest.raises(BufferFreedError):
            stale.free()
        del stale
        assert ref() is None
        assert len(seen) == 1
        for other in others:
            other.free()
        heir = cache.alloc_nowait()
        assert ref() is None
        heir.free()
        assert len(seen) == 1


async def test_garbage_cycle_gives_its_buffer_back() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        cycle: list[object] = [cache.alloc_nowait(), cache.lease()]
        cycle.append(cycle)
        with pytest.warns(ResourceWarning, match="without free"):
            del cycle
            gc.collect()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_slot_does_not_keep_its_slab_alive() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        buf = cache.alloc_nowait()
        slot = buf._slot
        assert slot.slab is not None
        buf.free()
        await cache.aclose()
        assert slot.slab is None


@compiled
async def test_forgotten_buffer_comes_back_as_its_last_export_ends() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        buf = cache.alloc_nowait()
        parts = [buf.view[8:], memoryview(buf.view)]
        with pytest.warns(ResourceWarning):
            del buf
        for part in parts:
            assert cache.stats().obj_held == 1
            part.release()
        parts.clear()
        del part
        await settle()
        assert (cache.stats().obj_held, cache.stats().obj_lingering) == (0, 0)
        check_consistency(cache)


async def test_what_is_behind_a_view_never_reaches_the_next_owner() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        buf = await cache.alloc()
        behind: Any = buf.view.obj
        with contextlib.suppress(BufferError):  # in Python it counts as use
            buf.free()
        heir = cache.alloc_nowait()
        heir.view[:6] = b"heir's"
        with contextlib.suppress(BufferError):
            memoryview(behind).cast("B")[:6] = b"stolen"
        assert bytes(heir.view[:6]) == b"heir's"
        heir.free()
        del behind
        buf.__exit__(None, None, None)
        check_consistency(cache)


@pytest.mark.filterwarnings("ignore:the .type, exc, tb. signature:DeprecationWarning")
async def test_what_takes_no_arguments_refuses_them() -> None:
    for made, args, kwargs in ((Buffer, (1,), {}), (Buffer, (), {"x": 1}), (Front, (1,), {})):
        given: Any = made
        with pytest.raises(TypeError):
            given(*args, **kwargs)
    hit: Any = None
    async with allocator() as kmem:
        hit = (await warmed(kmem)).alloc()
        with pytest.raises(TypeError, match="separate value"):
            hit.throw(KeyError(), 2)
        hit.close()


@compiled
def test_slots_are_carved_within_their_region() -> None:
    slots: list[Any] = []
    memory = memoryview(bytearray(64))
    Slot.carve(slots, None, memory, 0, 8, 16, 2)
    for size, stride, count in (
        (9, 16, 1),
        (8, 4, 1),
        (8, 16, 3),
        (8, 1 << 62, 1),
        (8, 16, -1),
        (8, 16, sys.maxsize),
    ):
        with pytest.raises(ValueError, match="bytes"):
            Slot.carve(slots, None, memory, 0, size, stride, count)
    with pytest.raises(ValueError, match="negative"):
        Magazine(-1)


@compiled
async def test_what_a_handle_has_lent_has_its_type_checked() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        with cache.alloc_nowait() as buf:
            with pytest.raises(TypeError, match="tuple"):
                buf._lent = 1  # type: ignore[assignment]
            given: Any = buf
            assert memoryview(given).nbytes == SIZE


@compiled
@between_steps
@pytest.mark.parametrize("way", ["view", "pin"])
@pytest.mark.parametrize("movable", [False, True])
async def test_collector_that_frees_the_handle_while_its_view_is_made(way: str, movable: bool) -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem, movable=movable)
        before = gc.get_threshold()
        ran: list[bool] = []
        for steps in range(1, 6):  # the collector runs at one after the other
            buf = cache.alloc_nowait()

            def free(phase: str, info: dict[str, int], buf: Buffer[memoryview] = buf) -> None:
                if phase == "start" and buf._view is None and hasattr(buf, "_slot"):
                    slot = buf._slot
                    buf.free()
                    ran.append(True)
                    assert not slot.in_use(), "a slot in the magazine has an export"

            gc.collect()
            gc.callbacks.append(free)
            gc.set_threshold(steps)
            try:
                if way == "view":
                    buf.view
                else:
                    with buf.pin():
                        pass
                buf.free()
            except BufferFreedError:
                pass
            finally:
                gc.set_threshold(*before)
                gc.callbacks.remove(free)
        assert ran
        check_consistency(cache)


@contextlib.contextmanager
def collector_calls(call: Callable[[], object]) -> Iterator[None]:
    """Have the collector run as each object is made that it sees, and call."""

    def after(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            call()

    before = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(after)
    gc.set_threshold(-1)
    try:
        yield
    finally:
        gc.callbacks.remove(after)
        gc.set_threshold(*before)


@compiled
@between_steps
async def test_collector_that_looks_at_the_view_while_it_is_made_and_the_mover_comes_leaves_one_view() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem, movable=True)
        buf: Any = cache.alloc_nowait()
        looked = False

        def look() -> None:
            nonlocal looked
            if not looked:
                looked = buf._view is None
                buf.view
                buf.moving = True

        with collector_calls(look):
            buf.view
        assert looked
        buf.moving = False
        buf.free()
        check_consistency(cache)


@compiled
@between_steps
async def test_collector_that_lends_the_handle_while_it_is_lent_adds_to_what_was_lent() -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        buf: Any = cache.alloc_nowait()
        for _ in range(21):  # a tuple of more is none that was kept for its next use
            memoryview(buf).release()
            buf.view.release()
        hit = 0
        for nth in range(1, 6):
            buf.view
            known = len(buf._lent)
            calls = 0

            def lend(nth: int = nth) -> None:
                nonlocal calls
                calls += 1
                if calls == nth:
                    buf.view.release()
                    memoryview(buf).release()

            with collector_calls(lend):
                try:
                    memoryview(buf).release()
                except ValueError:  # its view was released meanwhile
                    hit += 1
                    assert len(buf._lent) == known + 2, "one of the two was lost"
            buf.view.release()
        assert hit
        buf.free()
        check_consistency(cache)


@compiled
@between_steps
def test_collector_that_ends_a_handle_while_its_slot_is_asked_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        env={**os.environ, "PYTHONMALLOC": "debug"},
        cwd=Path(__file__).parent.parent,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("0 held\n", 0), done.stderr


ASKED = """
import asyncio, gc, warnings
import aslab

class Holder:
    pass

async def main():
    async with aslab.open_allocator() as kmem:
        cache = kmem.create_cache("c", 64, movable=True)
        await cache.prefill(8)
        gc.disable()
        for _ in range(8):
            holder = Holder()
            holder.itself = holder
            holder.buf = await cache.alloc()
        slot = holder.buf._slot
        del holder
        warnings.simplefilter("ignore")
        gc.set_threshold(1)
        gc.enable()
        owner = slot.owner
        assert owner() is None
        del owner, slot
        print(cache.stats().obj_held, "held")

asyncio.run(main())
"""


@compiled
@pytest.mark.parametrize("movable", [False, True])
async def test_what_is_called_as_the_view_of_an_older_pin_ends_may_try_to_free_the_buffer(movable: bool) -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem, movable=movable)
        buf = cache.alloc_nowait()
        views: list[memoryview] = []
        for _ in range(2):
            with buf.pin() as view:
                views.append(view)
        del view
        lists: list[list[int]] = []

        def free(ref: object) -> None:
            with pytest.raises(BufferError, match="still in use"):
                buf.free()
            lists.extend([number] for number in range(30))

        ref = weakref.ref(views[0], free)
        views.clear()
        with buf.pin() as view:
            assert lists == [[number] for number in range(30)], "a list was used after its end"
        assert ref() is None
        buf.free()
        assert cache.stats().obj_lingering == 1, "the last view is kept and was forgotten"
        del view
        check_consistency(cache)


@compiled
@pytest.mark.parametrize("older", [1, 2])
async def test_what_is_called_as_the_view_of_an_older_pin_ends_may_enter_the_pin(older: int) -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem)
        buf = cache.alloc_nowait()
        views: list[memoryview] = []
        for _ in range(older):
            with buf.pin() as view:
                views.append(view)
        del view
        pin = buf.pin()
        entered: list[memoryview] = []
        ref = weakref.ref(views[0], lambda _: entered.append(pin.__enter__()))
        views.clear()
        with pin as view, pytest.raises(BufferError, match="still in use"):
            buf.free()
        assert ref() is None
        entered.pop()[0] = 1
        pin.__exit__(None, None, None)
        del view
        buf.free()
        assert cache.stats().obj_lingering == 0
        check_consistency(cache)


@pytest.mark.parametrize(
    "part", ["reclaim", "ctor", "dtor", "ctor of another", "slabs", "emergency", "pressure", "slabs, movable"]
)
async def test_service_that_holds_a_buffer_of_its_closed_cache_is_collected(part: str) -> None:
    class Service(Heap):
        held: list[Buffer[Any]]

        async def run(self, on_pressure: object) -> None:
            pass

        def reclaim(self, objects: int) -> int:
            return 0

        def ctor(self, view: memoryview) -> int:
            return 1

        def dtor(self, obj: int) -> None:
            pass

    service = Service()
    options: dict[str, Any] = {part: getattr(service, part)} if part in ("reclaim", "ctor", "dtor") else {}
    opened: dict[str, Any] = {"slabs": Heap()}
    another = service.ctor if part == "ctor of another" else len
    if part == "dtor":
        options["ctor"] = len
    elif part == "pressure":
        opened["pressure"] = [service]
    elif part in ("slabs", "emergency"):
        opened[part] = service
    elif part == "slabs, movable":
        opened["slabs"], options["movable"] = service, True
    with pytest.warns(ResourceWarning, match="still held"):
        await keep_buffers(service, opened, another, options)
    ref = weakref.ref(service)
    del service, options, opened, another
    with pytest.warns(ResourceWarning, match="without free"):
        gc.collect()
    assert ref() is None


async def keep_buffers(service: Any, opened: dict[str, Any], another: Any, options: dict[str, Any]) -> None:
    async with aslab.open_allocator(**opened) as kmem:
        async with kmem.create_cache("another", SIZE, objects_per_slab=4, ctor=another).lease():
            pass
        cache: Cache[Any] = kmem.create_cache("c", SIZE, objects_per_slab=4, **options)
        service.held = [await cache.alloc(), await cache.alloc(), cache.alloc_nowait()]
        with cache.alloc_nowait():  # its free is that of any other
            pass
        async with cache.lease():
            pass


class Derived(Heap):
    """A backend of a client's: it may refer to anything."""


@compiled
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, False),
        ({"slabs": Latency(Deadlock(Heap(), at=9), 0.0), "emergency": Failslab(Heap())}, False),
        ({"pressure": [Signal()]}, False),
        ({"slabs": Latency(Derived(), 0.0)}, True),
        ({"slabs": Switch(Heap())}, True),  # what it tells may be the client's
        ({"slabs": Heap(), "emergency": Callback(lambda *_: bytearray(0), id)}, True),
        ({"slabs": Heap(), "emergency": Pinned(driver=FakeDriver())}, True),
    ],
    ids=["default", "wrapped", "source", "wrapped of a client", "switch", "callbacks", "driver of a client"],
)
async def test_collector_sees_buffers_if_they_may_lead_to_the_client(options: dict[str, Any], seen: bool) -> None:
    async with (
        aslab.open_allocator(**options) as kmem,
        kmem.create_cache("c", SIZE, objects_per_slab=1).lease() as buf,
    ):
        assert gc.is_tracked(buf) == seen


# -- a random model


class Model:
    """Any sequence of calls on one cache: no address has two owners, no stale handle reaches anything."""

    def __init__(self, cache: Cache[memoryview], seed: int) -> None:
        self.cache = cache
        self.random = random.Random(seed)
        self.held: dict[int, Buffer[memoryview]] = {}
        self.stale: list[Buffer[memoryview]] = []
        self.exports: list[tuple[int, memoryview]] = []
        self.kept: list[memoryview] = []
        self.number = 0

    def step(self) -> None:
        ways = (
            self.alloc,
            self.alloc,
            self.alloc,
            self.free,
            self.free,
            self.export,
            self.keep,
            self.end,
            self.end,
            self.touch,
        )
        self.random.choice((*ways, self.lose) if self.random.random() < 0.2 else ways)()

    def alloc(self) -> None:
        if len(self.held) > 12:
            return
        buf = self.cache.alloc_nowait()
        assert buf.address not in {other.address for other in self.held.values()}, "an address has two owners"
        assert not any(buf is old for old in self.stale), "a handle that somebody holds was used again"
        self.number += 1
        if self.random.random() < 0.9:
            buf.view[:8] = self.number.to_bytes(8, "little")
            self.held[self.number] = buf
        else:
            buf.free()

    def pick(self) -> int:
        return self.random.choice(list(self.held))

    def free(self) -> None:
        if not self.held:
            return
        number = self.pick()
        buf = self.held[number]
        exported = any(other == number for other, _ in self.exports)
        assert int.from_bytes(buf.view[:8], "little") == number, "somebody else wrote there"
        before = buf.view
        try:
            buf.free()
        except BufferError:
            assert exported, "refused without an export"
            assert buf.view is before, "a refusal leaves the view as it is"
            return
        assert not exported, "freed with an export"
        del self.held[number]
        if self.random.random() < 0.5:
            self.stale.append(buf)

    def export(self) -> None:
        if not self.held:
            return
        number = self.pick()
        buf = self.held[number]
        way = self.random.randrange(4 if sys.version_info >= (3, 12) or COMPILED else 3)
        if way == 0:
            self.exports.append((number, buf.view[1:9]))
        elif way == 1:
            self.exports.append((number, memoryview(buf.view)))
        elif way == 2:
            with buf.pin() as pinned:
                self.exports.append((number, pinned[3:]))
        else:
            given: Any = buf
            self.exports.append((number, memoryview(given)))

    def keep(self) -> None:
        """Keep the view object of a pin that has ended."""
        if self.held and len(self.kept) < 6:
            with self.held[self.pick()].pin() as pinned:
                self.kept.append(pinned)

    def end(self) -> None:
        if self.kept and self.random.random() < 0.5:
            self.kept.pop(self.random.randrange(len(self.kept)))
        if self.exports:
            _, view = self.exports.pop(self.random.randrange(len(self.exports)))
            if self.random.random() < 0.5:
                view.release()

    def touch(self) -> None:
        if self.stale:
            buf = self.random.choice(self.stale)
            for use in (buf.free, lambda: buf.view, lambda: buf.address, buf.__enter__):
                with pytest.raises(BufferFreedError):
                    use()
            if self.random.random() < 0.3:
                self.stale.remove(buf)

    def lose(self) -> None:
        if self.held:
            number = self.pick()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del self.held[number]
            self.exports = [one for one in self.exports if one[0] != number]

    def finish(self) -> None:
        self.exports.clear()
        self.kept.clear()
        for buf in self.held.values():
            buf.free()
        self.held.clear()
        self.stale.clear()


async def play(seed: int, steps: int, *, movable: bool = False) -> None:
    async with allocator(expire=None) as kmem:
        cache = await warmed(kmem, objects_per_slab=4 if movable else 16, movable=movable)
        await cache.prefill(32)
        model = Model(cache, seed)
        for number in range(steps):
            model.step()
            if number % 64 == 0:
                await cache.defragment()
                await anyio.lowlevel.checkpoint()
        model.finish()
        gc.collect()
        pool = pool_of(cache)
        for _ in range(1 + len(pool.parking)):
            (await cache.alloc()).free()  # what was forgotten is looked at
            await cache.reap()
        assert cache.stats().obj_held == 0
        check_consistency(cache)


@pytest.mark.parametrize("movable", [False, True])
async def test_any_sequence_of_calls_gives_each_place_one_owner(movable: bool) -> None:
    await play(1, 600, movable=movable)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seed", range(10))
async def test_a_million_random_calls_give_each_place_one_owner(seed: int) -> None:
    await play(seed, 100_000, movable=seed % 2 == 1)


def work(cache: Cache[memoryview], number: int, steps: int, wrong: list[str]) -> None:
    """What each of several threads does with one cache."""
    own = random.Random(number)
    held: list[tuple[Buffer[memoryview], bytes]] = []
    for step in range(steps):
        if not held or (len(held) < 16 and own.random() < 0.5):
            buf = cache.alloc_nowait()
            mark = bytes((number, step & 255))
            buf.view[:2] = mark
            held.append((buf, mark))
        else:
            buf, mark = held.pop(own.randrange(len(held)))
            if bytes(buf.view[:2]) != mark:
                wrong.append("somebody else wrote there")
            buf.free()
    for buf, _ in held:
        buf.free()


async def race(steps: int) -> None:
    wrong: list[str] = []
    async with allocator() as kmem:
        cache = await warmed(kmem)
        await cache.prefill(64)
        threads = [threading.Thread(target=work, args=(cache, number, steps, wrong)) for number in range(4)]
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
        assert not wrong
        assert cache.stats().obj_held == 0
        check_consistency(cache)


async def test_threads_that_allocate_and_free_at_once_share_no_place() -> None:
    await race(300)


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_threads_share_no_place_in_a_million_calls() -> None:
    await race(250_000)


@pytest.mark.parametrize("movable", [False, True])
async def test_nothing_is_left_of_many_allocations(movable: bool) -> None:
    async with allocator() as kmem:
        cache = await warmed(kmem, movable=movable)

        async def each_way() -> None:
            buf = cache.alloc_nowait()
            with buf.pin() as first:
                first[0] = 1
            with buf.pin() as second, buf.pin(), pytest.raises(BufferError):
                buf.free()
            buf.free()  # though two views are kept
            buf = cache.alloc_nowait()
            kept = buf.view
            buf.free()
            del first, second, kept
            cache.alloc_nowait().free()
            (await cache.alloc()).free()
            async with cache.lease() as buf:
                buf.view[0] = 1
            with cache.alloc_nowait() as buf:
                part = buf.view[1:]
                with pytest.raises(BufferError):
                    buf.free()
                del part
            cache.alloc().close()
            with pytest.raises(BufferFreedError):
                buf.free()

        for _ in range(20):
            await each_way()
        left: list[int] = []
        for _ in range(3):  # what other threads allocate meanwhile is in one of them at most
            gc.collect()
            before = sys.getallocatedblocks()
            for _ in range(150):
                await each_way()
            gc.collect()
            left.append(sys.getallocatedblocks() - before)
        assert min(left) < 50, left
