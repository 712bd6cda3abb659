"""The caches of SPL as they were, to compare with: what happens when there is no free object.

    in the caller     the caller itself makes a slab, by vmalloc (before the change of 2012)
    by the worker     one work queue makes slabs; callers wait for a tick, then take an emergency object (2012)
    and with a mark   the first that waited in vain marks the cache DEADLOCKED, and others wait no more (later)

The rest is as small as can be: no magazines, no limits. aslab itself is the last machine of the story, and
is used through its public API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import anyio

from .._flags import GFP
from ..backends import Backend, Region
from ._index import INDEXES, Index
from ._waits import WaitGraph


@dataclass(frozen=True, slots=True)
class Growth:
    """How a cache grows: the mechanism that the machines of the story differ in."""

    by: Literal["caller", "worker"]
    """Whose task makes the slab."""
    patience: float | None = None
    """Seconds that a caller waits for the worker; None where there is no emergency path."""
    mark: bool = False
    """Whether callers take an emergency object at once after one has waited in vain."""
    index: Literal["list", "tree"] = "list"
    """Where emergency objects are looked up when they are freed."""


@dataclass(frozen=True, slots=True)
class SplObject:
    """One allocation: its slab, or a region of its own."""

    region: Region
    emergency: bool


class SplQueue:
    """The work queue that makes slabs, one after the other, for all caches."""

    def __init__(self, waits: WaitGraph) -> None:
        self._waits = waits
        self._jobs: deque[Callable[[], Awaitable[None]]] = deque()
        self._more = anyio.Event()

    def put(self, job: Callable[[], Awaitable[None]]) -> None:
        """Have it done, some time."""
        self._jobs.append(job)
        self._more.set()

    async def run(self) -> None:
        """Work until cancelled."""
        self._waits.be("growth worker")
        while True:
            await self._more.wait()
            self._more = anyio.Event()
            while self._jobs:
                await self._jobs.popleft()()


class SplCache:
    """Objects of one size. For one event loop.

    :param objects: of a slab
    :param retry: seconds until a caller that may not fail tries again
    :param reserve: objects, free or not, below which `shrink` takes no slab back
    """

    def __init__(
        self,
        name: str,
        size: int,
        growth: Growth,
        gfp: GFP,
        *,
        slabs: Backend,
        emergency: Backend,
        queue: SplQueue,
        waits: WaitGraph,
        objects: int = 8,
        retry: float = 0.01,
        reserve: int = 0,
    ) -> None:
        self.name = name
        self.emergency: int = 0
        """Emergency objects outstanding."""
        self.emergency_max: int = 0
        self.deadlocks: int = 0
        """Times that the mark was set, or, without one, that a caller waited in vain."""
        self.longest_wait: float = 0.0
        """Seconds."""
        self.failures: int = 0
        """Requests for memory that failed, and were tried again."""
        self._size = size
        self._growth = growth
        self._gfp = gfp
        self._slabs = slabs
        self._single = emergency
        self._queue = queue
        self._waits = waits
        self._objects = objects
        self._retry = retry
        self._reserve = reserve
        self._slabs_free: dict[Region, int] = {}  # free objects by slab
        self._free = 0
        self._index: Index[Region] = INDEXES[growth.index]()
        self._growing = False
        self._deadlocked = False
        self._grown = anyio.Event()

    async def alloc(self) -> SplObject:
        """An object. Suspends until there is one."""
        began = anyio.current_time()
        try:
            with self._waits.on(f"cache {self.name}"):
                return await (self._alloc_by_caller() if self._growth.by == "caller" else self._alloc_by_worker())
        finally:
            self.longest_wait = max(self.longest_wait, anyio.current_time() - began)

    async def free(self, obj: SplObject) -> None:
        """Give one back. Suspends for an emergency object."""
        if not obj.emergency:
            self._slabs_free[obj.region] += 1
            self._free += 1
            return
        self.emergency -= 1
        await self._single.release(self._index.remove(obj.region.address))

    async def prefill(self, objects: int) -> None:
        """Make slabs until so many objects are free."""
        while self._free < objects:
            await self._make_slab()

    async def shrink(self) -> bool:
        """Release the slabs without an object in use, but those of the reserve; whether there were any."""
        spare = len(self._slabs_free) - -(-self._reserve // self._objects)
        empty = [region for region, free in self._slabs_free.items() if free == self._objects][: max(0, spare)]
        for region in empty:
            del self._slabs_free[region]
            self._free -= self._objects
        for region in empty:
            await self._slabs.release(region)
        return bool(empty)

    async def _alloc_by_caller(self) -> SplObject:
        while not self._free:
            await self._make_slab()
        return self._take()

    async def _alloc_by_worker(self) -> SplObject:
        while not self._free:
            if not self._growing:
                self._growing = True
                self._queue.put(self._grow)
            if not (self._growth.mark and self._deadlocked):
                with self._waits.on("growth worker"), anyio.move_on_after(self._growth.patience):
                    await self._grown.wait()
                if self._free > 0:
                    break
                if self._growth.patience is None:
                    continue  # the grow failed
                if self._growing and not self._deadlocked:
                    self.deadlocks += 1
                    self._deadlocked = self._growth.mark
            try:
                with self._waits.on("kmalloc"):
                    region = await self._single.acquire(self._size, 8, self._gfp)
            except MemoryError:
                self.failures += 1
                await anyio.sleep(self._retry)
                continue
            self._index.add(region.address, region)
            self.emergency += 1
            self.emergency_max = max(self.emergency_max, self.emergency)
            return SplObject(region, emergency=True)
        return self._take()

    def _take(self) -> SplObject:
        """From the fullest slab, so that others become empty."""
        usable = (region for region, free in self._slabs_free.items() if free)
        region = min(usable, key=self._slabs_free.__getitem__)
        self._slabs_free[region] -= 1
        self._free -= 1
        return SplObject(region, emergency=False)

    async def _grow(self) -> None:
        await self._make_slab()
        self._growing = self._deadlocked = False
        grown, self._grown = self._grown, anyio.Event()
        grown.set()

    async def _make_slab(self) -> None:
        """One try; where it fails, a pause."""
        try:
            region = await self._slabs.acquire(self._size * self._objects, 8, self._gfp)
        except MemoryError:
            self.failures += 1
            await anyio.sleep(self._retry)
        else:
            self._slabs_free[region] = self._objects
            self._free += self._objects
