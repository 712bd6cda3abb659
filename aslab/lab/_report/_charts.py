"""Charts over time as inline SVG, with no library, network or JavaScript needed.

Each area is a separate SVG whose units are seconds across and pixels down. The browser stretches it to the
width of the screen; all text is HTML beside it, so that it is not stretched. To zoom, the script of the page
changes the ``viewBox`` of all areas of a chart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ._figures import counted, lasting, nice, plain, text

Points = Sequence[tuple[float, float]]
EDGE = 2
"""Pixels above and below a curve, so that its line is not clipped."""
MARKS = 8
"""About how many round times an axis has; a narrow screen shows half of them."""


class Bar(NamedTuple):
    """A stretch of time, drawn as a bar."""

    start: float
    end: float
    top: float
    """Pixels from the top of the area."""
    height: float
    told: str = ""
    """The tooltip: HTML without tags."""


@dataclass(slots=True)
class Area:
    """One plot of a given height."""

    height: int
    about: str
    """The text alternative, for screen readers."""
    shapes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """The labels to its left."""
    says: str = ""
    """Large text in its middle."""
    across: list[float] = field(default_factory=list)
    """Where horizontal grid lines are, in pixels from the top."""

    def bars(self, bars: Iterable[Bar], colour: str, look: str = "bar") -> None:
        """Draw rectangles of one colour."""
        drawn = "".join(
            f'<rect x="{bar.start:.7g}" y="{bar.top:.4g}" width="{max(0.0, bar.end - bar.start):.7g}" '
            f'height="{bar.height:.4g}"><title>{bar.told}</title></rect>'
            for bar in bars
        )
        self.shapes.append(f'<g class="{look}" style="--c:{colour}">{drawn}</g>')

    def dots(self, dots: Iterable[tuple[float, float, str]], look: str = "dot") -> None:
        """Draw moments: time, pixels from the top, tooltip. Each is a line of zero length."""
        drawn = "".join(f'<path d="M{x:.7g} {y:.4g}h0"><title>{told}</title></path>' for x, y, told in dots)
        self.shapes.append(f'<g class="{look}">{drawn}</g>')

    def scale(self, top: float, values: Iterable[float]) -> None:
        """Label the values on the left; 0 is at the bottom, ``top`` at the top."""
        for value in values:
            down = self.height - EDGE - (self.height - 2 * EDGE) * value / top
            self.across.append(down)
            self.labels.append(f'<span style="top:{down:.4g}px">{counted(value)}</span>')

    def steps(self, name: str, points: Points, top: float, colour: str, look: str = "line") -> None:
        """Draw a step curve. Its path holds the exact values, which the script shows."""
        first, *rest = points
        path = f"M{first[0]:.7g} {first[1]:.7g}" + "".join(f"H{x:.7g}V{y:.7g}" for x, y in rest)
        fill = f"M{first[0]:.7g} 0V{path.partition(' ')[2]}V0Z" if "filled" in look else ""
        scale = f'transform="matrix(1 0 0 {-(self.height - 2 * EDGE) / top:.7g} 0 {self.height - EDGE})"'
        area = f'<path class=fill d="{fill}"/>' if fill else ""
        line = f'<path class=step data-of="{text(name)}" d="{path}"/>'
        self.shapes.append(f'<g class="{look}" style="--c:{colour}" {scale}>{area}{line}</g>')

    def html(self, end: float, upright_at: Iterable[float] | None = None) -> str:
        """The area with its labels, from 0 to ``end`` seconds; vertical lines mark round times."""
        says = f"<b class=says>{text(self.says)}</b>" if self.says else ""
        across = "".join(f"M0 {down:.4g}H{end:.7g}" for down in self.across)
        upright = "".join(f"M{time:.7g} 0V{self.height}" for time in upright_at or nice(end, MARKS))
        return (
            f'<div class=area style="height:{self.height}px"><div class=labels>{"".join(self.labels)}</div>'
            f'<div class=plot><svg viewBox="0 0 {end:.7g} {self.height}" preserveAspectRatio=none role=img '
            f'aria-label="{text(self.about)}"><path class="grid across" d="{across}"/>'
            f'<path class="grid upright" d="{upright}"/>{"".join(self.shapes)}</svg>{says}</div></div>'
        )


def times(end: float) -> str:
    """The time axis, for below or above an area."""
    return axis((time / end, f"{time:g} s") for time in nice(end, MARKS))


def axis(marks: Iterable[tuple[float, str]], look: str = "times") -> str:
    """Text below an area, each at a fraction of its width; those at the ends stay inside."""
    words = ""
    for share, told in marks:
        place = "first" if share < 0.03 else "last" if share > 0.97 else "within"
        words += f"<span class={place} style='left:{share:.4%}'>{told}</span>"
    return f'<div class="{look}" aria-hidden=true><div>{words}</div></div>'


def row_label(name: str, down: float, wide: int, narrow: int) -> str:
    """The label of a row, shortened on a narrow screen."""
    long, short = plain(name, wide), plain(name, narrow)
    words = long if long == short else f"<b class=wide>{long}</b><b class=narrow>{short}</b>"
    return f'<span class=row style="top:{down:.4g}px">{words}</span>'


def caption(words: str) -> str:
    """The caption of the area below it."""
    return f"<p class=caption>{words}</p>"


def legend(colours: dict[str, str], units: dict[str, str] | None = None) -> str:
    """A legend of colours; with units, it has a place for the value under the pointer."""
    reads = {
        name: f" <output data-of='{text(name)}' data-unit='{text(unit)}'></output>"
        for name, unit in (units or {}).items()
    }
    listed = "".join(
        f"<li><i style='background:{colour}'></i>{text(what)}{reads.get(what, '')}"
        for what, colour in colours.items()
    )
    return f"<ul class=legend>{listed}</ul>" if listed else ""


def chart(end: float, parts: Iterable[str], looks: dict[str, tuple[float, float]] | None = None) -> str:
    """Areas and axes stacked vertically, which zoom together.

    :param looks: intervals to choose from, by name
    """
    chosen = "".join(
        f'<button type=button data-from="{begin:.7g}" data-to="{finish:.7g}">{text(name)}</button>'
        for name, (begin, finish) in {**(looks or {}), f"all {lasting(end)}": (0.0, end)}.items()
    )
    tools = f"<p class=tools hidden><span>Show</span> {chosen}<span class=hint></span></p>"
    return f'<div class=chart data-end="{end:.7g}">{tools}{"".join(parts)}</div>'


def shade(area: Area, spans: Iterable[tuple[float, float, str]], colour: str, look: str) -> None:
    """Shade intervals over the whole height, behind what is drawn later."""
    area.bars([Bar(begin, end, 0, area.height, told) for begin, end, told in spans], colour, f"shade {look}")


def changes(points: Points) -> Points:
    """Drop points that change nothing, except the last."""
    kept = [points[0]] if points else []
    kept += [point for before, point in itertools.pairwise(points) if point[1] != before[1]]
    return kept
