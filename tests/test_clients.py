"""What a client's code raises ends where it was called: the tasks that serve every cache go on."""

from __future__ import annotations

import _thread
import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, KMEM_CBRC, BackendError, Buffer, ConstructorError
from aslab.backends import Region
from aslab.pressure import Signal
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, allocator, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Ends(BaseException):
    """What `except Exception` does not catch."""


RAISED = [ValueError, asyncio.CancelledError, SystemExit, Ends]
each_kind = pytest.mark.parametrize("kind", RAISED)


async def all_is_well(kmem: aslab.Allocator) -> None:
    """Growing, freeing, ageing and reaping still go on."""
    cache = kmem.create_cache("afterwards", SIZE)
    with anyio.fail_after(60):
        async with cache.lease():
            pass
        await kmem.reap()
        assert cache.stats().slab_total == 0
        await anyio.sleep(20)
    for one in kmem.caches:
        check_consistency(one)


@each_kind
async def test_reclaim_callback(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def reclaim(n: int) -> int:
        raise kind

    signal = Signal()
    async with allocator(pressure=[signal]) as kmem:
        cache = kmem.create_cache("c", SIZE, reclaim=reclaim)
        buf = await cache.alloc()
        assert await kmem.reap() == 0, "it is not passed on"
        signal.press()
        await anyio.sleep(1)
        assert any("'c'" in text and "reclaim callback" in text for text in caplog.messages)
        await all_is_well(kmem)
        buf.free()


@each_kind
async def test_dtor(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def dtor(obj: int) -> None:
        raise kind

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=len, dtor=dtor)
        (await cache.alloc()).free()
        assert await cache.reap() == 8 * SIZE
        assert sum("'c'" in text and "dtor" in text for text in caplog.messages) == 8
        await all_is_well(kmem)


@each_kind
async def test_move_callback(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def move(old: Buffer[Any], new: Buffer[Any], size: int) -> KMEM_CBRC:
        raise kind

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=2)
        cache.set_move(move)
        held = [await cache.alloc() for _ in range(4)]
        for buf in held[::2]:
            buf.free()
        await cache.defragment()
        assert cache.stats().move_no >= 1
        assert any("'c'" in text and "move callback" in text for text in caplog.messages)
        await all_is_well(kmem)
        for buf in held[1::2]:
            buf.free()


@each_kind
async def test_ctor(kind: type[BaseException]) -> None:
    bad = [True]

    def ctor(memory: memoryview) -> int:
        if bad[0]:
            raise kind
        return len(memory)

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, ctor=ctor)
        with pytest.raises(ConstructorError):
            await cache.alloc()
        bad[0] = False
        async with cache.lease() as buf:
            assert buf.obj == SIZE
        await all_is_well(kmem)


@each_kind
async def test_pressure_source(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    class Source:
        async def run(self, on_pressure: Callable[[int | None], object]) -> None:
            raise kind

        def __repr__(self) -> str:
            return "<Source>"

    async with allocator(pressure=[Source()]) as kmem:
        await settle()
        assert caplog.messages == ["<Source> failed; the allocator goes on without it"]
        await all_is_well(kmem)


@each_kind
async def test_backend(kind: type[BaseException]) -> None:
    class Broken(Instant):
        bad = ""

        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            if self.bad == "acquire":
                raise kind
            return await super().acquire(nbytes, align, gfp)

        async def release(self, region: Region) -> None:
            await super().release(region)
            if self.bad == "release":
                raise kind

    slabs = Broken()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE)
        slabs.bad = "acquire"
        with pytest.raises(BackendError):
            await cache.alloc()
        slabs.bad = "release"
        async with cache.lease():
            pass
        with anyio.fail_after(1):
            assert await cache.reap() == 8 * SIZE
        slabs.bad = ""
        await all_is_well(kmem)


@each_kind
async def test_backend_of_emergency_objects(kind: type[BaseException]) -> None:
    class Broken(Instant):
        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            raise kind

    gate = Gate()
    async with allocator(slabs=gate, emergency=Broken(), kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE)
        with pytest.raises(BackendError):
            await cache.alloc()
        gate.open()
        await all_is_well(kmem)


async def test_ctrl_c_in_a_callback_comes_again_outside_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted: list[str] = []
    monkeypatch.setattr(_thread, "interrupt_main", lambda: interrupted.append("again"))

    def interrupt(*_: object) -> Any:
        raise KeyboardInterrupt

    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, reclaim=interrupt)
        buf = await cache.alloc()
        await kmem.reap()
        assert interrupted == ["again"]
        constructing = kmem.create_cache("d", SIZE, ctor=interrupt)
        with pytest.raises(ConstructorError):
            await constructing.alloc()
        assert interrupted == ["again"] * 2
        await all_is_well(kmem)
        buf.free()
    assert all(record.levelno < logging.CRITICAL for record in caplog.records)
