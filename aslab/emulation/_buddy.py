"""Linux' page allocator without the kernel: free blocks by order, split when allocated, merged when freed.

Fragmentation makes large contiguous requests fail while memory is free, so it has to be real here: pages have
numbers, and a block merges only with its own buddy.
"""

from __future__ import annotations

from .._checks import whole_number
from .._errors import ConfigError

MAX_ORDER = 10


class Buddy:
    """Free blocks of 2**0 to 2**10 pages, each at a multiple of its size. Not thread-safe, never suspends.

    Works for any number of pages: the remainder after the largest blocks is split into smaller ones. The most
    recently freed block is allocated first, as Linux prefers pages that are still in the CPU cache.

    :raises ConfigError: if ``pages`` is not a positive whole number
    """

    def __init__(self, pages: int) -> None:
        whole_number("pages", pages, 1)
        self.pages: int = pages
        """All pages, free or not."""
        self.free_pages: int = pages
        """Pages that are free."""
        # Dicts as ordered sets: last in, first out, and any block can be removed, both in constant time.
        self._free: list[dict[int, None]] = [{} for _ in range(MAX_ORDER + 1)]
        self._allocated: dict[int, int] = {}
        pfn = pages
        for order in range(MAX_ORDER + 1):  # from the end, so that low addresses are allocated first
            while pfn and (order == MAX_ORDER or pfn & (1 << order)):
                pfn -= 1 << order
                self._free[order][pfn] = None

    def allocate(self, order: int) -> int | None:
        """Allocate 2**order pages. Returns the number of the first; None if no block is large enough.

        :raises ConfigError: if ``order`` is not 0..10
        """
        if not 0 <= order <= MAX_ORDER:
            raise ConfigError("order", order, f"it must be from 0 to {MAX_ORDER}")
        free = self._free
        for larger in range(order, MAX_ORDER + 1):
            if free[larger]:
                pfn = free[larger].popitem()[0]
                while larger > order:
                    larger -= 1  # noqa: PLW2901 - the loop ends here
                    free[larger][pfn + (1 << larger)] = None
                self._allocated[pfn] = order
                self.free_pages -= 1 << order
                return pfn
        return None

    def allocate_page(self, pfn: int) -> bool:
        """Allocate this very page, as order 0. Returns False if it is not free."""
        for order, blocks in enumerate(self._free):
            start = pfn & -(1 << order)
            if start not in blocks:
                continue
            del blocks[start]
            for smaller in range(order - 1, -1, -1):
                half = pfn >> smaller << smaller
                self._free[smaller][half ^ (1 << smaller)] = None  # the half without the page
            self._allocated[pfn] = 0
            self.free_pages -= 1
            return True
        return False

    def free_in_rows(self, order: int) -> list[int]:
        """The number of free pages in each aligned run of 2**order pages."""
        rows = [0] * (self.pages >> order)
        for size, blocks in enumerate(self._free):
            for pfn in blocks:
                for row in range(pfn >> order, (pfn + (1 << size) - 1 >> order) + 1):
                    if row < len(rows):
                        rows[row] += 1 << min(size, order)
        return rows

    def free(self, pfn: int, order: int) -> None:
        """Free a block as it was allocated, merging it with free buddies.

        :raises ValueError: if no block of this order was allocated there; nothing is changed
        """
        if self._allocated.get(pfn) != order:
            raise ValueError(f"page {pfn} was not allocated with order {order}")
        del self._allocated[pfn]
        self.free_pages += 1 << order
        while order < MAX_ORDER and (buddy := pfn ^ (1 << order)) in self._free[order]:
            del self._free[order][buddy]
            pfn &= ~(1 << order)
            order += 1
        self._free[order][pfn] = None

    def counts(self) -> tuple[int, ...]:
        """The number of free blocks of each order, 0 first, as in /proc/buddyinfo."""
        return tuple(len(blocks) for blocks in self._free)
