"""What a run leaves for the eye: spans, counters and waits, which the trace and the report draw.

Only filled where somebody asked to see; the event log alone is what tells two runs apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal[
    "waiting", "holding", "emergency", "growing", "stuck", "failed", "txg sync", "GROWING", "DEADLOCKED", "REAPING"
]


class Span(NamedTuple):
    """Something that lasted."""

    row: str
    """Who: a task, a backend under the worker, or a cache."""
    kind: Kind
    """A task waits, holds, or holds an emergency object; a grow is under way or failed; a transaction group is
    written; a cache has a mark."""
    start: float
    """Seconds since the run began."""
    end: float
    detail: str = ""
    """One more word for the reader, such as the cache of an object, or why a grow failed."""


class Moment(NamedTuple):
    """Something that happened at once, such as a fault that was ended."""

    row: str
    time: float
    text: str


@dataclass(slots=True)
class Recording:
    """Everything that is drawn. Times are seconds since the run began."""

    tasks: list[Span] = field(default_factory=list)
    """Rows of the tasks of the workload."""
    worker: list[Span] = field(default_factory=list)
    """The grows, one row for each cache that grows."""
    caches: list[Span] = field(default_factory=list)
    """The marks of the caches."""
    moments: list[Moment] = field(default_factory=list)
    counters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By name, (time, value) in order of time: ``held``, ``emergency``, ``free in slabs``, ``free pages``."""
    waits: list[float] = field(default_factory=list)
    """How long each caller that had to wait waited, in seconds."""
