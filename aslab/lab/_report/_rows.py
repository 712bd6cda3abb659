"""Spans as rows and lanes: what the trace and the report draw from alike.

A task may hold several objects at once. No drawing of a row can show spans that overlap, so each row has
as many lanes as overlap at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from .._scenario._recording import Span

Lanes = list[tuple[Span, int]]
"""The spans of a row in order of time, each with its lane: 0, 1, ..."""


def by_row(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """The spans of each row in order of time; rows in the order in which their first span starts.

    Spans are recorded as they end, so their own order would put last who waited longest.
    """
    rows: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        rows.setdefault(span.row, []).append(span)
    return rows


def in_lanes(spans: Iterable[Span]) -> Lanes:
    """Give each span, which come in order of time, the lowest lane that is free by then."""
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
