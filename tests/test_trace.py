"""The trace of a run: valid for Perfetto, rows in order, nothing on top of anything else."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab.lab._report._trace import write_trace
from aslab.lab._scenario._recording import Moment, Recording, Span
from aslab.lab._scenario._result import Result, Verdict

RESULT = Result(
    scenario="stuck <script>",
    about="",
    seed=7,
    loop="trio",
    real_time=False,
    verdicts=(Verdict("deadlocks at most 0", "1", "4 DEADLOCKED"),),
    log_sha256="ab" * 32,
    events=1,
    duration=9.0,
    emergency_max=0,
    deadlocks=1,
    longest_wait=0.0,
    stuck=(),
    figures={},
)
REQUIRED = {
    "X": {"name", "ts", "dur", "pid", "tid"},
    "i": {"name", "ts", "pid", "tid", "s"},
    "C": {"name", "ts", "pid", "args"},
    "M": {"name", "pid", "args"},
}


def trace(recording: Recording) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        write_trace(path, RESULT, recording)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    return content


def events(recording: Recording, phase: str) -> list[dict[str, Any]]:
    return [event for event in trace(recording)["traceEvents"] if event["ph"] == phase]


def names(recording: Recording, what: str = "thread_name") -> list[str]:
    return [event["args"]["name"] for event in events(recording, "M") if event["name"] == what]


times = st.floats(0, 1e5)
rows = st.sampled_from(["writer", "reader", 'r"\n<\u2028é', ""])
spans = st.lists(
    st.builds(
        lambda row, kind, start, length, detail: Span(row, kind, start, start + length, detail),
        rows,
        st.sampled_from(["waiting", "holding", "emergency"]),
        times,
        st.sampled_from([0.0, 1e-9, 0.5, 1e4]) | times,
        st.text(max_size=3),
    )
)
recordings = st.builds(
    Recording,
    tasks=spans,
    worker=spans,
    caches=spans,
    moments=st.lists(st.builds(Moment, rows | st.text(max_size=2), times, st.text())),
    counters=st.dictionaries(st.text(max_size=3), st.lists(st.tuples(times, st.floats()))),
)


@given(recordings)
def test_every_event_has_what_its_phase_needs_and_a_named_place(recording: Recording) -> None:
    content = trace(recording)
    assert content["displayTimeUnit"] == "ms"
    named = set()
    for event in content["traceEvents"]:
        assert REQUIRED[event["ph"]] <= event.keys()
        if event["ph"] == "M":
            named.add((event["name"], event["pid"], event.get("tid")))
            continue
        assert event["ts"] >= 0
        assert event.get("dur", 0) >= 0
        assert ("process_name", event["pid"], None) in named
        assert "tid" not in event or ("thread_name", event["pid"], event["tid"]) in named


@given(recordings)
def test_nothing_is_lost_but_counts_that_are_no_numbers(recording: Recording) -> None:
    phases = [event["ph"] for event in trace(recording)["traceEvents"]]
    assert phases.count("X") == len(recording.tasks + recording.worker + recording.caches)
    assert phases.count("i") == len(recording.moments)
    points = [value for points in recording.counters.values() for _, value in points]
    assert phases.count("C") == sum(map(math.isfinite, points))


@given(recordings)
def test_spans_of_a_thread_never_overlap(recording: Recording) -> None:
    threads = defaultdict(list)
    for event in events(recording, "X"):
        start = round(event["ts"] * 1000)
        threads[event["tid"]].append((start, start + round(event["dur"] * 1000)))
    for mine in threads.values():
        mine.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(mine))


@given(recordings)
def test_threads_have_numbers_of_their_own_and_in_order(recording: Recording) -> None:
    numbers = [event["tid"] for event in events(recording, "M") if event["name"] == "thread_name"]
    assert numbers == sorted(set(numbers))
    indices = [event["args"]["sort_index"] for event in events(recording, "M") if "sort_index" in event["name"]]
    assert len(indices) == len(set(indices))


@given(recordings)
def test_same_recording_same_bytes(recording: Recording) -> None:
    with TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("1", "2")]
        for path in paths:
            write_trace(path, RESULT, recording)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_rows_come_in_the_order_of_their_first_span_not_of_their_first_end() -> None:
    recording = Recording(
        tasks=[Span("quick", "holding", 2, 3), Span("slow", "waiting", 1, 4)],
        worker=[Span("frames", "growing", 0, 1)],
        caches=[Span("frames", "GROWING", 0, 1)],
        counters={"held": [(0, 1)]},
    )
    assert names(recording) == ["slow", "quick", "frames", "frames"]
    assert names(recording, "process_name") == ["tasks", "worker", "caches", "counters"]


def test_what_a_task_does_at_once_gets_as_many_lanes_as_it_needs_and_no_more() -> None:
    holding = [Span("w", "holding", 0, 10), Span("w", "holding", 1, 2), Span("w", "waiting", 2, 5)]
    recording = Recording(tasks=[*holding, Span("w", "emergency", 3, 4), Span("w", "holding", 10, 11)])
    assert names(recording) == ["w", "w (2)", "w (3)"]
    tids = [event["tid"] for event in events(recording, "X")]
    assert [tid - min(tids) for tid in tids] == [0, 1, 1, 2, 0]


def test_times_are_in_microseconds_and_details_are_kept() -> None:
    recording = Recording(
        tasks=[Span("w", "waiting", 1.5, 1.75, "frames")], counters={"held": [(2.5, 3)], "free pages": [(0, 1)]}
    )
    (span,) = events(recording, "X")
    assert (span["ts"], span["dur"], span["name"]) == (1_500_000, 250_000, "waiting")
    assert span["args"] == {"detail": "frames"}
    (inexact,) = events(Recording(tasks=[Span("w", "waiting", 0.1 + 0.2, 0.7 + 0.1)]), "X")
    assert (inexact["ts"], inexact["dur"]) == (300_000, 500_000)
    first, _ = events(recording, "C")
    assert (first["name"], first["ts"], first["args"]) == ("held", 2_500_000, {"value": 3})


def test_moments_are_on_the_row_of_their_name_or_on_one_of_their_own() -> None:
    recording = Recording(
        tasks=[Span("w", "waiting", 0, 1)], moments=[Moment("w", 0.5, "gave up"), Moment("plan", 1, "let go")]
    )
    mine, other = events(recording, "i")
    assert names(recording) == ["w", "plan"]
    assert mine["tid"] == events(recording, "X")[0]["tid"]
    assert other["tid"] != mine["tid"]
    assert names(recording, "process_name") == ["tasks", "moments"]


def test_trace_says_which_run_it_is() -> None:
    about = trace(Recording())["otherData"]
    assert about["scenario"] == "stuck <script>"
    assert (about["seed"], about["loop"], about["passed"]) == (7, "trio", False)
    assert about["log_sha256"] == "ab" * 32
