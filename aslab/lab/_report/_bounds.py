"""How much of a large run is drawn: a page must stay fast, however long the run."""

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
"""A power of ten, in seconds: shorter waits are counted with the shortest bin."""


def waiting_longest(rows: dict[str, list[Span]], most: int) -> dict[str, list[Span]]:
    """At most ``most`` rows: those with the longest total wait, in their original order."""

    def waited(row: str) -> float:
        return math.fsum(span.end - span.start for span in rows[row] if span.kind == "waiting")

    if len(rows) <= most:
        return rows
    chosen = set(sorted(rows, key=waited, reverse=True)[:most])
    return {row: spans for row, spans in rows.items() if row in chosen}


def longest(things: list[T], most: int, length: Callable[[T], float]) -> list[T]:
    """At most ``most`` things: the longest, in their original order."""
    if len(things) <= most:
        return things
    numbers = sorted(range(len(things)), key=lambda number: length(things[number]), reverse=True)
    return [things[number] for number in sorted(numbers[:most])]


def thinned(points: Sequence[tuple[float, float]], most: int) -> Points:
    """At most ``most`` points, in order: the lowest, the highest and the last of each interval.

    The last, because a counter keeps that value until the next interval with points.
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
    """Bin edges in seconds, each 10^0.2 times the previous one, and the number of waits in each bin."""
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
    while len(counts) > 1 and not counts[-1]:  # logarithms are inexact, so there is one extra edge
        counts.pop()
        edges.pop()
    return edges, counts
