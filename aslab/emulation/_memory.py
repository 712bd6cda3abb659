"""The machine's memory: pages, the watermarks that reserve some for urgent requests, and failures.

All emulated parts take their pages here, so that what one holds, another lacks.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

import anyio

from .._checks import whole_number
from .._errors import ConfigError
from .._flags import GFP
from ..backends._libc import PAGE_SIZE
from ._buddy import MAX_ORDER, Buddy

Reclaimer = Callable[[int, GFP], Awaitable[int]]

_BITS = ((GFP.RECLAIM, 0x10), (GFP.HIGH, 0x20), (GFP.IO, 0x40), (GFP.FS, 0x80), (GFP.MEMALLOC, 0x2000))
log = logging.getLogger("aslab.emulation")

PF_MEMALLOC: ContextVar[bool] = ContextVar("aslab_pf_memalloc", default=False)
"""Linux' task flag: all allocations may use the last reserve, and never enter reclaim."""


@dataclass(frozen=True, slots=True)
class Block:
    """2**order contiguous pages."""

    pfn: int
    """The number of the first page, a multiple of 2**order."""
    order: int


class PageAllocationFailure(MemoryError):
    """No block of that size, or too few free pages. Its text is the line that Linux 2.6.32 logs.

    The bits in ``mode`` are those of that version; MEMALLOC, which it did not have, is from Linux 3.6.
    """

    def __init__(self, who: str, order: int, gfp: GFP) -> None:
        super().__init__(who, order, gfp)
        self.order = order
        """The requested order."""
        self.gfp = gfp
        """The flags of the request."""

    def __str__(self) -> str:
        who, order, gfp = self.args
        mode = sum(bit for flag, bit in _BITS if flag in gfp)
        return f"{who}: page allocation failure. order:{order}, mode:{mode:#x}"


class PhysicalMemory:
    """Pages behind watermarks. Thread-safe; only `get` ever suspends.

    The rules are those of Linux (mm/page_alloc.c, zone_watermark_ok since 4.4, for one zone): an allocation that
    leaves fewer than ``low`` pages free wakes kswapd; it must leave at least ``min``, or half of that with HIGH;
    MEMALLOC may take all. Then there must be a block of that order. The defaults are Linux' too: min is
    sqrt(16 * KiB of memory) KiB, between 128 KiB and 64 MiB, and here at most 1/8 of all pages; low is 5/4 of it,
    high 3/2.

    There is no kswapd: `under_pressure` says when it would run. Sizes are in pages.

    :raises ConfigError: if a size is not a whole number, or not min <= low <= high <= pages
    """

    def __init__(
        self,
        pages: int,
        *,
        min: int | None = None,  # noqa: A002 - the mark's own name
        low: int | None = None,
        high: int | None = None,
    ) -> None:
        self._buddy = Buddy(pages)
        self.pages: int = pages
        """All pages, free or not."""
        self.min: int = _default_min(pages) if min is None else min
        """Free pages that only MEMALLOC may use."""
        whole_number("min", self.min, 0, pages)
        self.low: int = _quarters(5, self.min, pages) if low is None else low
        """Free pages below which kswapd wakes up."""
        whole_number("low", self.low, self.min, pages)
        self.high: int = max(self.low, _quarters(6, self.min, pages)) if high is None else high
        """Free pages at which kswapd goes back to sleep."""
        whole_number("high", self.high, self.low, pages)
        self.reclaimer: Reclaimer | None = None
        """Called by `get` with the number of pages and the caller's flags; returns how many it freed."""
        self.wake_kswapd: Callable[[], object] | None = None
        """Called to wake kswapd; must be quick, and must not call this memory."""
        self.wake_kcompactd: Callable[[int], object] | None = None
        """Called with the order of a request that found enough pages but no block, as ``wake_kswapd``."""
        self.on_free: Callable[[], object] | None = None
        """Called after each `free`."""
        self.under_pressure: bool = False
        """True from when kswapd is woken until ``high`` pages are free."""
        self.kswapd_wakeups: int = 0
        """Times kswapd was woken from sleep."""
        self.failures_by_order: list[int] = [0] * (MAX_ORDER + 1)
        """Requests that finally failed."""
        self.lowest_free: int = pages
        """The lowest number of free pages so far."""
        self.pinned: int = 0
        """Pages held by `fragment`."""
        self._lock = threading.Lock()

    @property
    def free_pages(self) -> int:
        """The number of free pages."""
        return self._buddy.free_pages

    def allocate(self, order: int, gfp: GFP) -> Block:
        """Allocate 2**order contiguous pages, at once.

        :raises PageAllocationFailure: if there are none for these flags; it is logged as in dmesg
        :raises ConfigError: if ``order`` is not 0..10
        """
        block = self._take(order, gfp)
        if block is None:
            raise self._failure(order, gfp)
        return block

    async def get(self, order: int, gfp: GFP) -> Block:
        """As `allocate`; with RECLAIM, frees memory first if there is none (direct reclaim).

        Retries as long as the reclaimer frees anything. Suspends only in the reclaimer.

        :raises PageAllocationFailure: if there is none, and nothing more to reclaim
        """
        progress = 1
        while (block := self._take(order, gfp)) is None:
            may_reclaim = GFP.RECLAIM in gfp and not PF_MEMALLOC.get()
            if not progress or self.reclaimer is None or not may_reclaim:
                raise self._failure(order, gfp)
            progress = await self.reclaimer(1 << order, gfp)
        return block

    def free(self, block: Block) -> None:
        """Free a block.

        :raises ValueError: if it is not allocated; nothing is changed
        """
        with self._lock:
            self._buddy.free(block.pfn, block.order)
            self._rest_perhaps()
        if self.on_free is not None:
            self.on_free()

    def isolate(self, pfn: int | None = None) -> Block | None:
        """Take a free page, this one or any, regardless of watermarks: for code that moves pages."""
        with self._lock:
            if pfn is None:
                pfn = self._buddy.allocate(0)
            elif not self._buddy.allocate_page(pfn):
                pfn = None
            self._note(woken=False)
        return None if pfn is None else Block(pfn, 0)

    def free_in_rows(self, order: int) -> list[int]:
        """The number of free pages in each aligned run of 2**order pages."""
        with self._lock:
            return self._buddy.free_in_rows(order)

    def counts(self) -> tuple[int, ...]:
        """The number of free blocks of each order, 0 first."""
        with self._lock:
            return self._buddy.counts()

    def buddyinfo(self) -> str:
        """The same, as a line of /proc/buddyinfo."""
        return f"Node 0, zone {'Normal':>8} " + " ".join(f"{count:6d}" for count in self.counts())

    def fragment(self, share: float, *, seed: int | None = None) -> Pins:
        """Pin single pages regardless of watermarks: ``share`` (0..1) of all pages, as far as they are free.

        They are spread evenly, or at random with a seed. An even 1/32 leaves no block of order 5.

        :raises ConfigError: if ``share`` is not a number in 0..1
        """
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ConfigError("share", share, "it must be a number from 0 to 1")
        count = round(self.pages * share)
        if seed is None:
            chosen = [number * self.pages // count for number in range(count)]
        else:
            chosen = random.Random(seed).sample(range(self.pages), count)
        with self._lock:
            pinned = [pfn for pfn in chosen if self._buddy.allocate_page(pfn)]
            self.pinned += len(pinned)
            self._note(woken=self.free_pages < self.low)
        return Pins(self, pinned)

    def _take(self, order: int, gfp: GFP) -> Block | None:
        whole_number("order", order, 0, MAX_ORDER)
        with self._lock:
            left = self._buddy.free_pages - (1 << order)
            mark = self.min // 2 if GFP.HIGH in gfp else self.min
            allowed = left >= mark or GFP.MEMALLOC in gfp or PF_MEMALLOC.get()
            pfn = self._buddy.allocate(order) if allowed else None
            self._note(woken=pfn is None or left < self.low)
            if allowed and pfn is None and order and self.wake_kcompactd is not None:
                self.wake_kcompactd(order)
        return None if pfn is None else Block(pfn, order)

    def _note(self, *, woken: bool) -> None:
        free = self._buddy.free_pages
        if free < self.lowest_free:
            self.lowest_free = free
        # If only fragmentation is in the way, kswapd finds the zone balanced and sleeps on.
        if woken and free < self.high:
            if not self.under_pressure:
                self.under_pressure = True
                self.kswapd_wakeups += 1
            if self.wake_kswapd is not None:  # again: last time there may have been nothing to free
                self.wake_kswapd()

    def _rest_perhaps(self) -> None:
        if self._buddy.free_pages >= self.high:
            self.under_pressure = False

    def _failure(self, order: int, gfp: GFP) -> PageAllocationFailure:
        with self._lock:
            self.failures_by_order[order] += 1
        failure = PageAllocationFailure(_who(), order, gfp)
        log.warning("%s", failure)
        return failure

    def _unpin(self, pages: list[int]) -> None:
        with self._lock:
            self.pinned -= len(pages)
            while pages:  # emptied in place, so that a second release does nothing
                self._buddy.free(pages.pop(), 0)
            self._rest_perhaps()


class Pins:
    """Pages held by `PhysicalMemory.fragment`."""

    def __init__(self, memory: PhysicalMemory, pages: list[int]) -> None:
        self._memory = memory
        self._pages = pages

    def __len__(self) -> int:
        return len(self._pages)

    def release(self) -> None:
        """Free the pages. From any thread; the second call does nothing."""
        self._memory._unpin(self._pages)


def _default_min(pages: int) -> int:
    per_page = PAGE_SIZE // 1024
    kib = max(128, min(math.isqrt(16 * pages * per_page), 65536))
    return min(kib // per_page, pages // 8)


def _quarters(count: int, mark: int, pages: int) -> int:
    return min(mark * count // 4, pages)


def _who() -> str:
    try:
        return anyio.get_current_task().name or ""
    except (RuntimeError, AttributeError):  # no event loop, or in a callback
        return threading.current_thread().name
