"""The timeline of the report: who did what when, and under it how many objects there were."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._bounds import longest, thinned, waiting_longest
from ._figures import APART, BOTTOM, COLOURS, TOP, Figure, common, lasting, plain
from ._recording import Recording, Span
from ._rows import by_row, in_lanes

MOST_TASKS = 60
MOST_OTHERS = 20
"""Rows of the worker, of the caches, and of moments that belong to none."""
MOST_SPANS = 10_000
MOST_LANES = 6
MOST_MOMENTS = 500
MOST_POINTS = 2_000
MOST_COUNTERS = 12

OTHER_COLOURS = ("#c4609a", "#b08d57", "#5fa8a0", "#a0a03c")
ROW, COUNTS, PAGES, GAP = 19, 170, 120, 46
"""Heights in pixels."""
WIDE, NARROW = 26, 12
"""Letters of a row's name on wide and narrow screens."""


@dataclass(slots=True)
class _Rows:
    """Rows from the top to the bottom, some of them just headings, and what is on them."""

    labels: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    """Of the rows of spans, by name. A task has it before a cache of the same name."""
    headings: set[int] = field(default_factory=set)
    bars: list[tuple[Span, float, float]] = field(default_factory=list)
    """Where on the vertical axis, and how high."""

    def head(self, text: str) -> None:
        self.headings.add(len(self.labels))
        self.labels.append(text)

    def add(self, row: str) -> int:
        self.labels.append(row)
        place = len(self.labels) - 1
        self.places.setdefault(row, place)
        return place

    def short(self, most: int) -> list[str]:
        return [
            f"<b>{text}</b>" if n in self.headings else plain(text, most) for n, text in enumerate(self.labels)
        ]


def timeline(recording: Recording, duration: float) -> Figure:
    """Tasks, worker, caches and moments as rows over time; under them the counters, on an axis that follows."""
    figure = Figure()
    rows = _Rows()
    _add_spans(figure, rows, "Tasks", recording.tasks, MOST_TASKS)
    _add_spans(figure, rows, "Worker", recording.worker, MOST_OTHERS)
    _add_spans(figure, rows, "Caches", recording.caches, MOST_OTHERS)
    _draw_bars(figure, rows)
    _draw_moments(figure, rows, recording)
    counters = dict(list(recording.counters.items())[:MOST_COUNTERS])
    _leave_out(figure, len(counters), len(recording.counters), "counters", "the first")
    spans = (*recording.tasks, *recording.worker, *recording.caches)
    end = max((duration, *(span.end for span in spans))) or 1.0
    groups = [[name for name in counters if ("pages" in name) is pages] for pages in (False, True)]
    plots = [(title, names) for title, names in zip(("Objects", "Pages"), groups, strict=True) if names]
    for number, (_, names) in enumerate(plots, 2):
        for name in names:
            _draw_counter(figure, name, counters[name], f"y{number}", duration)
    _lay_out(figure, rows, [title for title, _ in plots], end)
    return figure


def _leave_out(figure: Figure, shown: int, there: int, what: str, which: str) -> None:
    if shown < there:
        figure.notes.append(f"{shown:,} of {there:,} {what} shown: {which}.")


def _add_spans(figure: Figure, rows: _Rows, heading: str, spans: list[Span], most: int) -> None:
    there = by_row(spans)
    shown = waiting_longest(there, most)
    if shown:
        rows.head(heading)
    tasks = heading == "Tasks"
    which = "those that waited longest" if tasks else "the first"
    _leave_out(figure, len(shown), len(there), "tasks" if tasks else f"rows of the {heading.lower()}", which)
    for row, mine in shown.items():
        place = rows.add(row)
        placed = [(span, min(lane, MOST_LANES - 1)) for span, lane in in_lanes(mine)]
        lanes = max(lane for _, lane in placed) + 1
        height = 0.84 / lanes
        rows.bars += [(span, place - 0.42 + (lane + 0.5) * height, height) for span, lane in placed]


def _draw_bars(figure: Figure, rows: _Rows) -> None:
    """A trace for each kind, in the order of the colours."""
    drawn = longest(rows.bars, MOST_SPANS, lambda bar: bar[0].end - bar[0].start)
    _leave_out(figure, len(drawn), len(rows.bars), "spans of these rows", "the longest")
    kinds: dict[str, list[tuple[Span, float, float]]] = {}
    for bar in drawn:
        kinds.setdefault(bar[0].kind, []).append(bar)
    for kind in sorted(kinds, key=list(COLOURS).index):
        bars = kinds[kind]
        colour = figure.legend[kind] = COLOURS[kind]
        figure.data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "base": [span.start for span, _, _ in bars],
                "x": [span.end - span.start for span, _, _ in bars],
                "y": [round(place, 4) for _, place, _ in bars],
                "width": [round(height, 4) for _, _, height in bars],
                "hovertext": [_tell(span) for span, _, _ in bars],
                "hoverinfo": "text",
                "marker": {"color": colour, "line": {"width": 0.5, "color": colour}},
            }
        )


def _tell(span: Span) -> str:
    lines = [
        f"<b>{plain(span.row, 60)}</b>",
        f"{span.kind} {lasting(span.end - span.start)}",
        f"{span.start:.6g} s to {span.end:.6g} s",
    ]
    return "<br>".join(lines + [plain(span.detail, 60)] * bool(span.detail))


def _draw_moments(figure: Figure, rows: _Rows, recording: Recording) -> None:
    """On the row of the same name; those that have none, on rows of their own."""
    known = {span.row for span in (*recording.tasks, *recording.worker, *recording.caches)}
    strangers = [row for row in dict.fromkeys(moment.row for moment in recording.moments) if row not in known]
    if strangers:
        rows.head("Moments")
    for row in strangers[:MOST_OTHERS]:
        rows.add(row)
    drawn = [moment for moment in recording.moments if moment.row in rows.places][:MOST_MOMENTS]
    _leave_out(figure, len(drawn), len(recording.moments), "moments", "the first on these rows")
    if drawn:
        figure.legend["moment"] = COLOURS["moment"]
        figure.data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "moment",
                "x": [moment.time for moment in drawn],
                "y": [rows.places[moment.row] for moment in drawn],
                "hovertext": [
                    f"<b>{plain(moment.row, 60)}</b><br>{plain(moment.text, 80)}<br>at {moment.time:.6g} s"
                    for moment in drawn
                ],
                "hoverinfo": "text",
                "marker": {"symbol": "diamond", "size": 9, "color": COLOURS["moment"]},
            }
        )


def _draw_counter(figure: Figure, name: str, given: list[tuple[float, float]], axis: str, end: float) -> None:
    points = thinned(given, MOST_POINTS)
    _leave_out(figure, len(points), len(given), f"points of {name!r}", "each least and greatest is among them")
    points += [(end, points[-1][1])] if points and points[-1][0] < end else []
    others = [name for name in figure.legend if name not in COLOURS]
    colour = COLOURS.get(name, OTHER_COLOURS[len(others) % len(OTHER_COLOURS)])
    figure.legend[name] = colour
    figure.data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": plain(name, 60),
            "x": [time for time, _ in points],
            "y": [value for _, value in points],
            "xaxis": "x2",
            "yaxis": axis,
            "line": {"shape": "hv", "width": 2, "color": colour},
            "hovertemplate": "%{y:,} %{fullData.name}<br>at %{x:.6g} s<extra></extra>",
        }
    )


def _lay_out(figure: Figure, rows: _Rows, titles: list[str], end: float) -> None:
    heights = [ROW * max(2, len(rows.labels)), *(COUNTS if title == "Objects" else PAGES for title in titles)]
    inner = sum(heights) + GAP * len(titles)
    figure.layout = common(TOP + inner + BOTTOM) | {
        "barmode": "overlay",
        "xaxis": {"side": "top", "anchor": "y", "range": [0, end], "ticksuffix": " s"},
        "yaxis": {
            "range": [len(rows.labels) - 0.5, -0.5],
            "tickvals": list(range(len(rows.labels))),
            "tickfont": {"family": "ui-monospace, Menlo, Consolas, monospace", "size": 11},
        },
        "annotations": [],
    }
    top = float(inner)
    for number, (title, height) in enumerate(zip(["", *titles], heights, strict=True), 1):
        axis = figure.layout.setdefault("yaxis" if number == 1 else f"yaxis{number}", {"rangemode": "tozero"})
        axis |= {"domain": [max(0.0, (top - height) / inner), top / inner], "fixedrange": True, "zeroline": False}
        if title:
            axis |= {"nticks": 5, "anchor": "x2"} | APART
            label = {"text": f"<b>{title}</b>", "x": 0, "xanchor": "left", "y": top / inner, "yanchor": "bottom"}
            place = {"xref": "paper", "yref": "paper", "showarrow": False}
            figure.layout["annotations"].append(label | place)
        top -= height + GAP
    if titles:
        last = {"anchor": f"y{len(titles) + 1}", "matches": "x", "range": [0, end], "ticksuffix": " s"} | APART
        figure.layout["xaxis2"] = last
    for screen, most in ((figure.wide, WIDE), (figure.narrow, NARROW)):
        letters = max((min(most, len(label)) for label in rows.labels), default=0)
        screen |= {"yaxis.ticktext": rows.short(most), "margin.l": round(14 + 6.7 * max(4, letters))}
