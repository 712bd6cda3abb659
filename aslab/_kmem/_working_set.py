"""How many objects a pool has needed lately, so that pressure takes what is idle and nothing else.

illumos keeps, for each cache, the fewest objects that lay idle during an interval, and reaps no more than
that. Here it is the other side of it: the most that were out of the slabs, interval by interval.

A cache can still be wrong about the future. If it grows again within its ageing time after it gave slabs back, it
becomes cautious: from then on it keeps what it needed within the whole ageing time, until that was less for so
long that slabs could go all the same.

Always true: the peaks are in order of time, and none is older than the ageing time was when the last one came.
"""

from __future__ import annotations

import math
from collections import deque


class WorkingSet:
    """The peaks of one pool. Times are seconds of the event loop's clock.

    :param lasting: the ageing time
    """

    def __init__(self, lasting: float) -> None:
        self._lasting = lasting
        self._peaks: deque[tuple[float, int]] = deque()  # when an interval ended, and its peak
        self._gave_back = -math.inf
        self.watching: bool = False
        """Slabs went because of pressure: `grows` wants to know of the next grow."""
        self._last_used: object = None
        self.idle_ticks: int = 0
        """Looks of the ageing task since the pool was used last."""
        self.cautious: bool = False
        self.regrets: int = 0
        """Times that it grew again within the ageing time after it gave slabs back under pressure."""

    def tick(self, used: object) -> None:
        """The ageing task looks. ``used`` differs from the last time if the pool was used."""
        self.idle_ticks = self.idle_ticks + 1 if used == self._last_used else 0
        self._last_used = used

    def roll(self, now: float, peak: int) -> None:
        """An interval has ended in which at most ``peak`` objects were out."""
        self._peaks.append((now, peak))
        while self._peaks[0][0] <= now - self._lasting:
            self._peaks.popleft()

    def needed(self, since: float) -> int:
        """The highest peak of the intervals that ended after then; a cautious cache looks at all it knows of."""
        return max((peak for end, peak in self._peaks if self.cautious or end > since), default=0)

    def gave_back(self, now: float) -> None:
        """Slabs went because of pressure."""
        self._gave_back = now
        self.watching, self.cautious = True, False

    def grows(self, now: float) -> None:
        """A slab is asked for."""
        if now - self._gave_back < self._lasting:
            self.cautious = True
            self.regrets += 1
        self.watching, self._gave_back = False, -math.inf  # once for each time
