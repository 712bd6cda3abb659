"""Spans arranged in rows and lanes, for both the trace and the report.

A task may hold several objects at once. Overlapping spans cannot be drawn in one line, so each row has as
many lanes as spans overlap.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from .._scenario._recording import Span

Lanes = list[tuple[Span, int]]
"""The spans of a row in order of time, each with its lane: 0, 1, ..."""


def by_row(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """The spans of each row in order of time; rows in the order of their first start.

    Spans are recorded when they end, so the recorded order would put the longest waits last.
    """
    rows: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        rows.setdefault(span.row, []).append(span)
    return rows


def in_lanes(spans: Iterable[Span]) -> Lanes:
    """Give each span, in order of time, the lowest lane that is free."""
    placed: Lanes = []
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    for span in spans:
        while taken and taken[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(taken)[1])
        lane = heapq.heappop(free) if free else len(taken)
        heapq.heappush(taken, (span.end, lane))
        placed.append((span, lane))
    return placed
