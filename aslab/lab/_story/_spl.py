"""The caches of SPL as they were, to compare with: what happens when there is no free object.

    in the caller     the caller itself makes a slab, by vmalloc (before the change of 2012)
    by the worker     one work queue makes slabs; callers wait for a tick, then take an emergency object (2012)
    and with a mark   the first that waited in vain marks the cache DEADLOCKED, and others wait no more (later)

Free objects are kept in a magazine, one since there is one processor: an alloc takes the newest from it, a
free puts its object there. An empty one is refilled by half its size from the slabs, a full one gives back its
oldest half. No limits, and no ageing: a magazine ages after 15 s, and the story is over by then.

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
    """How many objects of so many bytes SPL keeps in a magazine (spl_magazine_size, for 4 KiB and more)."""
    return 4 if size >= 2**20 else 16 if size >= 2**17 else 64


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
    noio: bool = False
    """Whether emergency objects are asked for without IO whoever asks, as the text of the change says. Its code,
    and that of later versions, asks with the caller's flags (spl_emergency_alloc)."""
    high: bool = True
    """Whether slabs for callers that may use a part of the reserve may do so, too."""
    looks_again: bool = False
    """Whether a caller that has waited looks into the magazine first, which others may have filled. In 2012 it
    went on to fill it, and so waited for slab after slab (spl_cache_refill)."""


@dataclass(frozen=True, slots=True)
class SplObject:
    """One allocation: its slab, or a region of its own."""

    region: Region
    emergency: bool


class SplQueue:
    """The work queue that makes slabs, one after the other, for all caches."""

    def __init__(self, waits: WaitGraph) -> None:
        self.waits = waits
        self._jobs: deque[Callable[[], Awaitable[None]]] = deque()
        self._more = anyio.Event()

    def put(self, job: Callable[[], Awaitable[None]]) -> None:
        """Have it done, some time."""
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

    :param objects: of a slab
    :param retry: seconds until a caller that may not fail tries again
    :param reserve: objects, free or not, below which `shrink` takes no slab back
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
        self._waits = queue.waits
        self._objects = objects
        self._retry = retry
        self._reserve = reserve
        self._slabs_free: dict[Region, int] = {}  # free objects by slab, without those in the magazine
        self._free = 0
        self._magazine: deque[Region] = deque()  # the slabs of its objects, the oldest first
        self._magazine_size = magazine_for(size) if magazine is None else magazine
        self._batch = -(-self._magazine_size // 2)
        self._index: Index[Region] = INDEXES[growth.index]()
        self._growing = False
        self._deadlocked = False
        self._grown = anyio.Event()

    async def alloc(self, gfp: GFP | None = None) -> SplObject:
        """An object. Suspends until there is one.

        :param gfp: flags other than the cache's. They go with all that this caller asks for: a slab it makes,
            or has made as the first to ask for one, and its emergency object (spl_emergency_alloc)
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
        """Give one back. Suspends for an emergency object."""
        if not obj.emergency:
            if len(self._magazine) >= self._magazine_size:
                self._flush(self._batch)
            self._magazine.append(obj.region)
            return
        self.emergency -= 1
        await self._single.release(self._index.remove(obj.region.address))

    async def prefill(self, objects: int) -> None:
        """Make slabs until so many objects are free."""
        while self._free < objects:
            await self._make_slab(self._gfp)

    async def shrink(self) -> bool:
        """Empty the magazine, and release the slabs without an object in use, but those of the reserve.

        Answers whether there were any.
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
        """Fill the magazine by a batch from the slabs, with new ones for what they lack.

        As SPL's spl_cache_refill: who found one object still waits for the rest of the batch. Ends early with
        an emergency object, or with none to have the caller look into the magazine again.
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
        """Have the worker make a slab, and wait as long as patience is; whether that has ended, well or not."""
        if not self._growing:
            self._growing = True
            self._queue.put(partial(self._grow, gfp))
        if self._growth.mark and self._deadlocked:
            return False
        with self._waits.on("growth worker"), anyio.move_on_after(self._growth.patience) as patience:
            await self._grown.wait()
        return not patience.cancelled_caught

    async def _take_emergency(self, gfp: GFP) -> SplObject | None:
        """An emergency object; none if there is another by now, or no memory."""
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
        """An object of the fullest slab, so that others become empty."""
        usable = (region for region, free in self._slabs_free.items() if free)
        region = min(usable, key=self._slabs_free.__getitem__)
        self._slabs_free[region] -= 1
        self._free -= 1
        return region

    def _flush(self, objects: int) -> None:
        """The oldest of the magazine go back to their slabs."""
        for _ in range(objects):
            self._slabs_free[self._magazine.popleft()] += 1
            self._free += 1

    async def _grow(self, gfp: GFP) -> None:
        await self._make_slab(gfp if self._growth.high else gfp & ~GFP.HIGH)
        self._growing = self._deadlocked = False
        grown, self._grown = self._grown, anyio.Event()
        grown.set()

    async def _make_slab(self, gfp: GFP) -> None:
        """One try; where it fails, a pause."""
        try:
            region = await self._slabs.acquire(self._size * self._objects, 8, gfp)
        except MemoryError:
            self.failures += 1
            await anyio.sleep(self._retry)
        else:
            self._slabs_free[region] = self._objects
            self._free += self._objects
