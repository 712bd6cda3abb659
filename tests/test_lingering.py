"""View objects that are kept after a free: by a library that knows the address, or merely in a variable."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import aslab
from aslab import KM, Buffer, BufferFreedError
from aslab._cache import pool_of
from aslab._fastpath import COMPILED, HAUNTED
from aslab._kmem._frees import look_at_lingering, unpark
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio
STUCK: dict[str, Any] = {"grow_timeout": 0, "kick_after": None}


class Tensor:
    """As torch does it: takes the address, ends its export at once, and keeps the object alone."""

    def __init__(self, source: Any) -> None:
        self.source = source
        got = (ctypes.c_char * 256)()  # a Py_buffer; its first field is the address
        if ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(source), got, 1):
            raise AssertionError
        self.address = ctypes.c_void_p.from_buffer(got).value or 0
        ctypes.pythonapi.PyBuffer_Release(got)

    def write(self, text: bytes) -> None:
        ctypes.memmove(self.address, text, len(text))

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (SIZE,), "typestr": "|u1", "data": (self.address, False)}


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "merged": {"merge": True},
    "movable": {"movable": True},
    "zeroed": {"init_on_free": True},
}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


async def test_kept_view_object_reaches_no_next_owner_while_other_objects_are_free(kind: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **kind)
        buf = await cache.alloc()
        tensor = Tensor(buf.view)
        array = np.asarray(tensor)
        buf.free()
        assert cache.stats().obj_lingering == 1
        assert cache.stats().obj_held == 0
        check_consistency(cache)
        others = [await cache.alloc() for _ in range(7)]
        assert tensor.address not in [other.address for other in others]
        tensor.write(b"stale")
        assert all(bytes(other.view[:5]) == bytes(5) for other in others)
        last = await cache.alloc()
        assert last.address == tensor.address, "it is used before the cache grows or anybody waits"
        assert cache.stats().slab_total == 1
        for other in [*others, last]:
            other.free()
        del array, tensor
        assert cache.stats().obj_lingering == 0
        check_consistency(cache)


@pytest.mark.parametrize("closing", ["reap", "cache", "allocator"])
async def test_slab_stays_until_the_view_object_is_gone(kind: dict[str, Any], closing: str) -> None:
    slabs, before = Instant(), set(HAUNTED)  # other tests' views live until they are collected
    async with aslab.open_allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE, **kind)
        buf = await cache.alloc()
        tensor = Tensor(buf.view)
        buf.free()
        await (cache.reap() if closing == "reap" else cache.aclose() if closing == "cache" else settle())
        if closing != "allocator":
            assert len(slabs.outstanding) == 1
            tensor.write(b"stale")
            del tensor
            if closing == "reap":
                await cache.reap()
            await settle()
            assert not slabs.outstanding
            return
    await settle()
    assert len(slabs.outstanding) == 1
    tensor.write(b"stale")
    del buf, tensor
    assert _back(slabs)
    assert before >= HAUNTED


def _back(backend: Instant) -> bool:
    """Whether its regions come back, by the thread that releases after closing."""
    end = time.monotonic() + 60
    while backend.outstanding and time.monotonic() < end:
        time.sleep(0.001)  # of real time: it is a thread that we wait for
    return not backend.outstanding


async def test_variable_that_names_the_view_starves_nobody(kind: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1, **kind)
        for _ in range(3):
            buf = await cache.alloc(timeout=1)
            view = buf.view
            buf.free()
            assert cache.stats().obj_lingering == 1
        with pytest.raises(ValueError, match="released"):
            view[0] = 1
        await cache.prefill(1)
        cache.alloc_nowait().free()
        assert cache.stats().obj_lingering == 1
        del view
        assert cache.stats().obj_cached == 1


async def test_slot_that_was_used_again_still_stays_for_the_old_view_object() -> None:
    """Also if its next owner never looks at it."""
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        buf = await cache.alloc()
        tensor = Tensor(buf.view)
        buf.free()
        for _ in range(2):
            (await cache.alloc()).free()
            assert cache.stats().obj_lingering == 1
            await cache.reap()
            assert cache.stats().slab_total == 1
        tensor.write(b"stale")
        del tensor
        await cache.reap()
        assert cache.stats().slab_total == 0


async def test_who_waits_gets_what_lingers(kind: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1, **kind)
        buf = await cache.alloc()
        tensor = Tensor(buf.view)
        got: list[Buffer[memoryview]] = []

        async def caller() -> None:
            got.append(await cache.alloc())

        async with anyio.create_task_group() as tasks:
            await start(tasks, caller)
            buf.free()
        assert got[0].address == tensor.address
        got[0].free()


async def test_what_lingers_survives_a_cancelled_hand_over_and_the_reserve() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=2, objects_per_slab=1, reserve=1)
        await kmem.ready()
        buf = await cache.alloc()
        tensor = Tensor(buf.view)

        async def caller() -> None:
            async with cache.lease():
                await anyio.sleep(10)

        async with anyio.create_task_group() as tasks:
            await start(tasks, caller)
            buf.free()
            tasks.cancel_scope.cancel()
        assert cache.stats().obj_lingering == 1
        urgent = await cache.alloc(KM.PUSHPAGE)
        await settle()
        assert (cache.stats().obj_reserved, cache.stats().obj_lingering) == (0, 1), (
            "it is last, and never set aside"
        )
        check_consistency(cache)
        urgent.free()
        await cache.reap()
        await kmem.reap()
        tensor.write(b"stale")


@pytest.mark.parametrize("keep", [lambda view: Tensor(view[4:8]), Tensor], ids=["slice", "released by the caller"])
async def test_released_views_are_no_hindrance_and_their_memory_stays(keep: Any) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        tensor = keep(buf.view)
        tensor.source.release()
        assert len(buf.view) == SIZE
        buf.free()
        assert cache.stats().obj_lingering == 1
        await cache.reap()
        tensor.write(b"st")
        assert cache.stats().slab_total == 1
        del tensor
        await cache.reap()
        assert cache.stats().slab_total == 0


async def test_pinned_view_that_is_kept_holds_the_place_that_a_move_left_behind() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2, movable=True)
        bufs = [await cache.alloc() for _ in range(4)]
        tensors = []
        for buf in bufs[::2]:
            with buf.pin() as view:
                tensors.append(Tensor(view))
        del view
        for buf in bufs[1::2]:
            buf.free()
        await cache.defragment()
        assert [tensor.address for tensor in tensors] != [buf.address for buf in bufs[::2]], "one was moved"
        assert cache.stats().obj_lingering == 1
        assert cache.stats().slab_total == 2
        check_consistency(cache)
        tensors[0].write(b"stale")
        tensors[1].write(b"stale")
        tensors.clear()
        await cache.reap()
        assert cache.stats().slab_total == 1
        for buf in bufs[::2]:
            buf.free()


async def test_emergency_object_stays_until_the_view_object_is_gone_and_may_be_used_again() -> None:
    emergency = Instant()
    async with allocator(slabs=Gate(), emergency=emergency, **STUCK) as kmem:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        buf = await cache.alloc()
        tensor = Tensor(buf.view)
        buf.free()
        await settle()
        stats = cache.stats()
        assert (stats.obj_emergency, stats.obj_lingering, stats.obj_held) == (1, 1, 0)
        check_consistency(cache)
        tensor.write(b"stale")
        for wait in (True, False):
            again = await cache.alloc() if wait else cache.alloc_nowait()
            assert again.address == tensor.address
            assert again.emergency
            again.free()
        assert len(emergency.outstanding) == 1
        del tensor
        pool_of(cache).emergency.clear()  # it is kept for the next caller: slabs are late
        await settle()
        assert not emergency.outstanding
        assert cache.stats().obj_emergency == 0


async def test_who_is_refused_an_emergency_object_gets_the_one_that_lingers() -> None:
    async with allocator(slabs=Gate(), **STUCK) as kmem:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        buf = await cache.alloc()
        view = buf.view
        got: list[Buffer[memoryview]] = []

        async def caller() -> None:
            got.append(await cache.alloc())

        async with anyio.create_task_group() as tasks:
            await start(tasks, caller)
            buf.free()
            with anyio.fail_after(5):
                while not got:
                    await anyio.sleep(0.01)
        got[0].free()
        del view


async def test_view_object_in_a_garbage_cycle_is_waited_for() -> None:
    async with allocator(expire=0.3) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        cycle: list[object] = [Tensor(buf.view)]
        cycle.append(cycle)
        buf.free()
        del cycle
        gc.collect()
        await anyio.sleep(0.2)
        assert cache.stats().obj_lingering == 0
        check_consistency(cache)


@pytest.mark.skipif(sys.version_info < (3, 12) and not COMPILED, reason="PEP 688")
async def test_handle_that_is_kept_in_place_of_an_export_counts_as_its_view() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        tensor = Tensor(buf)
        buf.free()
        assert "freed" in repr(buf)
        with pytest.raises(BufferFreedError):
            memoryview(buf)  # type: ignore[arg-type]
        assert cache.stats().obj_lingering == 1
        await cache.reap()
        tensor.write(b"stale")
        assert cache.stats().slab_total == 1
        del buf, tensor
        assert cache.stats().obj_lingering == 0


def test_process_survives_writes_by_the_kept_address_after_reap_and_closing() -> None:
    script = textwrap.dedent("""
        import anyio, ctypes, aslab

        async def main():
            async with aslab.open_allocator() as kmem:
                cache = kmem.create_cache("c", 2**20)
                buf = await cache.alloc()
                view, address = buf.view, buf.address
                buf.free()
                del buf
                await cache.reap()
                ctypes.memset(address, 7, 2**20)
            ctypes.memset(address, 8, 2**20)
            del kmem, cache
            import gc
            gc.collect()
            ctypes.memset(address, 9, 2**20)
            return view, address

        view, address = anyio.run(main)
        ctypes.memset(address, 10, 2**20)
        print("alive")
    """)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


async def test_move_leaves_a_kept_view_its_old_place() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True, objects_per_slab=8)
        bufs = [await cache.alloc() for _ in range(9)]
        last = bufs.pop()
        with last.view as view:
            view[0] = 1
        for buf in bufs[:4]:
            buf.free()
        await cache.defragment()
        assert cache.stats().move_yes == 1
        assert cache.stats().obj_lingering == 1
        del view
        for buf in (*bufs[4:], last):
            buf.free()
        await cache.reap()
        assert cache.stats().obj_lingering == 0


async def test_reserve_takes_no_place_that_lingers() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=2, reserve=1)
        buf, urgent = await cache.alloc(), await cache.alloc(KM.PUSHPAGE)
        view = buf.view
        buf.free()
        await settle()
        check_consistency(cache)
        urgent.free()
        await settle()
        assert cache.stats().obj_reserved == 1
        check_consistency(cache)
        del view


async def test_slice_that_was_released_after_its_buffer_was_forgotten_makes_the_place_linger(
    kind: dict[str, Any],
) -> None:
    """As torch.frombuffer of a slice has it: the object is kept, its export is over."""
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **kind)
        buf = await cache.alloc()
        part = buf.view[8:]
        with pytest.warns(ResourceWarning):
            del buf
        part.release()
        await cache.prefill(7)
        cache.alloc_nowait().free()  # a look at what was forgotten
        unpark(pool_of(cache))
        assert cache.stats().obj_lingering == 1
        assert await cache.reap() == 0
        del part
        look_at_lingering(pool_of(cache))
        assert cache.stats().obj_lingering == 0


@pytest.mark.parametrize("way", ["used while it lingers", "used when the object is gone", "drained"])
async def test_what_a_kept_view_object_writes_after_the_free_is_zeroed_for_the_next_owner(way: str) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1, init_on_free=True)
        buf = await cache.alloc()
        part = buf.view[:]
        tensor = Tensor(part)
        part.release()
        del part
        buf.free()
        tensor.write(b"stale")
        if way != "used while it lingers":
            del tensor
        if way == "drained":
            pool_of(cache).depot.drain(0)
            assert cache.stats().obj_lingering == 0
        async with cache.lease() as found:
            assert bytes(found.view[:5]) == bytes(5)
