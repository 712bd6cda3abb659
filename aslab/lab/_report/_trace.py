"""A run as a trace for Perfetto or chrome://tracing.

The format is Chrome's "Trace Event Format", one event per line. Events are written as they are generated:
a long run has too many to hold twice.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._scenario._recording import Recording, Span
from .._scenario._result import Result
from ._rows import by_row, in_lanes

Json = dict[str, Any]
Thread = tuple[int, int]
"""A process and a thread in it."""
FIRST_THREAD = 100
"""Thread numbers are unique in the file: one equal to its process number would be taken for the main thread."""


def write_trace(path: str | os.PathLike[str], result: Result, recording: Recording) -> None:
    """Write a run as trace events; opens in ui.perfetto.dev and chrome://tracing.

    The processes are tasks, worker, caches and counters. Each task is a thread; further threads, such as
    ``writer-3 (2)``, hold what overlaps with that. The same run gives the same bytes.
    Does not suspend; blocks while it writes.

    :raises OSError: if the file cannot be written
    """
    about = {
        "scenario": result.scenario,
        "seed": result.seed,
        "loop": result.loop,
        "passed": result.passed,
        "duration_s": result.duration,
        "log_sha256": result.log_sha256,
    }
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"displayTimeUnit":"ms","otherData":' + _dump(about) + ',"traceEvents":[')
        separator = "\n"
        for event in _events(recording):
            file.write(separator + _dump(event))
            separator = ",\n"
        file.write("\n]}\n")


def _events(recording: Recording) -> Iterator[Json]:
    groups = {"tasks": recording.tasks, "worker": recording.worker, "caches": recording.caches}
    numbers = itertools.count(FIRST_THREAD)
    known: dict[str, Thread] = {}
    for pid, (name, spans) in enumerate(groups.items(), 1):
        if spans:
            yield from _named("process", name, pid)
            yield from _rows(pid, spans, numbers, known)
    yield from _moments(recording, len(groups) + 1, numbers, known)
    yield from _counters(recording, len(groups) + 2)


def _rows(pid: int, spans: list[Span], numbers: Iterator[int], known: dict[str, Thread]) -> Iterator[Json]:
    for row, mine in by_row(spans).items():
        threads: list[int] = []
        for span, lane in in_lanes(mine):
            if lane == len(threads):
                threads.append(next(numbers))
                yield from _named("thread", f"{row} ({lane + 1})" if lane else row, pid, threads[lane])
            start, end = _nanoseconds(span.start), _nanoseconds(span.end)
            event: Json = {"ph": "X", "name": span.kind, "cat": span.kind, "ts": start / 1000}
            event |= {"dur": (end - start) / 1000, "pid": pid, "tid": threads[lane]}
            yield event | ({"args": {"detail": span.detail}} if span.detail else {})
        known.setdefault(row, (pid, threads[0]))


def _moments(recording: Recording, pid: int, numbers: Iterator[int], known: dict[str, Thread]) -> Iterator[Json]:
    """Moments, on the row of the same name if there is one."""
    strangers = [moment.row for moment in recording.moments if moment.row not in known]
    if strangers:
        yield from _named("process", "moments", pid)
    for row in dict.fromkeys(strangers):
        known[row] = pid, next(numbers)
        yield from _named("thread", row, *known[row])
    for moment in recording.moments:
        process, thread = known[moment.row]
        ts = _nanoseconds(moment.time) / 1000
        yield {"ph": "i", "s": "t", "name": moment.text, "ts": ts, "pid": process, "tid": thread}


def _counters(recording: Recording, pid: int) -> Iterator[Json]:
    if recording.counters:
        yield from _named("process", "counters", pid)
    for name, points in recording.counters.items():
        for time, value in points:
            if math.isfinite(value):  # JSON cannot express other numbers
                ts = _nanoseconds(time) / 1000
                yield {"ph": "C", "name": name, "ts": ts, "pid": pid, "args": {"value": value}}


def _named(what: str, name: str, pid: int, tid: int | None = None) -> Iterator[Json]:
    """The name of a process or thread, and its sort order."""
    where = {"pid": pid} if tid is None else {"pid": pid, "tid": tid}
    yield {"ph": "M", "name": f"{what}_name", **where, "args": {"name": name}}
    yield {"ph": "M", "name": f"{what}_sort_index", **where, "args": {"sort_index": tid or pid}}


def _nanoseconds(seconds: float) -> int:
    """Whole nanoseconds, so that spans that do not overlap in the recording do not overlap in the file."""
    return round(seconds * 1e9)


def _dump(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
