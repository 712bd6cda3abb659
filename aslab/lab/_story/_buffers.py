"""The caches of a machine as ZFS uses them: SPL's or aslab's, over vmalloc."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.abc import TaskGroup

from ... import GFP, KM, Buffer, Cache
from ...backends import Backend, Region
from .._simulation._waits import WaitGraph
from ._computer import Computer
from ._machines import Aslab
from ._spl import SplCache, SplObject


class Traced:
    """Vmalloc as a node in the wait graph."""

    def __init__(self, backend: Backend, waits: WaitGraph, worker: str | None, *, high: bool = False) -> None:
        self.backend = backend
        self._waits = waits
        self._worker = worker
        self._high = high  # requests that must not start I/O may use part of the reserve

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask vmalloc, with the wait recorded."""
        if self._worker is not None:
            self._waits.be(self._worker)
        if self._high and GFP.IO not in gfp:
            gfp |= GFP.HIGH
        with self._waits.on("vmalloc"):
            return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask vmalloc."""
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Release to vmalloc."""
        await self.backend.release(region)


def caches_of(computer: Computer) -> tuple[str, str]:
    """The names of ZFS' two caches: for data, and for the pipeline."""
    return f"zio_data_buf_{computer.block}", f"zio_buf_{computer.block}"


class SplBuffers:
    """An SPL cache, as ZFS uses it."""

    def __init__(self, cache: SplCache, tasks: TaskGroup) -> None:
        self.cache = cache
        self._tasks = tasks

    async def alloc(self, *, finishes: bool, converted: bool = True) -> SplObject:
        """Allocate the same way for all: SPL cannot be told whether a buffer finishes a write."""
        return await self.cache.alloc(None if converted else GFP.KERNEL)

    def free(self, buffer: SplObject) -> None:
        """Free a buffer in a task of its own, since that may suspend."""
        self._tasks.start_soon(self.cache.free, buffer)


class AslabBuffers:
    """An aslab cache, as ZFS uses it."""

    def __init__(self, cache: Cache[Any], aslab: Aslab, waits: WaitGraph) -> None:
        self.cache = cache
        self.longest_wait: float = 0.0
        self._aslab = aslab
        self._waits = waits
        self._out: dict[Buffer[Any], None] = {}

    async def alloc(self, *, finishes: bool, converted: bool = True) -> Buffer[Any]:
        """Allocate with the flags that the machine has for it."""
        flags = (self._aslab.finishes if finishes else self._aslab.starts) if converted else KM.SLEEP
        began = anyio.current_time()
        try:
            with self._waits.on(f"cache {self.cache.name}", "growth worker"):
                buffer = await self.cache.alloc(flags)
        finally:
            self.longest_wait = max(self.longest_wait, anyio.current_time() - began)
        self._out[buffer] = None
        return buffer

    def free(self, buffer: Buffer[Any]) -> None:
        """Free a buffer."""
        del self._out[buffer]
        buffer.free()

    def free_all(self) -> None:
        """Free what is still allocated when the run is cut off."""
        for buffer in tuple(self._out):
            self.free(buffer)
