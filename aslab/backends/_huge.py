"""Transparent huge pages, where the kernel gives them quickly: measured step by step, as they are faulted in.

While the kernel has some free, they are four times as fast to fault in as small pages. When it has none, it moves
other memory about to make one, which may take very long. So each step is timed, by the processor time it takes, as
a busy machine makes all of them late. A slow one is compared with small pages for the next step, as all memory may
be slow just now; if those are quicker, it is small pages for a while.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ._libc import STEP
from ._wishes import HUGE_PAGE, ask_for_huge_pages

QUICK = 2**30
"""Bytes per second with which nothing needs to be compared."""
PAUSE_FIRST, PAUSE_MOST = 1.0, 1000.0
"""Seconds without huge pages after small ones were quicker: doubled each time, from the first to the most."""


class QuickHugePages:
    """What one backend has learned about them. Any thread: two at once may each try a step."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._spent = spent
        self._pause = PAUSE_FIRST
        self._not_before = -math.inf
        self._proven = False
        self._slow: float | None = None  # bytes per second of the last step, if it has to be compared

    def prefault(self, address: int, nbytes: int, touch: Callable[[int, int], object]) -> None:
        """Fault in whole pages by ``touch(address, nbytes)``, huge ones where there are any, and quickly.

        :raises MemoryError: if ``touch`` does
        """
        end = address + nbytes
        while address < end:
            size = self._step(address, end)
            whole = size % HUGE_PAGE == 0 and address % HUGE_PAGE == 0
            huge = whole and self._slow is None and self._ask(address, size)
            if self._not_before == math.inf:
                size = end - address
            began = self._spent()
            try:
                touch(address, size)
            except MemoryError as exc:
                raise MemoryError(f"cannot populate {nbytes} bytes: {exc}") from exc
            if whole:
                self._learn(size / max(self._spent() - began, 1e-9), huge=huge)
            address += size

    def _step(self, address: int, end: int) -> int:
        """From here to the next step: one huge page until one was quick; the unaligned ends by themselves."""
        to_next = HUGE_PAGE - address % HUGE_PAGE
        whole = (end - address) // HUGE_PAGE * HUGE_PAGE
        if self._clock() < self._not_before or end - address < to_next:
            return end - address
        if to_next < HUGE_PAGE:
            return to_next
        return min(STEP if self._proven else HUGE_PAGE, whole)

    def _ask(self, address: int, nbytes: int) -> bool:
        if self._clock() < self._not_before:
            return False
        try:
            ask_for_huge_pages(address, nbytes)
        except OSError:  # there are none here, and nobody has asked for them by name
            self._not_before = math.inf
            return False
        return True

    def _learn(self, speed: float, *, huge: bool) -> None:
        slow, self._slow = self._slow, None
        if huge:
            self._proven = speed >= QUICK
            if not self._proven:
                self._slow = speed
            elif self._pause > PAUSE_FIRST:
                self._pause = PAUSE_FIRST
        elif slow is not None and speed > slow:
            self._not_before = self._clock() + self._pause
            self._pause = min(2 * self._pause, PAUSE_MOST)
