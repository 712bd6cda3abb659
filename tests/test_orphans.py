"""Regions that somebody holds on to go back later, also when nobody looks any more."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Any, cast

import anyio
import numpy as np
import pytest

import aslab
from aslab import ConstructorError
from aslab.backends import Callback
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant

pytestmark = pytest.mark.anyio
PATIENT: dict[str, Any] = {"grow_timeout": 3600, "kick_after": None}  # a grow that is late brings no other memory


class Segments:
    """The example of docs/backends.md, which leaves nothing behind."""

    def __init__(self) -> None:
        self.left: dict[int, SharedMemory] = {}
        self.made = 0
        self.backend = Callback(self.acquire, self.release)

    def acquire(self, nbytes: int, align: int, gfp: aslab.GFP) -> memoryview:
        self.made += 1
        segment = SharedMemory(create=True, size=nbytes)
        self.left[id(segment.buf)] = segment
        return cast("memoryview", segment.buf)

    def release(self, given: object) -> None:
        segment = self.left.pop(id(given))
        segment.close()
        segment.unlink()

    def gone(self, *, collect: bool = True) -> bool:
        """Whether they are, once the garbage collector has been at work; a thread may be about to do it."""
        end = time.monotonic() + 60
        while self.left and time.monotonic() < end:
            if collect:
                gc.collect()  # the object of the last export may be kept: that is looked at afterwards
            time.sleep(0.001)
        return not self.left


def raises_plainly(memory: memoryview) -> Any:
    raise ValueError(len(memory))


def raises_with_an_array_in_its_frames(memory: memoryview) -> Any:
    array = np.frombuffer(memory, np.uint8)
    try:
        raise KeyError(array[0])
    except KeyError as exc:
        raise ValueError(len(array)) from exc


def raises_late(memory: memoryview) -> Any:
    raises_late.calls = getattr(raises_late, "calls", 0) + 1  # type: ignore[attr-defined]
    if raises_late.calls % 3 == 0:  # type: ignore[attr-defined]
        raises_plainly(memory[4:])
    return np.frombuffer(memory, np.uint8)


def raises_what_is_the_cause_of_its_cause(memory: memoryview) -> Any:
    one, other = ValueError(len(memory)), KeyError()
    one.__cause__, other.__cause__ = other, one
    raise one


CTORS: list[Callable[[memoryview], Any]] = [
    raises_plainly,
    raises_with_an_array_in_its_frames,
    raises_late,
    raises_what_is_the_cause_of_its_cause,
]


@pytest.mark.parametrize("ctor", CTORS)
async def test_ctor_that_raises_leaves_no_region_behind(
    ctor: Callable[[memoryview], Any], anyio_backend: object, caplog: pytest.LogCaptureFixture
) -> None:
    segments = Segments()
    errors: list[ConstructorError] = []
    async with aslab.open_allocator(slabs=segments.backend, **PATIENT) as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=ctor)
        for _ in range(10):
            with pytest.raises(ConstructorError) as told:
                await cache.alloc()
            errors.append(told.value)  # whoever keeps it keeps no memory
    assert segments.made >= 10
    assert not segments.left
    assert all(isinstance(error.__cause__, ValueError) for error in errors)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_ctor_of_an_emergency_object_that_raises_leaves_no_region_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    segments, slabs = Segments(), Gate()
    errors: list[ConstructorError] = []
    async with aslab.open_allocator(
        slabs=slabs, emergency=segments.backend, grow_timeout=0, kick_after=None
    ) as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=raises_with_an_array_in_its_frames)
        for _ in range(10):
            with pytest.raises(ConstructorError) as told:
                await cache.alloc()
            errors.append(told.value)
        slabs.error = MemoryError()
        slabs.open()
    assert segments.made >= 10
    assert not segments.left
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_ctor_that_raises_leaves_the_frames_of_what_its_caller_handles_alone() -> None:
    def fails(word: str) -> None:
        raise KeyError(word)

    def ctor(memory: memoryview) -> None:
        raise ValueError(len(memory))

    async with aslab.open_allocator(slabs=Gate(), emergency=Instant(), grow_timeout=0, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=ctor)
        try:
            fails("here")
        except KeyError as exc:
            traceback = exc.__traceback__
            with pytest.raises(ConstructorError):
                cache.alloc_nowait()
        assert traceback is not None
        assert traceback.tb_next is not None
        assert traceback.tb_next.tb_frame.f_locals["word"] == "here"


HOLDERS: dict[str, Callable[[memoryview], Any]] = {
    "array": lambda view: np.frombuffer(view, np.uint8),
    "slice": lambda view: view[8:16],
    "array in a cycle": lambda view: _cycle(np.frombuffer(view, np.uint8)),
    "slice in a cycle": lambda view: _cycle(view[8:16]),
}


def _cycle(thing: object) -> list[object]:
    cycle = [thing]
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize("hold", list(HOLDERS))
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("emergency", [False, True])
async def test_region_of_a_forgotten_buffer_goes_back_when_its_export_does_after_closing(
    hold: str, when: str, emergency: bool, caplog: pytest.LogCaptureFixture
) -> None:
    segments, gate = Segments(), Gate()
    options: dict[str, Any] = {"slabs": segments.backend, **PATIENT}
    if emergency:
        options = {"slabs": gate, "emergency": segments.backend, "grow_timeout": 0, "kick_after": None}
    with pytest.warns(ResourceWarning):
        async with aslab.open_allocator(**options) as kmem:
            cache = kmem.create_cache("c", SIZE)
            buf = await cache.alloc()
            holder = HOLDERS[hold](buf.view)
            if when == "before":
                del buf
                check_consistency(cache)
            gate.error = MemoryError()
            gate.open()
    if when == "after":
        with pytest.warns(ResourceWarning, match="garbage-collected"):
            del buf
    assert len(segments.left) == 1
    gc.collect()
    assert len(segments.left) == 1
    del holder, kmem, cache
    if "cycle" in hold:
        gc.collect()
    assert segments.gone()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_export_that_a_finaliser_brings_back_after_closing_is_still_waited_for() -> None:
    kept: list[Any] = []

    class Resurrects:
        array: Any

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            kept.append(self.array)

    segments = Segments()
    with pytest.warns(ResourceWarning):
        async with aslab.open_allocator(slabs=segments.backend, **PATIENT) as kmem:
            cache = kmem.create_cache("c", SIZE)
            buf = await cache.alloc()
            holder = Resurrects()
            holder.array = buf.view[:8]
            del buf
    del holder
    gc.collect()
    assert kept
    await anyio.sleep(0.02)
    assert len(segments.left) == 1
    kept[0][:] = b"resurrec"
    kept.clear()
    assert segments.gone()


async def test_region_under_a_kept_slice_that_was_released_goes_back_after_closing() -> None:
    """Nobody tells of a slice, so it is looked for after each garbage collection."""
    segments = Segments()
    async with aslab.open_allocator(slabs=segments.backend, **PATIENT) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        with buf.view[:8] as part:
            pass
        buf.free()
    assert len(segments.left) == 1
    del part
    gc.collect()
    assert segments.gone()


async def test_what_a_collection_itself_frees_is_found_at_the_end_of_it() -> None:
    segments = Segments()
    async with aslab.open_allocator(slabs=segments.backend, **PATIENT) as kmem:
        cache = kmem.create_cache("c", SIZE)
        buf = await cache.alloc()
        with buf.view[:8] as part:
            pass
        buf.free()
    cycle = _cycle(part)
    gc.disable()
    try:
        del part, cycle
        assert len(segments.left) == 1
        gc.collect()
        assert segments.gone(collect=False)
    finally:
        gc.enable()
