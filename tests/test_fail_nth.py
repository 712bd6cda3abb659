"""Every backend call of a busy scenario fails in turn: n = 1, 2, ... until none is left to fail."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, KM, Buffer
from aslab.backends import Region
from aslab.faults import Failslab
from aslab.testing import check_consistency

from .support import SIZE, Instant, allocator

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class FailsRelease(Instant):
    """The n-th release raises, after the memory is back. Acquires take their time, so that some are late."""

    def __init__(self, nth: int = 0) -> None:
        super().__init__()
        self.nth = nth

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        await anyio.sleep(0.15 if len(self.asked) % 3 == 2 else 0.01)
        return await super().acquire(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        await super().release(region)
        self.nth -= 1
        if self.nth == 0:
            raise OSError("release failed")


async def busy(slabs: aslab.backends.Backend, emergency: aslab.backends.Backend) -> None:
    """Two caches under one limit, every way of allocating, reaping and ageing meanwhile."""
    draw = random.Random(7)
    options = {"limit": 40 * SIZE, "expire": 0.3, "kick_after": 0.1}
    async with allocator(slabs=slabs, emergency=emergency, **options) as kmem, anyio.create_task_group() as tasks:
        caches = [
            kmem.create_cache("one", SIZE, objects_per_slab=4, magazine_size=2, watermark=1),
            kmem.create_cache("two", SIZE, objects_per_slab=2, magazine_size=2, max_emergency=3),
        ]
        held = 0

        async def caller(number: int) -> None:
            nonlocal held
            for turn in range(12):
                cache = caches[(number + turn) % 2]
                buf: Buffer[memoryview]
                if turn % 3 == 2:
                    try:
                        buf = cache.alloc_nowait()
                    except anyio.WouldBlock:
                        continue
                else:
                    buf = await cache.alloc(KM.PUSHPAGE if number % 4 == 0 else KM.SLEEP)
                held += 1
                assert sum(stats.obj_held for stats in kmem.stats().caches) == held
                await anyio.sleep(draw.random() * 0.05)
                buf.free()
                held -= 1

        async with anyio.create_task_group() as callers:
            for number in range(12):
                callers.start_soon(caller, number)
            for _ in range(8):
                await anyio.sleep(0.1)
                await kmem.reap()
        for cache in caches:
            check_consistency(cache)
            assert cache.stats().obj_held == 0
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("which", ["slabs", "emergency"])
async def test_each_acquire_fails_in_turn_without_a_hang_a_leak_or_a_lost_object(which: str) -> None:
    nth = failures = 0
    while True:
        nth += 1
        backends = {"slabs": FailsRelease(), "emergency": FailsRelease()}
        failing = Failslab(backends.pop(which), fail_nth=nth)
        with anyio.fail_after(60):
            await busy(**backends, **{which: failing})
        failures += failing.failures
        if not failing.failures:
            break
    assert failures == nth - 1
    assert nth > 5


@pytest.mark.parametrize("which", ["slabs", "emergency"])
async def test_each_release_fails_in_turn_without_a_hang_a_leak_or_a_lost_object(
    which: str, caplog: pytest.LogCaptureFixture
) -> None:
    nth = 0
    while True:
        nth += 1
        caplog.clear()
        backends = {"slabs": FailsRelease(), "emergency": FailsRelease()}
        backends[which].nth = nth
        with anyio.fail_after(60):
            await busy(**backends)
        if "failed to release" not in caplog.text:
            break
    assert nth > 5


async def test_each_acquire_breaks_the_contract_in_turn_and_only_who_waits_then_is_told() -> None:
    class Breaks(FailsRelease):
        def __init__(self, nth_acquire: int) -> None:
            super().__init__()
            self.left = nth_acquire

        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            region = await super().acquire(nbytes, align, gfp)
            self.left -= 1
            if self.left == 0:
                region.address += 1
            return region

    nth = 0
    while True:
        nth += 1
        slabs = Breaks(nth)
        told = 0
        async with allocator(slabs=slabs, grow_timeout=10) as kmem:
            cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
            for _ in range(6):
                held = []
                for _ in range(3):
                    try:
                        held.append(await cache.alloc())
                    except aslab.BackendError:
                        told += 1
                for buf in held:
                    buf.free()
                await cache.reap()
            check_consistency(cache)
        if slabs.left > 0:
            break
        assert told == 1
    assert nth > 6
