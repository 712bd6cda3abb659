"""Backends and helpers for tests: memory that is real but comes at once, and can be held back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast
from unittest import mock

import anyio
import anyio.lowlevel

import aslab
from aslab import GFP, _config
from aslab._allocator import tasks_of
from aslab._checks import parse_size as parse_size
from aslab._fastpath import HAUNTED, Slot
from aslab._reach import self_contained
from aslab.backends import Backend, Region
from aslab.faults import Deadlock
from aslab.testing import check_consistency

SIZE = 4096


@self_contained()  # so buffers are of the types that most services have
class Instant:
    """Memory from bytearrays, at once and without a thread: for simulated time. Keeps the books."""

    def __init__(self) -> None:
        self.outstanding: set[int] = set()
        self.asked: list[tuple[int, GFP]] = []

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        await anyio.lowlevel.checkpoint()
        return self.acquire_nowait(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.asked.append((nbytes, gfp))
        region = Region.over(bytearray(nbytes + align), align=align)
        self.outstanding.add(id(region))
        region.token = region.memory
        return region

    async def release(self, region: Region) -> None:
        await anyio.lowlevel.checkpoint()
        self.outstanding.remove(id(region))


@self_contained()
class Gate(Instant):
    """Every acquire waits until the gate is open, or fails if it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = anyio.Event()
        self.waiting = 0
        self.error: Exception | None = None

    def open(self) -> None:
        self.opened.set()

    def shut(self) -> None:
        self.opened = anyio.Event()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.waiting += 1
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1
        if self.error is not None:
            raise self.error
        await anyio.lowlevel.checkpoint()
        return super().acquire_nowait(nbytes, align, gfp)  # also if it was shut just now

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        if self.error is not None:
            raise self.error
        if not self.opened.is_set():
            raise anyio.WouldBlock
        return super().acquire_nowait(nbytes, align, gfp)


@asynccontextmanager
async def allocator(**options: Any) -> AsyncIterator[aslab.Allocator]:
    """An allocator on instant memory, with 8 objects a slab by default; afterwards every region must be back."""
    slabs = options.setdefault("slabs", Instant())
    emergency = options.setdefault("emergency", Instant())
    options.setdefault("grow_timeout", 0.1)
    with mock.patch.object(_config, "MOST_OBJECTS", 8):
        async with aslab.open_allocator(**options) as kmem:
            yield kmem
            for cache in tasks_of(kmem).caches.values():
                check_consistency(cache)
            if isinstance(slabs, Gate):
                slabs.open()
            elif isinstance(slabs, Deadlock):
                slabs.let_go()
    for backend in (slabs, emergency):
        innermost = backend
        while hasattr(innermost, "backend"):
            innermost = innermost.backend
        if isinstance(innermost, Instant):
            assert innermost.outstanding <= lingering(), "regions that were never released"


def lingering() -> set[int]:
    """The regions that stay while the objects of views that have ended are alive: in a test's variables."""
    slots = [cast("Slot[Any]", place) for place in tuple(HAUNTED) if place.haunted()]
    return {id(cast("Any", slot.slab or slot).region) for slot in slots}


async def settle(rounds: int = 30) -> None:
    """Let every task that can run, run."""
    for _ in range(rounds):
        await anyio.lowlevel.checkpoint()


async def start(tasks: anyio.abc.TaskGroup, call: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
    """Start a task and let it run until it waits."""
    tasks.start_soon(call, *args)
    await settle()


class Meter:
    """Bytes that several backends have outstanding together, and the most they had."""

    def __init__(self) -> None:
        self.outstanding = 0
        self.highest = 0

    def note(self, nbytes: int) -> None:
        self.outstanding += nbytes
        self.highest = max(self.highest, self.outstanding)


class Metered:
    """Wraps a backend: what it has given counts until it has it back."""

    def __init__(self, backend: Backend, meter: Meter, *, release_takes: float = 0.0) -> None:
        self.backend = backend
        self.meter = meter
        self.release_takes = release_takes
        self.acquired = 0
        self._bytes: dict[int, int] = {}

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return self._note(await self.backend.acquire(nbytes, align, gfp), nbytes)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return self._note(self.backend.acquire_nowait(nbytes, align, gfp), nbytes)

    async def release(self, region: Region) -> None:
        if self.release_takes:
            await anyio.sleep(self.release_takes)
        nbytes = self._bytes.pop(id(region))
        await self.backend.release(region)
        self.meter.note(-nbytes)

    def _note(self, region: Region, nbytes: int) -> Region:
        self.acquired += 1
        self._bytes[id(region)] = nbytes
        self.meter.note(nbytes)
        return region
