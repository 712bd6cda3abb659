"""DLPack: a tensor over a buffer is an export, whoever holds it, however it ends."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aslab
from aslab import Buffer, BufferFreedError
from aslab._cache import pool_of
from aslab._fastpath import HAUNTED
from aslab._kmem._frees import unpark
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator

pytestmark = pytest.mark.anyio
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "merged": {"merge": True},
    "movable": {"movable": True},
    "zeroed": {"init_on_free": True},
}


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


class Consumed:
    """A consumer in C: takes the tensor over, and calls its deleter without the GIL."""

    _valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_IsValid", ctypes.pythonapi)
    )
    _pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    _rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )

    def __init__(self, capsule: Any) -> None:
        self.versioned = bool(self._valid(capsule, b"dltensor_versioned"))
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        self.tensor = self._pointer(capsule, name) or 0
        self._used = b"used_" + name
        self._rename(capsule, self._used)
        # Where they are: DLManagedTensor begins with the DLTensor of 48 bytes, the other with its version.
        self.data = ctypes.c_void_p.from_address(self.tensor + (32 if self.versioned else 0)).value
        self.deleter = ctypes.c_void_p.from_address(self.tensor + (16 if self.versioned else 56)).value or 0

    def delete(self) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.deleter)(self.tensor)


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "array": np.from_dlpack,
    "slice": lambda buf: np.from_dlpack(buf)[8:16],
    "of another type": lambda buf: np.from_dlpack(buf).view(np.float32).reshape(2, -1),
    "of the array again": lambda buf: np.from_dlpack(np.from_dlpack(buf)),
    "capsule": lambda buf: buf.__dlpack__(),
    "versioned capsule": lambda buf: buf.__dlpack__(max_version=(1, 0), dl_device=(1, 0), copy=False, stream=None),
}


@pytest.mark.parametrize("hold", list(HOLDERS))
@pytest.mark.parametrize("emergency", [False, True])
async def test_free_is_refused_until_the_tensor_is_gone(hold: str, emergency: bool, kind: dict[str, Any]) -> None:
    options = {"slabs": Gate(), "grow_timeout": 0.0, "kick_after": None} if emergency else {}
    async with allocator(**options) as kmem:
        cache = kmem.create_cache("c", SIZE, **kind)
        buf = await cache.alloc()
        assert buf.emergency is emergency
        holder = HOLDERS[hold](buf)
        for _ in range(2):
            with pytest.raises(BufferError, match=r"pin|DLPack"):
                buf.free()
        assert (cache.stats().obj_held, cache.stats().obj_lingering) == (1, 0)
        del holder
        buf.free()
        stats = cache.stats()
        assert (stats.obj_held, stats.obj_lingering) == (0, 0)
        check_consistency(cache)


async def test_it_is_the_memory_itself_as_bytes(kind: dict[str, Any]) -> None:
    async with allocator() as kmem, kmem.create_cache("c", SIZE, **kind).lease() as buf:
        assert buf.__dlpack_device__() == (1, 0)
        array = np.from_dlpack(buf)
        assert (array.shape, str(array.dtype), array.ctypes.data) == ((SIZE,), "uint8", buf.address)
        array[:4] = np.frombuffer(b"here", np.uint8)
        with buf.pin() as view:
            assert bytes(view[:4]) == b"here"
            view[0] = 0
        assert array[0] == 0
        del array


async def test_capsule_is_of_the_version_asked_for() -> None:
    async with allocator() as kmem, kmem.create_cache("c", SIZE).lease() as buf:
        for versions, versioned in (
            ({}, False),
            ({"max_version": (0, 8)}, False),
            ({"max_version": (1, 0)}, True),
        ):
            tensor = Consumed(buf.__dlpack__(**versions))
            assert (tensor.versioned, tensor.data) == (versioned, buf.address)
            with pytest.raises(BufferError, match="DLPack"):
                buf.free()
            tensor.delete()


async def test_what_was_asked_for_and_cannot_be_is_refused_and_leaves_no_trace() -> None:
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE).alloc()
        wrong: tuple[tuple[dict[str, Any], Any], ...] = (
            ({"dl_device": (2, 0)}, (BufferError, ValueError)),  # numpy from 2.4 on, and before
            ({"stream": 1}, (RuntimeError, ValueError)),  # numpy before 2.5, and from then on
            ({"max_version": "1"}, TypeError),
            ({"nonsense": 1}, TypeError),
        )
        for options, error in wrong:
            with pytest.raises(error) as raised:
                buf.__dlpack__(**options)
        buf.free()  # while the error, and the frames in it, are alive
        del raised


async def test_copy_exports_nothing() -> None:
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE).alloc()
        buf.view[:4] = b"here"
        copied = np.from_dlpack(buf, copy=True)
        buf.free()
        assert bytes(copied[:4]) == b"here"


async def test_freed_buffer_has_no_tensor(kind: dict[str, Any]) -> None:
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE, **kind).alloc()
        buf.free()
        for use in (np.from_dlpack, Buffer.__dlpack__):
            with pytest.raises(BufferFreedError, match="'c'"):
                use(buf)


async def test_error_on_its_way_survives_the_end_of_tensors_and_capsules() -> None:
    """The deleters run while the error is pending: a deleter in Python would replace it by a SystemError."""
    async with allocator() as kmem, kmem.create_cache("c", SIZE).lease() as buf:
        for make in (np.from_dlpack, Buffer.__dlpack__, lambda buf: Buffer.__dlpack__(buf, max_version=(1, 0))):
            with pytest.raises(TypeError, match="len"):
                len(make(buf), make(buf))  # type: ignore[call-arg]
            with pytest.raises(ZeroDivisionError):
                [make(buf), 1 / 0]
            assert not buf._slot.in_use(1)


async def test_deleter_may_run_on_any_thread_without_the_gil(kind: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **kind)
        for versions in ({}, {"max_version": (1, 0)}):
            buf = await cache.alloc()
            tensors = [Consumed(buf.__dlpack__(**versions)) for _ in range(20)]
            threads = [threading.Thread(target=tensor.delete) for tensor in tensors]
            with pytest.raises(BufferError, match=r"pin|DLPack"):
                buf.free()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            buf.free()
        assert (cache.stats().obj_held, cache.stats().obj_lingering) == (0, 0)


async def test_garbage_collector_may_end_it() -> None:
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE).alloc()
        cycle: list[Any] = [np.from_dlpack(buf), buf.__dlpack__()]
        cycle.append(cycle)
        del cycle
        with pytest.raises(BufferError, match="DLPack"):
            buf.free()
        gc.collect()
        buf.free()


async def test_buffer_that_may_move_does_once_the_tensor_is_gone() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True, objects_per_slab=8)
        bufs = [await cache.alloc() for _ in range(9)]
        last = bufs.pop()
        tensor = np.from_dlpack(last)
        tensor[:] = 7
        for buf in bufs[:4]:
            buf.free()
        address = last.address
        await cache.defragment()
        assert (cache.stats().move_yes, last.address, tensor[-1]) == (0, address, 7)
        del tensor
        await cache.defragment()
        assert cache.stats().move_yes == 1
        assert last.address != address
        with last.pin() as view:
            assert view[-1] == 7
        del view
        for buf in (*bufs[4:], last):
            buf.free()
        check_consistency(cache)


async def test_thousands_leave_nothing_behind() -> None:
    before = set(HAUNTED)
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=8)
        for _ in range(300):
            async with cache.lease_many(8) as bufs:
                for buf in bufs:
                    np.from_dlpack(buf)[0] = 1
                    buf.__dlpack__()
        stats = cache.stats()
        assert (stats.slab_total, stats.obj_held, stats.obj_lingering) == (1, 0, 0)
        assert before >= HAUNTED
        check_consistency(cache)


async def test_forgotten_buffer_comes_back_when_its_tensor_has_gone(kind: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **kind)
        buf = await cache.alloc()
        tensor, address = np.from_dlpack(buf), buf.address
        with pytest.warns(ResourceWarning):
            del buf
        others = [await cache.alloc() for _ in range(9)]
        assert address not in [other.address for other in others]
        tensor[:] = 1
        del tensor
        unpark(pool_of(cache))
        for other in others:
            other.free()
        stats = cache.stats()
        assert (stats.obj_held, stats.obj_lingering) == (0, 0)
        check_consistency(cache)


async def test_memory_outlives_the_allocator_while_a_tensor_does() -> None:
    slabs = Instant()
    with pytest.warns(ResourceWarning, match="still held"):
        async with aslab.open_allocator(slabs=slabs) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
            tensor = np.from_dlpack(buf)
    tensor[:] = 3
    with pytest.raises(BufferError, match="DLPack"):
        buf.free()
    assert len(slabs.outstanding) == 1
    del tensor
    buf.free()
    for _ in range(30_000):
        if slabs.outstanding:  # by a thread
            threading.Event().wait(0.001)
    assert not slabs.outstanding


async def test_without_numpy_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    async with allocator() as kmem:
        buf = await kmem.create_cache("c", SIZE).alloc()
        with pytest.raises(
            ModuleNotFoundError, match=r"DLPack needs the extra 'arrays': run pip install '\.\[arr"
        ):
            buf.__dlpack__()
        buf.free()


def ends_well(script: str, expected: str = "alive\n") -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_tensors_may_live_to_the_end_of_the_process_and_beyond_the_interpreters() -> None:
    """As a static object in C++ does, whose deleter runs when there is no interpreter any more."""
    ends_well("""
        import ctypes, anyio, aslab
        import numpy as np
        from tests.test_dlpack import Consumed

        kept = []

        async def main():
            async with aslab.open_allocator(grow_timeout=60) as kmem:
                cache = kmem.create_cache("c", 4096)
                for _ in range(4):
                    kept.append(await cache.alloc())

        anyio.run(main)
        kept.append(np.from_dlpack(kept[0]))
        kept.append(kept[1].__dlpack__())
        kept.append([np.from_dlpack(kept[2]), kept])
        for version in ((0, 8), (1, 0)):
            late = Consumed(kept[3].__dlpack__(max_version=version))
            exit = ctypes.CDLL(None).__cxa_atexit
            exit(ctypes.c_void_p(late.deleter), ctypes.c_void_p(late.tensor), None)
        print("alive", flush=True)
    """) if sys.platform == "linux" else pytest.skip("__cxa_atexit by name")


TORCH = {
    "from_dlpack": "torch.from_dlpack(buf)",
    "asarray": "torch.asarray(buf)",
    "of an array": "torch.from_numpy(arrays.array(buf, 'f4'))",
}


@pytest.mark.parametrize("make", list(TORCH))
async def test_torch_kept_past_the_free_is_refused(make: str) -> None:
    torch = pytest.importorskip("torch")
    from aslab import arrays

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        tensor = eval(TORCH[make], {"torch": torch, "arrays": arrays, "buf": buf})
        assert tensor.data_ptr() == buf.address
        tensor.fill_(1)
        part = tensor[8:]
        del tensor
        with pytest.raises(BufferError, match="DLPack"):
            buf.free()
        with pytest.raises(TypeError):
            len(torch.from_dlpack(buf), 1)  # type: ignore[call-arg]
        del part
        buf.free()
        assert (cache.stats().obj_held, cache.stats().obj_lingering) == (0, 0)


FROMBUFFER = """
    import gc, mmap, torch, anyio, aslab
    from torch import uint8

    def plain():
        memory = mmap.mmap(-1, 2**20)
        with memoryview(memory) as view:
            tensor = torch.frombuffer(view, dtype=uint8)
        memory.close()
        return tensor

    async def ours():
        async with aslab.open_allocator(grow_timeout=60) as kmem:
            cache = kmem.create_cache("c", 2**20)
            buf = await cache.alloc()
            tensor = torch.frombuffer(buf.view, dtype=uint8)
            buf.free()
            del buf
            await cache.reap()
            tensor.fill_(1)
        return tensor
"""


def test_torch_frombuffer_kept_past_the_free_crashes_on_other_memory_and_not_on_ours() -> None:
    pytest.importorskip("torch")
    ends_well(FROMBUFFER + "\n    tensor = anyio.run(ours); gc.collect(); tensor.fill_(2); print('alive')")
    with pytest.raises(AssertionError, match=r"-11|-7"):
        ends_well(FROMBUFFER + "\n    tensor = plain(); tensor.fill_(2); print('alive')")
