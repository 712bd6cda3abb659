"""The historical caches of SPL, for comparison: what they do when there is no free object.

    in the caller     the caller itself makes a slab, by vmalloc (before the change of 2012)
    by the worker     one work queue makes slabs; callers wait for a tick, then take an emergency object (2012)
    and with a mark   the first caller to wait in vain marks the cache DEADLOCKED; then others do not wait (later)

Free objects are kept in a magazine; there is one, since there is one processor. An alloc takes the newest
object from it, and a free puts one back. When empty it is refilled by half its size from the slabs; when full
it returns its oldest half. There are no limits and no ageing: magazines age after 15 s, when the story is over.

aslab itself is the last machine of the story, and is used through its public API.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import anyio

from ..._flags import GFP
from ...backends import Backend, Region
from .._simulation._waits import WaitGraph
from ._index import INDEXES, Index


def magazine_for(size: int) -> int:
    """The magazine size of SPL for objects of 4 KiB and more (spl_magazine_size)."""
    return 4 if size >= 2**20 else 16 if size >= 2**17 else 64


@dataclass(frozen=True, slots=True)
class Growth:
    """How a cache grows, which is what the machines of the story differ in."""

    by: Literal["caller", "worker"]
    """Which task makes slabs."""
    patience: float | None = None
    """Seconds that a caller waits for the worker; None if there is no emergency path."""
    mark: bool = False
    """Whether callers take an emergency object at once, after one has waited in vain."""
    index: Literal["list", "tree"] = "list"
    """How emergency objects are looked up when freed."""
    noio: bool = False
    """Whether emergency objects are always allocated without I/O, as the description of the change says. Its code,
    and that of later versions, uses the caller's flags (spl_emergency_alloc)."""
    high: bool = True
    """Whether slabs may use the memory reserve when their callers may."""
    looks_again: bool = False
    """Whether a caller that has waited first checks the magazine, which others may have filled. In 2012 it went on
    filling it, and so waited for one slab after another (spl_cache_refill)."""


@dataclass(frozen=True, slots=True)
class SplObject:
    """One allocation: its slab, or its own region."""

    region: Region
    emergency: bool


class SplQueue:
    """The work queue that makes slabs for all caches, one after another."""

    def __init__(self, waits: WaitGraph) -> None:
        self.waits = waits
        self._jobs: deque[Callable[[], Awaitable[None]]] = deque()
        self._more = anyio.Event()

    def put(self, job: Callable[[], Awaitable[None]]) -> None:
        """Queue a job."""
        self._jobs.append(job)
        self._more.set()

    async def run(self) -> None:
        """Work until cancelled."""
        self.waits.be("growth worker")
        while True:
            await self._more.wait()
            self._more = anyio.Event()
            while self._jobs:
                await self._jobs.popleft()()


class SplCache:
    """Objects of one size. For one event loop.

    :param objects: objects per slab
    :param retry: seconds until a caller that may not fail retries
    :param reserve: `shrink` keeps slabs for at least this many objects, free or not
    """

    def __init__(
        self,
        name: str,
        size: int,
        growth: Growth,
        *,
        slabs: Backend,
        emergency: Backend,
        queue: SplQueue,
        gfp: GFP = GFP.NOIO | GFP.HIGH,
        magazine: int | None = None,
        objects: int = 8,
        retry: float = 0.01,
        reserve: int = 0,
    ) -> None:
        self.name = name
        self.emergency: int = 0
        """Emergency objects outstanding."""
        self.emergency_max: int = 0
        self.deadlocks: int = 0
        """Times the mark was set, or, without one, a caller waited in vain."""
        self.longest_wait: float = 0.0
        """Seconds."""
        self.failures: int = 0
        """Requests for memory that failed and were retried."""
        self._size = size
        self._growth = growth
        self._gfp = gfp
        self._slabs = slabs
        self._single = emergency
        self._queue = queue
        self._waits = queue.waits
        self._objects = objects
        self._retry = retry
        self._reserve = reserve
        self._slabs_free: dict[Region, int] = {}  # free objects by slab, not counting those in the magazine
        self._free = 0
        self._magazine: deque[Region] = deque()  # the slab of each object, oldest first
        self._magazine_size = magazine_for(size) if magazine is None else magazine
        self._batch = -(-self._magazine_size // 2)
        self._index: Index[Region] = INDEXES[growth.index]()
        self._growing = False
        self._deadlocked = False
        self._grown = anyio.Event()

    async def alloc(self, gfp: GFP | None = None) -> SplObject:
        """Allocate an object. Suspends until there is one.

        :param gfp: flags instead of the cache's. They apply to everything this caller requests: a slab that it
            makes, or is the first to ask the worker for, and its emergency object (spl_emergency_alloc)
        """
        gfp = self._gfp if gfp is None else gfp
        began = anyio.current_time()
        try:
            with self._waits.on(f"cache {self.name}"):
                while not self._magazine:
                    if (single := await self._refill(gfp)) is not None:
                        return single
                return SplObject(self._magazine.pop(), emergency=False)
        finally:
            self.longest_wait = max(self.longest_wait, anyio.current_time() - began)

    async def free(self, obj: SplObject) -> None:
        """Free an object. Suspends for an emergency object."""
        if not obj.emergency:
            if len(self._magazine) >= self._magazine_size:
                self._flush(self._batch)
            self._magazine.append(obj.region)
            return
        self.emergency -= 1
        await self._single.release(self._index.remove(obj.region.address))

    async def prefill(self, objects: int) -> None:
        """Make slabs until that many objects are free."""
        while self._free < objects:
            await self._make_slab(self._gfp)

    async def shrink(self) -> bool:
        """Empty the magazine, and release slabs without objects in use, except those of the reserve.

        :return: whether there were any
        """
        self._flush(len(self._magazine))
        spare = len(self._slabs_free) - -(-self._reserve // self._objects)
        empty = [region for region, free in self._slabs_free.items() if free == self._objects][: max(0, spare)]
        for region in empty:
            del self._slabs_free[region]
            self._free -= self._objects
        for region in empty:
            await self._slabs.release(region)
        return bool(empty)

    async def _refill(self, gfp: GFP) -> SplObject | None:
        """Refill the magazine with a batch of objects, making slabs as needed.

        As in SPL's spl_cache_refill, a caller that has found an object still waits for the rest of the batch.
        Ends early with an emergency object, or with None if the caller should check the magazine again.
        """
        wanted = self._batch
        while (wanted := min(wanted, self._magazine_size - len(self._magazine))) > 0:
            if self._free:
                self._magazine.append(self._take())
                wanted -= 1
            elif self._growth.by == "caller":
                await self._make_slab(gfp)
            elif not await self._grown_in_time(gfp):
                return await self._take_emergency(gfp)
            elif self._growth.looks_again:
                break
        return None

    async def _grown_in_time(self, gfp: GFP) -> bool:
        """Have the worker make a slab, and wait for it. Returns False if that takes too long."""
        if not self._growing:
            self._growing = True
            self._queue.put(partial(self._grow, gfp))
        if self._growth.mark and self._deadlocked:
            return False
        with self._waits.on("growth worker"), anyio.move_on_after(self._growth.patience) as patience:
            await self._grown.wait()
        return not patience.cancelled_caught

    async def _take_emergency(self, gfp: GFP) -> SplObject | None:
        """Make an emergency object; None if an object is free by now, or there is no memory."""
        if self._free or (self._growth.looks_again and self._magazine):
            return None
        if self._growing and not self._deadlocked:
            self.deadlocks += 1
            self._deadlocked = self._growth.mark
        try:
            with self._waits.on("kmalloc"):
                flags = GFP.NOIO | gfp & GFP.HIGH if self._growth.noio else gfp
                region = await self._single.acquire(self._size, 8, flags)
        except MemoryError:
            self.failures += 1
            await anyio.sleep(self._retry)
            return None
        self._index.add(region.address, region)
        self.emergency += 1
        self.emergency_max = max(self.emergency_max, self.emergency)
        return SplObject(region, emergency=True)

    def _take(self) -> Region:
        """Take an object of the fullest slab, so that others become empty."""
        usable = (region for region, free in self._slabs_free.items() if free)
        region = min(usable, key=self._slabs_free.__getitem__)
        self._slabs_free[region] -= 1
        self._free -= 1
        return region

    def _flush(self, objects: int) -> None:
        """Return the oldest objects in the magazine to their slabs."""
        for _ in range(objects):
            self._slabs_free[self._magazine.popleft()] += 1
            self._free += 1

    async def _grow(self, gfp: GFP) -> None:
        await self._make_slab(gfp if self._growth.high else gfp & ~GFP.HIGH)
        self._growing = self._deadlocked = False
        grown, self._grown = self._grown, anyio.Event()
        grown.set()

    async def _make_slab(self, gfp: GFP) -> None:
        """Try once; pause if it fails."""
        try:
            region = await self._slabs.acquire(self._size * self._objects, 8, gfp)
        except MemoryError:
            self.failures += 1
            await anyio.sleep(self._retry)
        else:
            self._slabs_free[region] = self._objects
            self._free += self._objects
