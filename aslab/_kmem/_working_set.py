"""How many objects a pool has needed lately, so that pressure takes only what is idle.

illumos records for each cache the fewest objects that were idle during an interval, and reaps no more than that.
Here it is the complement: the most objects that were out of the slabs, interval by interval.

A pool can still be wrong about the future. If it grows again within the ageing time after it gave slabs back, it
becomes cautious: from then on it keeps what it needed within the whole ageing time, until that has fallen so far
that it gives slabs back again.

Always true, between calls: the peaks are in order of time, and none is older than the ageing time, counted back
from the newest.
"""

from __future__ import annotations

import math
from collections import deque


class WorkingSet:
    """The peaks of one pool. Times are in seconds, by the event loop's clock.

    :param lasting: the ageing time
    """

    def __init__(self, lasting: float) -> None:
        self._lasting = lasting
        self._peaks: deque[tuple[float, int]] = deque()  # when each interval ended, and its peak
        self._gave_back = -math.inf
        self.watching: bool = False
        """Slabs were given back under pressure: the next grow must be reported to `grows`."""
        self._last_used: object = None
        self.idle_ticks: int = 0
        """Runs of the ageing task since the pool was last used."""
        self.cautious: bool = False
        """It keeps what it needed within the whole ageing time."""
        self.regrets: int = 0
        """Times that it grew again within the ageing time after it gave slabs back under pressure."""

    def tick(self, used: object) -> None:
        """Count a run of the ageing task. ``used`` differs from the last call's if the pool has been used."""
        self.idle_ticks = self.idle_ticks + 1 if used == self._last_used else 0
        self._last_used = used

    def roll(self, now: float, peak: int) -> None:
        """Record an interval that ends ``now``, in which at most ``peak`` objects were out."""
        self._peaks.append((now, peak))
        while self._peaks[0][0] <= now - self._lasting:
            self._peaks.popleft()

    def needed(self, since: float) -> int:
        """Return the highest peak of the intervals that ended after ``since``, or if cautious of all recorded."""
        return max((peak for end, peak in self._peaks if self.cautious or end > since), default=0)

    def gave_back(self, now: float) -> None:
        """Note that slabs were given back under pressure."""
        self._gave_back = now
        self.watching, self.cautious = True, False

    def grows(self, now: float) -> None:
        """Note that a slab is asked for: a regret, if it follows soon after slabs were given back."""
        if now - self._gave_back < self._lasting:
            self.cautious = True
            self.regrets += 1
        self.watching, self._gave_back = False, -math.inf  # each giving back counts once
