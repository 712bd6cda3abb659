"""The timeline on a scenario's page: who did what when, with the numbers of objects below."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .._scenario._recording import Recording, Span
from ._bounds import longest, thinned, waiting_longest
from ._charts import Area, Bar, changes, chart, legend, row_label, shade, times
from ._figures import COLOURS, counted, lasting, nice, notes, other_colour, plain
from ._rows import by_row, in_lanes

MOST_TASKS = 60
MOST_OTHERS = 20
"""Most rows of the worker, of the caches, and of other moments."""
MOST_SPANS = 3_000
MOST_LANES = 6
MOST_MOMENTS = 500
MOST_POINTS = 18_000
"""Over all counters."""
MOST_COUNTERS = 12
FLAT = 0.05
"""A counter that varies by no more than this share of its maximum is not drawn."""

ROW, COUNTS = 20, 150
"""Heights in pixels."""
WIDE, NARROW = 26, 12
"""Characters of a row's name on wide and narrow screens."""
Stall = tuple[float, float, str]
"""Begin, end, and description."""


@dataclass(slots=True)
class _Rows:
    """The rows from top to bottom, including headings, and what is on them."""

    labels: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    """The row of each name. A task takes precedence over a cache of the same name."""
    bars: list[tuple[Span, float, float]] = field(default_factory=list)
    """Position from the top and height, in pixels."""
    left_out: list[str] = field(default_factory=list)
    """What was left out, in sentences."""

    def head(self, words: str) -> None:
        self.labels.append(f'<span class="row head" style="top:{(len(self.labels) + 0.5) * ROW}px">{words}</span>')

    def add(self, row: str) -> int:
        place = len(self.labels)
        self.labels.append(row_label(row, (place + 0.5) * ROW, WIDE, NARROW))
        self.places.setdefault(row, place)
        return place

    def leave_out(self, shown: int, there: int, what: str, which: str) -> None:
        if shown < there:
            self.left_out.append(f"{shown:,} of {there:,} {what} shown: {which}.")


def timeline(recording: Recording, duration: float) -> str:
    """Tasks, worker, caches and moments as rows over time, and below them the counters."""
    spans = (*recording.tasks, *recording.worker, *recording.caches)
    end = max((duration, *(span.end for span in spans))) or 1.0
    stalls = _stalls(recording)
    rows = _Rows()
    _add_spans(rows, "Tasks", recording.tasks, MOST_TASKS)
    _add_spans(rows, "Worker", recording.worker, MOST_OTHERS)
    _add_spans(rows, "Caches", recording.caches, MOST_OTHERS)
    area = Area(0, "Who did what when; the tables below say the same as text")
    strangers = _add_strangers(rows, recording)
    area.height = ROW * max(2, len(rows.labels))
    area.labels = rows.labels
    shade(area, stalls, COLOURS["stuck"], "stuck")
    kinds = _draw_bars(area, rows)
    dots = _draw_moments(area, rows, recording)
    told = legend(kinds) + (
        "<p class=note>A dot is a moment: something that happened at one point in time.</p>" if dots else ""
    )
    shaded = (
        ["Shaded: no slab arrives. A grow is stuck, or a cache is DEADLOCKED: its slab is late."] if stalls else []
    )
    if recording.caches:
        shaded.append("In capitals: the marks of a cache.")
    parts = [told, times(end), area.html(end), *_counters(rows, recording, duration, end, stalls)]
    if strangers:
        rows.leave_out(MOST_OTHERS, strangers, "rows of moments", "the first")
    return notes(shaded + rows.left_out) + chart(end, parts)


def _stalls(recording: Recording) -> list[Stall]:
    """When no slab arrived in time: a grow was stuck, or a cache DEADLOCKED. Overlapping intervals are merged."""
    late = [span for span in recording.worker if span.kind == "stuck"]
    late += [span for span in recording.caches if span.kind == "DEADLOCKED"]
    merged: list[tuple[float, float]] = []
    for span in sorted(late, key=lambda span: span.start):
        if merged and span.start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.end))
        else:
            merged.append((span.start, span.end))
    return [(begin, end, f"no slab arrives for {lasting(end - begin)}") for begin, end in merged[:MOST_MOMENTS]]


def _add_spans(rows: _Rows, heading: str, spans: list[Span], most: int) -> None:
    there = by_row(spans)
    shown = waiting_longest(there, most)
    if shown:
        rows.head(heading)
    tasks = heading == "Tasks"
    which = "those that waited longest" if tasks else "the first"
    rows.leave_out(len(shown), len(there), "tasks" if tasks else f"rows of the {heading.lower()}", which)
    for row, mine in shown.items():
        top = rows.add(row) * ROW + 0.08 * ROW
        placed = [(span, min(lane, MOST_LANES - 1)) for span, lane in in_lanes(mine)]
        height = 0.84 * ROW / (max(lane for _, lane in placed) + 1)
        rows.bars += [(span, top + lane * height, height) for span, lane in placed]


def _draw_bars(area: Area, rows: _Rows) -> dict[str, str]:
    """Draw a group per kind. Returns the colours used, in order."""
    drawn = longest(rows.bars, MOST_SPANS, lambda bar: bar[0].end - bar[0].start)
    rows.leave_out(len(drawn), len(rows.bars), "spans of these rows", "the longest")
    kinds: dict[str, list[Bar]] = {}
    for span, top, height in drawn:
        kinds.setdefault(span.kind, []).append(Bar(span.start, span.end, top, height, _tell(span)))
    ordered = sorted(kinds, key=list(COLOURS).index)
    for kind in ordered:
        area.bars(kinds[kind], COLOURS[kind])
    return {kind: COLOURS[kind] for kind in ordered}


def _tell(span: Span) -> str:
    told = f"{plain(span.row, 60)}: {span.kind} {lasting(span.end - span.start)}"
    told += f", {span.start:.6g} s to {span.end:.6g} s"
    return f"{told}; {plain(span.detail, 60)}" if span.detail else told


def _add_strangers(rows: _Rows, recording: Recording) -> int:
    """Add rows for moments without a row of spans. Returns how many there were, if that was too many."""
    known = {span.row for span in (*recording.tasks, *recording.worker, *recording.caches)}
    strangers = [row for row in dict.fromkeys(moment.row for moment in recording.moments) if row not in known]
    if strangers:
        rows.head("Moments")
    for row in strangers[:MOST_OTHERS]:
        rows.add(row)
    return len(strangers) if len(strangers) > MOST_OTHERS else 0


def _draw_moments(area: Area, rows: _Rows, recording: Recording) -> int:
    """Draw moments on the row of the same name."""
    drawn = [moment for moment in recording.moments if moment.row in rows.places][:MOST_MOMENTS]
    rows.leave_out(len(drawn), len(recording.moments), "moments", "the first on these rows")
    dots = [
        (
            moment.time,
            (rows.places[moment.row] + 0.5) * ROW,
            f"{plain(moment.row, 60)}: {plain(moment.text, 80)} at {moment.time:.6g} s",
        )
        for moment in drawn
    ]
    if dots:
        area.dots(dots)
    return len(dots)


def _counters(rows: _Rows, recording: Recording, duration: float, end: float, stalls: list[Stall]) -> list[str]:
    """Objects in one area, pages in another. Counters that hardly change are listed, not drawn."""
    moving, flat = {}, []
    for name, given in recording.counters.items():
        values = [value for _, value in given if math.isfinite(value)]
        least, most = min(values, default=0.0), max(values, default=0.0)
        if most - least > FLAT * most:
            moving[name] = given
        elif values:
            flat.append(f"{name} ({counted(least)}{f' to {counted(most)}' if most > least else ''})")
    parts = []
    counters = dict(list(moving.items())[:MOST_COUNTERS])
    rows.leave_out(len(counters), len(moving), "counters", "the first")
    colours = _colours(counters)
    for unit in ("objects", "pages"):
        names = [name for name in counters if ("pages" in name) == (unit == "pages")]
        if not names:
            continue
        top = max(value for name in names for _, value in counters[name] if math.isfinite(value)) * 1.05
        area = Area(COUNTS, f"{', '.join(names)}, in {unit}, over time")
        area.scale(top, nice(top, 4, whole=True))
        shade(area, stalls, COLOURS["stuck"], "stuck")
        for name in names:
            area.steps(
                name,
                _points(rows, name, counters[name], MOST_POINTS // len(counters), duration),
                top,
                colours[name],
            )
        units = dict.fromkeys(names, unit)
        parts += [f"<h3>{unit.title()}</h3>", legend({name: colours[name] for name in names}, units)]
        parts += [area.html(end), times(end)]
    if flat:
        parts.append(notes([f"Not drawn because it hardly changes: {', '.join(flat)}."]))
    return parts


def _points(
    rows: _Rows, name: str, given: list[tuple[float, float]], most: int, end: float
) -> list[tuple[float, float]]:
    points = thinned(changes(given), most)
    rows.leave_out(
        len(points), len(changes(given)), f"points of {name!r}", "every minimum and maximum is among them"
    )
    return points + [(end, points[-1][1])] * (points[-1][0] < end)


def _colours(names: dict[str, list[tuple[float, float]]]) -> dict[str, str]:
    """The colour of each counter: its own if it has one, otherwise a distinct one."""
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = [colour for colour in map(other_colour, range(8)) if colour not in taken] or list(taken)
    others = [name for name in names if name not in COLOURS]
    return {name: COLOURS.get(name) or free[others.index(name) % len(free)] for name in names}
