"""What is recorded for drawing: spans, counters and waits, for the trace and the report.

Only filled on request; runs are compared by the event log alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal[
    "waiting", "holding", "emergency", "growing", "stuck", "failed", "txg sync", "GROWING", "DEADLOCKED", "REAPING"
]


class Span(NamedTuple):
    """Something that took time."""

    row: str
    """Whose it is: a task, a backend that the worker uses, or a cache."""
    kind: Kind
    """A task waits, holds, or holds an emergency object; a grow is under way or failed; a transaction group is
    written; a cache has a mark."""
    start: float
    """Seconds since the run began."""
    end: float
    detail: str = ""
    """A detail for the reader, such as the cache of an object, or why a grow failed."""


class Moment(NamedTuple):
    """Something that happened at one moment, such as the end of a fault."""

    row: str
    time: float
    text: str


@dataclass(slots=True)
class Recording:
    """Everything that is drawn. Times are seconds since the run began."""

    tasks: list[Span] = field(default_factory=list)
    """Spans of the tasks."""
    worker: list[Span] = field(default_factory=list)
    """The grows, one row per cache."""
    caches: list[Span] = field(default_factory=list)
    """The marks of the caches."""
    moments: list[Moment] = field(default_factory=list)
    counters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By name, (time, value) in order of time: ``held``, ``emergency``, ``free in slabs``, ``free pages``."""
    waits: list[float] = field(default_factory=list)
    """How long each waiting caller waited, in seconds."""
