"""Checks that a backend keeps its contract: for aslab's own backends and wrappers, and for yours."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import pairwise

import anyio
import anyio.lowlevel

from .._flags import GFP
from ..backends import Backend, Region
from ..backends._protocol import batching, streaming

SIZES = (1, 64, 4096, 100_000, 2**20)
ALIGNMENTS = (8, 64, 4096)
TRIES = 1000


async def check_backend(factory: Callable[[], Backend]) -> None:
    """Check that the backends made by ``factory`` keep the contract of `aslab.backends.Backend`.

    It checks sizes and alignment; that address and memory match; that regions are writable and never overlap,
    whether acquired in turn, concurrently, by `acquire_many` or `acquire_each`; `acquire_nowait`; cancellation of
    `acquire`; release in any order, and use afterwards. A backend may refuse with MemoryError, but not always.

    Suspends. Uses a few MiB of memory. Run it on each event loop that the backend supports.

    :param factory: called without arguments for each of the checks; returns a new backend
    :raises AssertionError: naming the rule that is broken
    """
    await _check_sizes(factory())
    await _check_many(factory())
    await _check_batch(factory())
    await _check_stream(factory())
    await _check_nowait(factory())
    await _check_cancellation(factory())


async def _check_sizes(backend: Backend) -> None:
    _require(callable(getattr(backend, "acquire_nowait", None)), "a backend must have acquire_nowait")
    for nbytes in SIZES:
        for align in ALIGNMENTS:
            for gfp in (GFP.KERNEL, GFP.NOIO | GFP.HIGH, GFP.NOWAIT | GFP.MEMALLOC):
                region = await _acquire(backend, nbytes, align, gfp)
                _check_region(region, nbytes, align)
                await backend.release(region)


async def _check_many(backend: Backend) -> None:
    regions: list[Region] = []

    async def acquire_one() -> None:
        regions.append(await _acquire(backend, 4096, 64, GFP.KERNEL))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(acquire_one)
    for _ in range(8):
        await acquire_one()
    _check_apart(regions)
    for region in regions[::2]:
        await backend.release(region)
    _check_contents(regions, range(1, len(regions), 2))
    for region in regions[1::2]:
        await backend.release(region)


async def _check_batch(backend: Backend) -> None:
    several = batching(backend)
    if several is None:
        return
    for count in (1, 4):
        for within in (0.0, 60.0):
            try:
                regions = await several.acquire_many(count, 4096, 64, GFP.KERNEL, within)
            except MemoryError:
                continue
            _require(0 < len(regions) <= count, f"acquire_many of {count} must return 1 to {count} regions")
            for region in regions:
                _check_region(region, 4096, 64)
            _check_apart(regions)
            for region in regions:
                await backend.release(region)


async def _check_stream(backend: Backend) -> None:
    stream = streaming(backend)
    if stream is None:
        return
    for count in (1, 4):
        regions: list[Region] = []

        def deliver(region: Region, regions: list[Region] = regions, count: int = count) -> bool:
            regions.append(region)
            return len(regions) < count

        failed = False
        try:
            await stream.acquire_each(4096, 64, GFP.KERNEL, deliver)
        except MemoryError:
            failed = True
        _require(failed or len(regions) == count, f"acquire_each passed on {len(regions)} regions, not {count}")
        for region in regions:
            _check_region(region, 4096, 64)
        _check_apart(regions)
        for region in regions:
            await backend.release(region)


async def _check_nowait(backend: Backend) -> None:
    for _ in range(8):
        try:
            region = backend.acquire_nowait(4096, 64, GFP.NOWAIT)
        except (MemoryError, anyio.WouldBlock):
            continue
        _check_region(region, 4096, 64)
        await backend.release(region)


async def _check_cancellation(backend: Backend) -> None:
    for turn in range(40):  # several times each: on trio, which of two tasks runs first is random
        checkpoints = turn % 4
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_after, checkpoints, scope)
                try:
                    region = await backend.acquire(4096, 64, GFP.KERNEL)
                except MemoryError:
                    continue
                with anyio.CancelScope(shield=True):
                    await backend.release(region)
    region = await _acquire(backend, 4096, 64, GFP.KERNEL)
    _check_region(region, 4096, 64)
    await backend.release(region)


async def _cancel_after(checkpoints: int, scope: anyio.CancelScope) -> None:
    for _ in range(checkpoints):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


async def _acquire(backend: Backend, nbytes: int, align: int, gfp: GFP) -> Region:
    for _ in range(TRIES):
        try:
            return await backend.acquire(nbytes, align, gfp)
        except MemoryError:
            continue
    raise AssertionError(f"{backend!r} refused {nbytes} bytes {TRIES} times")


def _check_region(region: object, nbytes: int, align: int) -> None:
    _require(isinstance(region, Region), f"acquire must return a Region, not {region!r}")
    assert isinstance(region, Region)  # for the type checker
    memory = region.memory
    _require(
        isinstance(memory, memoryview), f"a region's memory must be a memoryview, not {type(memory).__name__}"
    )
    _require(not memory.readonly, "a region's memory must be writable")
    _require(
        memory.c_contiguous and memory.format == "B" and memory.ndim == 1,
        "a region's memory must be contiguous and flat, of format B",
    )
    _require(memory.nbytes >= nbytes, f"{nbytes} bytes were requested, but {memory.nbytes} returned")
    _require(region.address % align == 0, f"the address {region.address:#x} must be a multiple of {align}")
    memory[0], memory[nbytes - 1] = 171, 205
    seen = ctypes.string_at(region.address, nbytes)
    _require(seen[nbytes - 1] == 205 and (nbytes == 1 or seen[0] == 171), "address must be where the memory is")


def _check_apart(regions: list[Region]) -> None:
    spans = sorted((region.address, region.address + 4096) for region in regions)
    for (_, end), (start, _) in pairwise(spans):
        _require(end <= start, "regions must not overlap")
    for number, region in enumerate(regions):
        region.memory[:4096] = bytes([number]) * 4096
    _check_contents(regions, range(len(regions)))


def _check_contents(regions: list[Region], numbers: range) -> None:
    for number in numbers:
        same = bytes(regions[number].memory[:4096]) == bytes([number]) * 4096
        _require(same, "a region must keep its contents while others come and go")


def _require(truth: bool, rule: str) -> None:
    if not truth:
        raise AssertionError(f"broken: {rule}")
