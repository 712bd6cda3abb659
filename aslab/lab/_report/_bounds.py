"""What is drawn of a run that is too big to draw: a page has to stay quick whatever the run was."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from .._scenario._recording import Span

T = TypeVar("T")
Points = list[tuple[float, float]]

BINS_PER_DECADE = 5
SHORTEST = -6
"""Power of ten, in seconds: what is less is counted with the shortest."""


def waiting_longest(rows: dict[str, list[Span]], most: int) -> dict[str, list[Span]]:
    """At most so many rows: those that waited longest in all, in the order in which they came."""

    def waited(row: str) -> float:
        return math.fsum(span.end - span.start for span in rows[row] if span.kind == "waiting")

    if len(rows) <= most:
        return rows
    chosen = set(sorted(rows, key=waited, reverse=True)[:most])
    return {row: spans for row, spans in rows.items() if row in chosen}


def longest(things: list[T], most: int, length: Callable[[T], float]) -> list[T]:
    """At most so many, the longest, in the order in which they came."""
    if len(things) <= most:
        return things
    numbers = sorted(range(len(things)), key=lambda number: length(things[number]), reverse=True)
    return [things[number] for number in sorted(numbers[:most])]


def thinned(points: Sequence[tuple[float, float]], most: int) -> Points:
    """At most so many points, in order: of each stretch of time the least, the greatest and the last.

    The last, because a counter keeps it until the next stretch that has points.
    """
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) <= most:
        return points
    start = points[0][0]
    stretch = (points[-1][0] - start) / (most // 3) or 1.0
    kept: set[int] = set()
    stretches: dict[int, list[int]] = {}
    for number, (time, _) in enumerate(points):
        stretches.setdefault(min(int((time - start) / stretch), most // 3 - 1), []).append(number)
    for numbers in stretches.values():
        values = [points[number][1] for number in numbers]
        kept |= {numbers[values.index(min(values))], numbers[values.index(max(values))], numbers[-1]}
    return [points[number] for number in sorted(kept)]


def histogram(waits: Iterable[float]) -> tuple[list[float], list[int]]:
    """Edges in seconds, each 10^0.2 times the one before, and how many waits are between them."""
    waits = sorted(waits)
    if not waits:
        return [], []
    low = max(10.0**SHORTEST, waits[0])
    first = math.floor(math.log10(low) * BINS_PER_DECADE)
    last = max(first, math.floor(math.log10(max(low, waits[-1])) * BINS_PER_DECADE)) + 2
    edges = [10.0 ** (power / BINS_PER_DECADE) for power in range(first, last + 1)]
    counts = [0] * (len(edges) - 1)
    for wait in waits:
        counts[max(0, bisect_right(edges, wait) - 1)] += 1
    while (
        len(counts) > 1 and not counts[-1]
    ):  # logarithms are not exact to the last bit, so one edge more was taken
        counts.pop()
        edges.pop()
    return edges, counts
