"""A story as one page: which machine gets stuck, what each did over time, who waits on whom, and a glossary.

It knows no machines and no terms: each story provides them as a `Tale`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .._scenario._recording import Span
from ._bounds import thinned
from ._charts import Area, caption, changes, chart, shade, times
from ._figures import COLOURS, counted, lasting, nice, notes, other_colour, plain, text
from ._frame import section, write_page
from ._ring import TIP, ring

MOST_POINTS = 1_000
LOW = 60
"""In pixels: a lower area has only two numbers beside it."""
MOST_SPANS = 500
"""Per machine."""
Outcome = Literal["good", "poor", "bad"]
SIGNS: dict[Outcome, str] = {"good": "✓", "poor": "!", "bad": "✕"}
"""So that outcomes differ by more than colour."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A counter in every machine's chart, on the same scale for all."""

    name: str
    """Its key in `Entry.counters`."""
    unit: str
    height: int
    """Pixels."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the page shows of one machine."""

    name: str
    about: str
    outcome: Outcome
    verdict: str
    """The outcome in a few words."""
    cells: dict[str, str]
    """Its cells in the first table, by heading."""
    more: dict[str, str]
    """Its cells in the second table, further down."""
    time: float
    """Seconds until the run that is drawn finished, or was given up."""
    finished: bool
    """Whether that run finished."""
    spans: Sequence[Span] = ()
    counters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    cycle: tuple[str, ...] = ()
    surprise: str = ""
    """What was expected of it instead; empty if it ended as expected."""


@dataclass(frozen=True, slots=True)
class Tale:
    """Everything the page says."""

    title: str
    question: str
    about: str
    seed: int
    """The seed of the runs that are drawn."""
    machines: Sequence[Entry]
    curves: Sequence[Curve]
    how_to_read: Sequence[str]
    """Sentences specific to this story."""
    parts: dict[str, str] = field(default_factory=dict)
    """What each node of a cycle does, by its name or the first word of it."""
    terms: dict[str, str] = field(default_factory=dict)
    more: str = ""
    """The explanation of the second table."""
    looks: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Intervals worth a closer look, by name."""
    facts: dict[str, str] = field(default_factory=dict)


def write_tale(path: str | os.PathLike[str], tale: Tale) -> None:
    """Write the page, which fetches nothing; well under 1 MB for ten machines.

    The amount drawn is bounded. The same tale gives the same bytes. Does not suspend; blocks while it writes.

    :raises OSError: if the file cannot be written
    """
    parts = [_header(tale), _table(tale), _charts(tale), _rings(tale), _second_table(tale), _terms(tale)]
    write_page(path, f"{tale.title}: {tale.question}", "\n".join(filter(None, parts)))


def _header(tale: Tale) -> str:
    stuck = [one.name for one in tale.machines if one.outcome == "bad"]
    others = len(tale.machines) - len(stuck)
    if not stuck:
        answer = "None does: every run finishes."
    else:
        rest = {0: "There is no other machine.", 1: "The other one finishes."}.get(
            others, f"The other {others} finish."
        )
        answer = f"{'Only ' * (len(stuck) == 1 < len(tale.machines))}{_listed(stuck)}. {rest}"
    surprises = [
        f"<p class=bad><strong>! {text(one.name)}: {text(one.surprise)}</strong>"
        for one in tale.machines
        if one.surprise
    ]
    facts = "".join(f"<span><b>{text(name)}</b> {text(value)}</span>" for name, value in tale.facts.items())
    return (
        f"<header><p class=kicker>{text(tale.title)}</p><h1>{text(tale.question)}</h1>"
        f"<p class=answer id=answer>{text(answer)}</p><p class=lead>{text(tale.about)}</p>"
        f"{''.join(surprises)}<p class=facts>{facts}</p></header>"
    )


def _listed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def mark(outcome: Outcome, words: str) -> str:
    """An outcome as text, with its colour and sign."""
    return f'<span class="mark {outcome}"><b aria-hidden=true>{SIGNS[outcome]}</b> {text(words)}</span>'


def _name(number: int, name: str) -> str:
    return f"<span><i class=key style='background:{other_colour(number)}'></i>{text(name)}</span>"


def _rows(tale: Tale, cells: Sequence[dict[str, str]]) -> str:
    rows = []
    for number, (one, mine) in enumerate(zip(tale.machines, cells, strict=True)):
        verdict = f"<td class=outcome>{mark(one.outcome, one.verdict)}" if mine is one.cells else ""
        values = "".join(
            f"<td class=number data-label='{text(name)}'>{text(value)}" for name, value in mine.items()
        )
        rows.append(f"<tr><th scope=row>{_name(number, one.name)}{verdict}{values}")
    verdict = "<th scope=col>Verdict" if cells[0] is tale.machines[0].cells else ""
    heads = "".join(f"<th scope=col class=number>{text(name)}" for name in cells[0])
    head = f"<thead><tr><th scope=col>Machine{verdict}{heads}</thead>"
    return f"<table class=cards>{head}<tbody>{''.join(rows)}</table>"


def _table(tale: Tale) -> str:
    return section("The machines", _rows(tale, [one.cells for one in tale.machines]), "machines")


def _second_table(tale: Tale) -> str:
    if not tale.machines[0].more:
        return ""
    told = f"<p class=note>{text(tale.more)}</p>" if tale.more else ""
    return section("What it took", told + _rows(tale, [one.more for one in tale.machines]), "took")


def _charts(tale: Tale) -> str:
    """A chart per machine, stacked, with the same time axis and scales."""
    end = max(one.time for one in tale.machines) * 1.02 or 1.0
    tops = {
        curve.name: max(
            (value for one in tale.machines for _, value in one.counters.get(curve.name, [])), default=0
        )
        for curve in tale.curves
    }
    left_out: list[str] = []
    parts = [_one_chart(tale, number, tops, end, left_out) for number in range(len(tale.machines))]
    common = [
        "All charts have the same time and the same scales.",
        "The dotted line is where a machine finished.",
    ]
    if not all(one.finished for one in tale.machines):
        common.append("Shaded: the machine is stuck. Nothing can happen any more, so the shading has no end.")
    how = "".join(f"<li>{text(one)}" for one in (*tale.how_to_read, *common))
    told = f"<details open><summary>How to read this</summary><ul>{how}</ul></details>{notes(left_out)}"
    looks = {name: (begin, min(finish, end)) for name, (begin, finish) in tale.looks.items()}
    return section(f"What happened, with seed {tale.seed}", told + chart(end, parts, looks), "charts")


def _one_chart(tale: Tale, number: int, tops: dict[str, float], end: float, left_out: list[str]) -> str:
    one = tale.machines[number]
    spans = [span for span in one.spans if span.start < end]
    if len(spans) > MOST_SPANS:
        left_out.append(f"{MOST_SPANS:,} of {len(spans):,} spans of {one.name} shown: the first.")
    areas: list[str] = []
    for curve in tale.curves:
        given = one.counters.get(curve.name, [])
        last = one.time if one.finished else end
        points = [point for point in thinned(changes(given), MOST_POINTS) if point[0] <= last]
        if not points or not tops[curve.name]:
            continue
        most = max(value for _, value in points)
        name = f"{one.name}: {curve.name}"
        said = f"at most {counted(most)}" if most else "none"
        read = f"<output data-of='{text(name)}' data-unit='{text(curve.unit)}'>{said}</output>"
        area = Area(curve.height, f"{name} over time; {said}")
        top = tops[curve.name]
        area.scale(top * 1.08, nice(top, 3, whole=True) if curve.height >= LOW else (0, top))
        _shades(area, one, spans[:MOST_SPANS], end)
        points.append((last, points[-1][1]))
        area.says = "stuck" * (not one.finished and not areas)
        area.steps(name, points, top * 1.08, other_colour(number), "line filled")
        if one.finished:
            area.shapes.append(f'<path class=done d="M{one.time:.7g} 0V{curve.height}"/>')
        areas.append(caption(f"{text(curve.name)}: {read}") + area.html(end))
    words = f"finished after {lasting(one.time)}" if one.finished else "stuck"
    return (
        f"<div class=machine><h3>{_name(number, one.name)} {mark('good' if one.finished else 'bad', words)}"
        f"<span class=note>{text(one.about)}</span></h3>{''.join(areas)}{times(end)}</div>"
    )


def _shades(area: Area, one: Entry, spans: Iterable[Span], end: float) -> None:
    """Shade behind the curve; a span still open when the machine is given up extends to the end of the axis."""
    by_kind: dict[str, list[tuple[float, float, str]]] = {}
    for span in spans:
        finish = end if not one.finished and span.end >= one.time else min(span.end, end)
        told = "stuck forever" if span.kind == "stuck" else f"{span.kind}, {lasting(span.end - span.start)}"
        by_kind.setdefault(span.kind, []).append((span.start, finish, told))
    for kind, those in by_kind.items():
        if kind == "stuck":
            shade(area, those, COLOURS["stuck"], "stuck")
        else:
            for half in (0, 1):  # neighbours touch, so every other one is a little darker
                shade(area, those[half::2], COLOURS.get(kind, COLOURS["failed"]), f"band{half}")


def _rings(tale: Tale) -> str:
    """Who waits on whom, for each machine stuck in a cycle."""
    drawn = []
    for number, one in enumerate(tale.machines):
        if not one.cycle:
            continue
        listed = []
        for part in one.cycle:
            told = tale.parts.get(part) or tale.parts.get(part.split()[0], "")
            listed.append(f"<li><code>{plain(part, 60)}</code>{': ' * bool(told)}{text(told)}")
        drawn.append(
            f"<h3>{_name(number, one.name)}</h3><div class=cycle>{ring(one.cycle)}<ol>{''.join(listed)}</ol></div>"
        )
    if not drawn:
        return ""
    told = "<p>An arrow means “waits on”. Follow them and you are back where you started: nobody can go on.</p>"
    return section("Who waits on whom", TIP + told + "".join(drawn), "cycle")


def _terms(tale: Tale) -> str:
    if not tale.terms:
        return ""
    listed = "".join(f"<div><dt>{text(term)}<dd>{text(told)}</div>" for term, told in tale.terms.items())
    return section("Terms", f"<dl class=terms>{listed}</dl>", "terms")
