"""How long things take: a histogram with fixed buckets, cheap enough to be always on.

One `note` is a search among 18 bounds and two additions, and only what is slow anyway is noted: waits and calls to
backends, never a hit.

Always true: each duration is in exactly one bucket, the first whose bound it does not exceed (Prometheus' ``le``).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

BOUNDS: tuple[float, ...] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0,
)  # fmt: skip
"""The upper bounds of the buckets in seconds; one more bucket takes what is longer."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations so far, by buckets, at one moment."""

    bounds: tuple[float, ...]
    """The upper bound of each bucket in seconds, inclusive; a last bucket has none."""
    counts: tuple[int, ...]
    """Durations in each bucket, one more than there are bounds."""
    sums: tuple[float, ...]
    """Seconds in each bucket, added up."""

    @property
    def count(self) -> int:
        """All durations."""
        return sum(self.counts)

    @property
    def seconds(self) -> float:
        """All durations added up."""
        return sum(self.sums)


_NO_COUNTS, _NO_SUMS = [0] * (len(BOUNDS) + 1), [0.0] * (len(BOUNDS) + 1)


class Times:
    """A histogram that grows. One thread at a time notes; any thread may look."""

    __slots__ = ("_counts", "_sums")

    def __init__(self) -> None:
        self._counts: list[int] | None = None  # until there is anything to count, as most caches never wait
        self._sums: list[float] = _NO_SUMS

    def note(self, seconds: float) -> None:
        """Count one duration."""
        bucket = bisect_left(BOUNDS, seconds)
        if self._counts is None:
            self._sums = _NO_SUMS.copy()
            self._counts = _NO_COUNTS.copy()
        self._counts[bucket] += 1
        self._sums[bucket] += seconds

    def snapshot(self) -> Histogram:
        """Return the histogram as it is now. Any thread; while others are noted, the last may be half counted."""
        return Histogram(BOUNDS, tuple(self._counts or _NO_COUNTS), tuple(self._sums))
