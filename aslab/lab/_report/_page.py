"""A run of a scenario as one page: what was expected, what happened, and when."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from .._scenario._metrics import METRICS
from .._scenario._recording import Recording
from .._scenario._result import Result
from ._bounds import histogram
from ._charts import Area, Bar, axis, caption
from ._figures import COLOURS, counted, lasting, nice, notes, text
from ._frame import section, write_page
from ._timeline import timeline

MOST_STUCK = 200
"""Most tasks listed as stuck."""
MOST_LISTED = 100
"""Most moments in the table."""


def write_report(path: str | os.PathLike[str], result: Result, recording: Recording) -> None:
    """Write a run as one HTML page that fetches nothing.

    The amount drawn is bounded, so that the page stays small and fast after long runs; it says what is left out.
    The same run gives the same bytes. Does not suspend; blocks while it writes.

    :raises OSError: if the file cannot be written
    """
    parts = [_header(result), _verdicts(result), _stuck(result)]
    parts.append(section("What happened when", timeline(recording, result.duration), "timeline"))
    if recording.waits:
        parts.append(section("How long callers waited", _waits(recording.waits), "waits"))
    else:
        parts.append(section("How long callers waited", "<p>No caller had to wait.</p>"))
    parts += [_figures(result), _moments(recording)]
    outcome = "passed" if result.passed else "failed"
    write_page(path, f"{result.scenario}: {outcome}", "\n".join(filter(None, parts)))


def _header(result: Result) -> str:
    broken = len(result.broken)
    words = f"Failed: {broken} of {len(result.verdicts)} expectations broken" if broken else "Passed"
    if result.passed:
        words += ": every expectation was met" if result.verdicts else ": nothing was expected"
    facts = {
        "Seed": str(result.seed),
        "Loop": result.loop,
        "Time": "real" if result.real_time else "simulated",
        "Duration": lasting(result.duration),
        "Events": f"{result.events:,}",
        "Longest wait": lasting(result.longest_wait),
        "Deadlocks": f"{result.deadlocks:,}",
        "Most emergency objects": f"{result.emergency_max:,}",
    }
    digest = f"<div class=all><dt>SHA-256 of the event log<dd><code>{text(result.log_sha256)}</code></div>"
    if not result.log_sha256:
        del facts["Events"]
        digest = ""
    listed = "".join(f"<div><dt>{text(name)}<dd>{text(value)}</div>" for name, value in facts.items())
    return (
        f"<header><h1>{text(result.scenario)}</h1>"
        f"<div class='verdict {'good' if result.passed else 'bad'}' id=verdict>{words}</div>"
        f"<p>{text(result.about)}</p><dl>{listed}{digest}</dl></header>"
    )


def _verdicts(result: Result) -> str:
    rows = []
    for verdict in result.verdicts:
        outcome = "<span class='mark good'><b aria-hidden=true>✓</b> met</span>"
        if verdict.broken_by is not None:
            broken = "<span class='mark bad'><b aria-hidden=true>✕</b> broken</span>"
            outcome = f"{broken}<br>{text(verdict.broken_by)}"
        rows.append(f"<tr><td>{text(verdict.expected)}<td>{text(verdict.came)}<td>{outcome}")
    if not rows:
        return ""
    head = "<thead><tr><th scope=col>Expected<th scope=col>Actual<th scope=col>Outcome</thead>"
    return section("What was expected", f"<table>{head}<tbody>{''.join(rows)}</table>")


def _stuck(result: Result) -> str:
    if not result.stuck:
        return ""
    listed = "".join(f"<li>{text(line)}" for line in result.stuck[:MOST_STUCK])
    more = len(result.stuck) - MOST_STUCK
    rest = f"<p class=note>And {more:,} more.</p>" if more > 0 else ""
    told = "<p>Every task waits, and nothing is left to wake any of them.</p>"
    return section("Where the run was stuck", f"{told}<ol class=stuck>{listed}</ol>{rest}")


def _waits(seconds: Sequence[float]) -> str:
    """A histogram of waits, in growing bins."""
    ordered = sorted(seconds)
    count = len(ordered)
    half, most = (ordered[math.ceil(count * share) - 1] for share in (0.5, 0.99))
    told = (
        f"<p>{count:,} waited: half of them at most {lasting(half)}, 99 % at most {lasting(most)}, "
        f"the longest {lasting(ordered[-1])}.</p>"
    )
    edges, counts = histogram(seconds)
    powers = [math.log10(edge) for edge in edges]
    first, last = math.floor(powers[0] + 1e-9), math.ceil(powers[-1] - 1e-9)
    width = (last - first) or 1
    area = Area(180, "Number of callers by how long they waited; the text above summarizes it")
    top = max(counts) * 1.05
    area.scale(top, nice(top, 4, whole=True))
    bars = []
    for low, high, number, power, following in zip(edges, edges[1:], counts, powers, powers[1:], strict=False):
        height = area.height * number / top
        gap = 0.03 * (following - power)
        said = f"{number:,} waited {lasting(low)} to {lasting(high)}"
        bars.append(Bar(power - first + gap, following - first - gap, area.height - height, height, said))
    area.bars(bars, COLOURS["waiting"])
    marks = axis(
        (((power - first) / width, lasting(10.0**power)) for power in range(first, last + 1)), "times decades"
    )
    drawn = caption("callers, by how long they waited") + area.html(width, range(1, width)) + marks
    return f"{told}<div class='chart fixed'>{drawn}</div>"


def _figures(result: Result) -> str:
    """The nonzero figures, with explanations; only the names of the others."""
    rows = []
    for name, value in result.figures.items():
        metric = METRICS.get(name)
        told = metric.format(value) if metric and metric.time else counted(value)
        if value or metric is None:
            about = text(metric.about) if metric else ""
            rows.append(f"<tr><th scope=row>{text(name)}<td class=number>{told}<td>{about}")
    zeros = [name for name, value in result.figures.items() if name in METRICS and not value]
    told = notes([f"These are 0: {', '.join(zeros)}."] * bool(zeros))
    table = f"<table class=figures><tbody>{''.join(rows)}</table>" if rows else ""
    return section("Figures", table + told) if result.figures else ""


def _moments(recording: Recording) -> str:
    if not recording.moments:
        return ""
    listed = recording.moments[:MOST_LISTED]
    rows = [
        f"<tr><td class=when>{moment.time:.6f} s<td>{text(moment.row)}<td>{text(moment.text)}" for moment in listed
    ]
    head = "<thead><tr><th scope=col>When<th scope=col>Where<th scope=col>What</thead>"
    left = [f"The first {len(listed)} of {len(recording.moments):,}."] * (len(listed) < len(recording.moments))
    return section("Moments", f"{notes(left)}<table>{head}<tbody>{''.join(rows)}</table>")
