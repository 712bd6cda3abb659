"""A run as one page for people: what was expected, what came, and when. Needs the extra ``lab``.

The page holds all that it needs, Plotly too, and asks for nothing from anywhere: it can be kept, sent and
read offline. Without JavaScript it lacks the plots and nothing else.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from ._figures import Figure, lasting, waits
from ._recording import Recording
from ._result import Result
from ._timeline import timeline

MOST_STUCK = 200
"""Tasks in the list of those that are stuck."""
MOST_LISTED = 100
"""Moments in the table."""


def write_report(path: str | os.PathLike[str], result: Result, recording: Recording) -> None:
    """Write a run as one HTML page, which fetches nothing.

    What is drawn is bounded, so that the page stays quick after long runs; it says what was left out. The
    same run, with the same version of Plotly, gives the same bytes. Does not suspend; blocks while it writes.

    :raises OSError: if the file cannot be written
    """
    figures = {"timeline": timeline(recording, result.duration)}
    if recording.waits:
        figures["waits"] = waits(recording)
    template = Template(Path(__file__).with_name("_page.html").read_text(encoding="utf-8"))
    plots = [
        {"id": name, "data": figure.data, "layout": figure.layout, "wide": figure.wide, "narrow": figure.narrow}
        for name, figure in figures.items()
    ]
    page = template.substitute(
        title=_text(f"{result.scenario}: {'passed' if result.passed else 'failed'}"),
        body=_body(result, recording, figures),
        plotly=get_plotlyjs(),
        plots=json.dumps(plots, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
    Path(path).write_text(page, encoding="utf-8", errors="replace", newline="\n")


def _body(result: Result, recording: Recording, figures: dict[str, Figure]) -> str:
    parts = [_header(result), _verdicts(result), _stuck(result)]
    parts.append(_plot("timeline", "What happened when", figures["timeline"], _how_to_zoom()))
    if "waits" in figures:
        parts.append(_plot("waits", "How long callers waited", figures["waits"], _about_waits(recording.waits)))
    elif result.log_sha256:
        parts.append(_section("How long callers waited", "<p>Nobody had to wait.</p>"))
    rows = [
        f"<tr><th scope=row>{_text(name)}<td class=number>{_number(value)}"
        for name, value in result.figures.items()
    ]
    if rows:
        parts.append(_section("Figures", f"<table class=figures><tbody>{''.join(rows)}</table>"))
    parts.append(_moments(recording))
    return "\n".join(filter(None, parts))


def _header(result: Result) -> str:
    broken = len(result.broken)
    words = f"Failed: {broken} of {len(result.verdicts)} expectations broken" if broken else "Passed"
    if result.passed:
        words += ": every expectation holds" if result.verdicts else ": nothing was expected"
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
    digest = f"<div class=all><dt>SHA-256 of the event log<dd><code>{_text(result.log_sha256)}</code></div>"
    if not result.log_sha256:
        del facts["Events"]
        digest = ""
    listed = "".join(f"<div><dt>{_text(name)}<dd>{_text(value)}</div>" for name, value in facts.items())
    return (
        f"<header><h1>{_text(result.scenario)}</h1>"
        f"<div class='verdict {'good' if result.passed else 'bad'}' id=verdict>{words}</div>"
        f"<p>{_text(result.about)}</p><dl>{listed}{digest}</dl></header>"
    )


def _verdicts(result: Result) -> str:
    rows = []
    for verdict in result.verdicts:
        outcome = "<span class=good>holds</span>"
        if verdict.broken_by is not None:
            outcome = f"<strong class=bad>broken</strong><br>{_text(verdict.broken_by)}"
        rows.append(f"<tr><td>{_text(verdict.expected)}<td>{_text(verdict.came)}<td>{outcome}")
    if not rows:
        return ""
    head = "<thead><tr><th scope=col>Expected<th scope=col>Came<th scope=col>Outcome</thead>"
    return _section("What was expected", f"<table>{head}<tbody>{''.join(rows)}</table>")


def _stuck(result: Result) -> str:
    if not result.stuck:
        return ""
    listed = "".join(f"<li>{_text(line)}" for line in result.stuck[:MOST_STUCK])
    more = len(result.stuck) - MOST_STUCK
    rest = f"<p class=note>And {more:,} more.</p>" if more > 0 else ""
    told = "<p>Every task waits, and nothing is left that could end it.</p>"
    return _section("Where the run was stuck", f"{told}<ol class=stuck>{listed}</ol>{rest}")


def _plot(name: str, title: str, figure: Figure, told: str) -> str:
    legend = "".join(
        f"<li><i style='background:{colour}'></i>{_text(what)}" for what, colour in figure.legend.items()
    )
    return _section(
        title,
        f"{told}{_notes(figure.notes)}"
        + (f"<ul class=legend>{legend}</ul>" if legend else "")
        + f"<div class=plot id={name}><noscript><p class=note>The plot needs JavaScript.</p></noscript></div>",
    )


def _notes(notes: Iterable[str]) -> str:
    told = " ".join(_text(note) for note in notes)
    return f"<p class=note>{told}</p>" if told else ""


def _how_to_zoom() -> str:
    return "<p class=note>Drag to the side to zoom into a time; double-click to see all again.</p>"


def _about_waits(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    count = len(ordered)
    half, most = (ordered[math.ceil(count * share) - 1] for share in (0.5, 0.99))
    return (
        f"<p>{count:,} waited: half of them at most {lasting(half)}, 99 % at most {lasting(most)}, "
        f"the longest {lasting(ordered[-1])}.</p>"
    )


def _moments(recording: Recording) -> str:
    if not recording.moments:
        return ""
    listed = recording.moments[:MOST_LISTED]
    rows = [
        f"<tr><td class=when>{moment.time:.6f} s<td>{_text(moment.row)}<td>{_text(moment.text)}"
        for moment in listed
    ]
    head = "<thead><tr><th scope=col>When<th scope=col>Where<th scope=col>What</thead>"
    left = [f"The first {len(listed)} of {len(recording.moments):,}."] * (len(listed) < len(recording.moments))
    return _section("What happened at once", f"{_notes(left)}<table>{head}<tbody>{''.join(rows)}</table>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _number(value: float) -> str:
    whole = math.isfinite(value) and value == int(value)
    return f"{int(value):,}" if whole else f"{value:,.6g}"


def _text(text: str) -> str:
    return html.escape(text)
