"""Compaction: kcompactd makes blocks of contiguous pages by moving movable pages out of the way.

A request that may not start I/O cannot compact memory itself (Linux, mm/compaction.c: no direct compaction
without __GFP_IO, since moving a page may need I/O). It fails, wakes this task, and finds the block when it
tries again, which is slow.
"""

from __future__ import annotations

import anyio

from ..._checks import whole_number
from ...emulation._memory import Block, PhysicalMemory
from ...faults import Delay
from ...faults._delay import drawing
from .._simulation._waits import WaitGraph

MOST_DEFERRED = 64
"""Linux' COMPACT_MAX_DEFER_SHIFT: after repeated failures, this many requests pass before the next attempt."""


class Compaction:
    """Registers itself as the memory's kcompactd. For one event loop.

    Each attempt looks at all pages and chooses the aligned block with the fewest pages to move; a page that is
    neither free nor ``movable`` rules its block out. The block's free pages are set aside, the others are moved
    one by one to free pages elsewhere, and then the whole block is freed. Linux moves pages from one end of
    memory to the other until there is a block, which moves at least as many pages. As in Linux, after a failed
    attempt the next requests are skipped: 1, then 2, 4, and so on up to 64.

    :param movable: the movable pages, by number, and the list that each is in; a page that moves is replaced
        there
    :param scan: seconds to inspect a page
    :param move: seconds to move a page
    :param spare: free pages that an attempt leaves. Linux leaves ``low``, and does not start unless twice the
        block is free above that
    :raises ConfigError: if ``spare`` is not a whole number between 0 and all pages
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        movable: dict[int, list[Block]],
        waits: WaitGraph,
        *,
        scan: Delay = 0.0,
        move: Delay = 0.0,
        spare: int = 0,
        seed: int = 0,
    ) -> None:
        whole_number("spare", spare, 0, memory.pages)
        self.memory = memory
        self.spare: int = spare
        self.moved: int = 0
        """Pages moved."""
        self.made: int = 0
        """Blocks made."""
        self.in_vain: int = 0
        """Attempts that made no block."""
        self._movable = movable
        self._waits = waits
        self._scan = drawing("scan", scan, seed)
        self._move = drawing("move", move, seed + 1)
        self._order = 0
        self._woken = anyio.Event()
        self._defer = self._let_by = 0
        memory.wake_kcompactd = self._wake

    async def run(self) -> None:
        """Make a block whenever a request for one has failed. Runs until cancelled."""
        self._waits.be("kcompactd")
        while True:
            await self._woken.wait()
            self._woken = anyio.Event()
            order, self._order = self._order, 0
            if await self.make(order):
                self.made += 1
                self._defer = 0
            else:
                self.in_vain += 1
                self._defer = min(max(1, self._defer * 2), MOST_DEFERRED)
            self._let_by = self._defer

    async def make(self, order: int) -> bool:
        """Make a block of 2**order pages. Returns whether it did. Suspends for the time to scan and move."""
        memory = self.memory
        await anyio.sleep(sum(self._scan() for _ in range(memory.pages)))
        if memory.free_pages - (1 << order) < self.spare:
            return False
        start = self._choose(order)
        if start is None:
            return False
        row = range(start, start + (1 << order))
        aside: list[Block] = []
        try:
            aside += filter(None, map(memory.isolate, row))  # first, so that no page moves within the block
            for pfn in sorted({*row} - {page.pfn for page in aside}):
                page = await self._empty(pfn)
                if page is None:
                    return False
                aside.append(page)
        finally:
            for page in aside:
                memory.free(page)
        return True

    def _choose(self, order: int) -> int | None:
        """The first page of the best block; None if there is none, or no room elsewhere for its pages."""
        size = 1 << order
        free = self.memory.free_in_rows(order)
        usable = list(free)
        for pfn in self._movable:
            if pfn >> order < len(usable):
                usable[pfn >> order] += 1
        rows = [row for row, pages in enumerate(usable) if pages == size]
        if not rows:
            return None
        best = max(rows, key=free.__getitem__)
        to_move = size - free[best]
        return best * size if to_move <= self.memory.free_pages - free[best] else None

    async def _empty(self, pfn: int) -> Block | None:
        """Move the contents of a page, and set the page aside; None if that is not possible any more."""
        await anyio.sleep(self._move())
        holder = self._movable.get(pfn)
        if holder is None:  # freed meanwhile, or about to be
            return self.memory.isolate(pfn)
        target = self.memory.isolate()
        if target is None:
            return None
        old = Block(pfn, 0)
        holder[holder.index(old)] = target
        self._movable[target.pfn] = self._movable.pop(pfn)
        self.moved += 1
        return old

    def _wake(self, order: int) -> None:
        if self._let_by:
            self._let_by -= 1
            return
        self._order = max(order, self._order)
        self._woken.set()
