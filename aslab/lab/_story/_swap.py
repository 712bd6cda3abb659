"""The pages of processes, and what Linux does when memory is short: kswapd, direct reclaim, writeback.

Dirty pages of a process are reclaimed by writing them to the swap device. kswapd does so when fewer than
``low`` pages are free; an allocation that finds fewer than ``min`` has to do it itself, and waits. Its flags
say whether it may: not without IO.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

from ..._flags import GFP
from ...emulation._memory import Block, PhysicalMemory
from ...emulation._page_cache import SWAP_CLUSTER_MAX
from .._simulation._waits import WaitGraph

SMALL = 8
"""The largest block, in pages, for which Linux retries forever (PAGE_ALLOC_COSTLY_ORDER)."""

WriteOut = Callable[[], Awaitable[None]]


class Anonymous:
    """Dirty pages of processes, oldest first. Registers itself as the memory's reclaimer and kswapd.

    For one event loop.

    :param write_out: writes one cluster to the swap device
    :param shrink: frees memory of caches when there is nothing to write; returns whether it freed any
    :param kswapd_writes: most clusters that kswapd writes at once; Linux stops when the device is congested
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        waits: WaitGraph,
        write_out: WriteOut,
        shrink: Callable[[], Awaitable[bool]],
        *,
        kswapd_writes: int = 8,
    ) -> None:
        self.memory = memory
        self.written: int = 0
        """Pages written to the swap device."""
        self.movable: dict[int, list[Block]] = {}
        """Movable pages by number, and the cluster of each: those not being written."""
        self.direct_reclaims: int = 0
        """Allocations that had to free memory themselves."""
        self._waits = waits
        self._write_out = write_out
        self._shrink = shrink
        self._kswapd_writes = kswapd_writes
        self._lru: deque[list[Block]] = deque()
        self._under_way = 0
        self._progress = anyio.Event()  # set and replaced whenever a write ends
        self._freed: anyio.Event | None = None  # set when a page is freed, if a task waits for one
        self._woken = anyio.Event()
        memory.on_free = self._note_free
        memory.reclaimer = self.reclaim
        memory.wake_kswapd = self._wake

    def add(self, cluster: list[Block]) -> None:
        """Add pages that a process has dirtied, to be written out together."""
        self._lru.append(cluster)
        self._may_move(cluster)

    def scatter(self, share: float, together: int = SWAP_CLUSTER_MAX) -> None:
        """Dirty this share (0..1) of all pages, spread evenly, as far as they are free.

        :param together: pages per cluster
        """
        count = round(self.memory.pages * share)
        found = [self.memory.isolate(number * self.memory.pages // count) for number in range(count)]
        pages = [page for page in found if page is not None]
        for start in range(0, len(pages), together):
            self.add(pages[start : start + together])

    async def reclaim(self, pages: int, gfp: GFP) -> int:
        """Direct reclaim: write out one cluster, or wait for others to do so. Returns the number of pages freed.

        Without IO it can only wait for what others free. Linux lets small requests (up to 8 contiguous pages)
        wait forever, and fails larger ones and those with NORETRY. Blocks for larger requests are made by
        kcompactd (`Compaction`).
        """
        if GFP.IO not in gfp:
            if pages > SMALL or GFP.NORETRY in gfp:
                return 0
            if self._freed is None:
                self._freed = anyio.Event()
            with self._waits.on("free pages", "writeback"):
                await self._freed.wait()
            return 1
        self.direct_reclaims += 1
        with self._waits.on("reclaim", "writeback"):
            if self._lru:
                return await self._write(self._next())
            if self._under_way:
                await self._progress.wait()
                return 1  # approximately: it was written, or can be now
        return 0

    async def run_kswapd(self) -> None:
        """Whenever fewer than ``low`` pages are free, free memory up to ``high``. Runs until cancelled."""
        self._waits.be("kswapd")
        async with anyio.create_task_group() as writes:
            while True:
                await self._woken.wait()
                self._woken = anyio.Event()
                while self.memory.free_pages < self.memory.high:
                    if self._lru and self._under_way < self._kswapd_writes:
                        writes.start_soon(self._write, self._next(), name="kswapd write")
                        await anyio.lowlevel.checkpoint()
                    elif self._under_way:
                        with self._waits.on("writeback"):
                            await self._progress.wait()
                    elif not await self._shrink():
                        break  # nothing to free now; the next allocation wakes it again

    def _note_free(self) -> None:
        if self._freed is not None:
            self._freed.set()
            self._freed = None

    def _wake(self) -> None:
        self._woken.set()

    def _next(self) -> list[Block]:
        self._under_way += 1  # here, not in the write, which may start later
        cluster = self._lru.popleft()
        for page in cluster:
            del self.movable[page.pfn]
        return cluster

    def _may_move(self, cluster: list[Block]) -> None:
        for page in cluster:
            self.movable[page.pfn] = cluster

    async def _write(self, cluster: list[Block]) -> int:
        try:
            with self._waits.on("writeback", "zvol"):
                await self._write_out()
        except BaseException:
            self._lru.appendleft(cluster)
            self._may_move(cluster)
            raise
        else:
            for page in cluster:
                self.memory.free(page)
            self.written += len(cluster)
        finally:
            self._under_way -= 1
            progress, self._progress = self._progress, anyio.Event()
            progress.set()  # also when cancelled: a task that waited for this write may do it now
        return len(cluster)


async def hog(
    anonymous: Anonymous,
    clusters: int,
    pause: Callable[[], float],
    *,
    pages: int = SWAP_CLUSTER_MAX,
    retry: float = 0.01,
) -> None:
    """A process that dirties clusters of pages, one after another, and never reads them again.

    :param pause: seconds to fill one
    :param pages: pages per cluster
    :param retry: seconds until it retries when there is no page
    """
    memory = anonymous.memory
    for _ in range(clusters):
        cluster: list[Block] = []
        while len(cluster) < pages:
            try:
                cluster.append(await memory.get(0, GFP.KERNEL))
            except MemoryError:  # nothing to reclaim right now; Linux retries such small requests forever
                await anyio.sleep(retry)
        await anyio.sleep(pause())
        anonymous.add(cluster)
