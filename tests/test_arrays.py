"""Arrays: one per slot, which nobody counts, and one per call, which keeps its buffer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aslab
from aslab import BufferFreedError, ConfigError, arrays
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


# -- arrays.cache


@pytest.mark.parametrize("emergency", [False, True])
async def test_array_of_a_slot_is_its_memory(emergency: bool) -> None:
    options = {"slabs": Gate(), "grow_timeout": 0.0, "kick_after": None} if emergency else {}
    async with allocator(**options) as kmem:
        cache = arrays.cache(kmem, "c", (3, 5, 7), np.float32, objects_per_slab=2)
        assert cache.size == 3 * 5 * 7 * 4
        bufs = [await cache.alloc() for _ in range(3)]
        for buf in bufs:
            found = buf.obj
            assert buf.emergency is emergency
            assert (found.shape, str(found.dtype), found.ctypes.data) == ((3, 5, 7), "float32", buf.address)
            assert found.flags.c_contiguous
            assert found.flags.aligned
            assert found.flags.writeable
            found[:] = 1.5
            assert bytes(buf.view) == np.full((3, 5, 7), 1.5, np.float32).tobytes()
            buf.free()
        check_consistency(cache)


async def test_array_of_a_slot_is_built_once_and_serves_one_owner_after_another() -> None:
    async with allocator() as kmem:
        cache = arrays.cache(kmem, "c", 16, "u1", max_objects=1)
        async with cache.lease() as first:
            mine = first.obj
            mine[:] = 7
        async with cache.lease() as second:
            assert second.obj is mine
            assert second.obj[-1] == 7
            mine[0] = 8  # kept past the free, as nobody should
            assert second.view[0] == 8


async def test_array_of_a_slot_that_is_kept_does_not_hinder_a_free_and_outlives_its_slab() -> None:
    async with aslab.open_allocator() as kmem:
        cache = arrays.cache(kmem, "c", 2**18, np.float32)
        async with cache.lease() as buf:
            kept = buf.obj
        await cache.reap()
        assert cache.stats().slab_total == 0
        kept[:] = 3
    kept[:] = 4
    assert kept[-1] == 4


@pytest.mark.parametrize(
    "dtype", ["?", ">u2", "complex128", "M8[us]", "S3", "U2", "V5", [("x", "u1"), ("y", "f8")]]
)
async def test_every_plain_dtype_will_do(dtype: Any) -> None:
    async with allocator() as kmem, arrays.cache(kmem, "c", (2, 3), dtype).lease() as buf:
        assert buf.obj.dtype == np.dtype(dtype)
        assert buf.obj.nbytes == len(buf)
        found = arrays.array(buf, dtype, (2, 3))
        buf.view[:] = bytes(len(buf))
        assert found.tobytes() == bytes(len(buf))
        del found


@pytest.mark.parametrize(
    ("shape", "dtype", "field"),
    [
        (0, "u1", "shape"),
        ((), "u1", "shape"),
        ((4, 0), "u1", "shape"),
        (-1, "u1", "shape"),
        ("44", "u1", "shape"),
        (b"4", "u1", "shape"),
        (True, "u1", "shape"),
        (2.0, "u1", "shape"),
        ((2, 2.0), "u1", "shape"),
        (None, "u1", "shape"),
        (2**60, "u8", "size"),
        (4, "O", "dtype"),
        (4, [("x", "u1"), ("y", "O")], "dtype"),
        (4, np.dtypes.StringDType(), "dtype"),
        (4, ("i4", (2,)), "dtype"),
        (4, "S0", "dtype"),
        (4, None, "dtype"),
        (4, "nonsense", "dtype"),
        (4, object(), "dtype"),
    ],
)
async def test_what_memory_cannot_hold_is_refused(shape: Any, dtype: Any, field: str) -> None:
    async with allocator() as kmem:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            arrays.cache(kmem, "c", shape, dtype)
        kmem.create_cache("c", SIZE)  # nothing of that name was made


async def test_options_are_those_of_a_cache_with_a_ctor() -> None:
    async with allocator() as kmem:
        for option in ("movable", "merge", "init_on_alloc", "init_on_free"):
            options: dict[str, Any] = {option: True}
            with pytest.raises(ConfigError, match=option):
                arrays.cache(kmem, "c", 4, "u1", **options)
        with pytest.raises(ConfigError, match=r"^align: 8 .* at least 16, the alignment of"):
            arrays.cache(kmem, "c", 4, np.dtype("longdouble"), align=8)
        assert arrays.cache(kmem, "c", 4, "f8", align=8, max_objects=8).name == "c"


# -- arrays.array


@pytest.mark.parametrize("options", [{}, {"movable": True}, {"init_on_free": True}, {"merge": True}], ids=str)
async def test_array_of_a_buffer_is_its_memory_and_keeps_it(options: dict[str, Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, **options)
        buf = await cache.alloc()
        whole = arrays.array(buf)
        assert (whole.shape, str(whole.dtype), whole.ctypes.data) == ((SIZE,), "uint8", buf.address)
        frame = arrays.array(buf, np.float32, (3, 4))
        assert (frame.shape, frame.flags.c_contiguous, frame.flags.writeable) == ((3, 4), True, True)
        frame[:] = 1
        assert whole[:48].tobytes() == frame.tobytes()
        part = frame[1:, ::2]
        del whole, frame
        for _ in range(2):
            with pytest.raises(BufferError, match="array"):
                buf.free()
        del part
        buf.free()
        assert (cache.stats().obj_held, cache.stats().obj_lingering) == (0, 0)
        check_consistency(cache)
        with pytest.raises(BufferFreedError, match="'c'"):
            arrays.array(buf)


async def test_movable_buffer_stays_while_the_array_lives_and_no_longer() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, movable=True, objects_per_slab=8)
        bufs = [await cache.alloc() for _ in range(9)]
        found = arrays.array(bufs[8], np.float32)
        found[:] = 2.5
        for buf in bufs[:4]:
            buf.free()
        await cache.defragment()
        assert cache.stats().move_yes == 0
        del found
        await cache.defragment()
        assert cache.stats().move_yes == 1
        assert arrays.array(bufs[8], np.float32)[-1] == 2.5
        for buf in bufs[4:]:
            buf.free()


async def test_array_has_to_fit_the_buffer() -> None:
    async with allocator() as kmem:
        async with kmem.create_cache("c", 100, align=8).lease() as buf:
            assert arrays.array(buf, "u4").shape == (25,)
            assert arrays.array(buf, "u4", (5, 5)).nbytes == 100
            assert arrays.array(buf, "u4", ()).nbytes == 4
            for dtype, shape, field in (
                ("f8", None, "dtype"),  # 100 bytes are 12 and a half
                ("f8", 13, "shape"),
                ("u4", (2, 13), "shape"),
                ("u4", -1, "shape"),
                ("O", None, "dtype"),
            ):
                with pytest.raises(ConfigError, match=f"^{field}: "):
                    arrays.array(buf, dtype, shape)
        cache = kmem.create_cache("odd", 16 * 7 + 8, align=8)
        bufs = [await cache.alloc() for _ in range(2)]
        odd = next(buf for buf in bufs if buf.address % 16)
        with pytest.raises(ConfigError, match=r"^dtype: .* aligned to 16 bytes"):
            arrays.array(odd, "longdouble", 1)
        for buf in bufs:
            buf.free()


async def test_memory_of_closed_allocator_lives_while_the_array_does() -> None:
    slabs = Instant()
    with pytest.warns(ResourceWarning, match="still held"):
        async with aslab.open_allocator(slabs=slabs) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
            found = arrays.array(buf)
    found[:] = 1
    with pytest.raises(BufferError, match="array"):
        buf.free()
    del found
    buf.free()


# -- the extra


def test_without_numpy_it_names_the_extra_and_the_rest_works() -> None:
    script = (
        "import sys; sys.modules['numpy'] = None; import aslab\ntry: import aslab.arrays\n"
        "except ModuleNotFoundError as exc: print(exc)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        done.stdout == "aslab.arrays needs the extra 'arrays': run pip install '.[arrays]' in a clone of aslab\n"
    )
