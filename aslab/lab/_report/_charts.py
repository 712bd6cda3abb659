"""Charts over time as inline SVG: they need no library, no network and no JavaScript.

Each area is an SVG of its own, whose units are seconds across and pixels down. The browser stretches it to
the width of the screen; all words stand beside it, in HTML, so that they are not stretched. To zoom is to
set another ``viewBox``, which the script of the page does, for all areas of a chart alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ._figures import counted, lasting, nice, plain, text

Points = Sequence[tuple[float, float]]
EDGE = 2
"""Pixels above and below a curve, so that half of its line is not cut off."""
MARKS = 8
"""Round times on an axis, about; a narrow screen has half of them."""


class Bar(NamedTuple):
    """Something that lasted."""

    start: float
    end: float
    top: float
    """Pixels from the top of the area."""
    height: float
    told: str = ""
    """What the reader gets who points at it: HTML without tags."""


@dataclass(slots=True)
class Area:
    """One plot, as high as it says."""

    height: int
    about: str
    """For who cannot see it."""
    shapes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """What stands to the left of it."""
    says: str = ""
    """In the middle of it, in large letters."""
    across: list[float] = field(default_factory=list)
    """Pixels from the top where there is a thin line from side to side."""

    def bars(self, bars: Iterable[Bar], colour: str, look: str = "bar") -> None:
        """Rectangles of one colour."""
        drawn = "".join(
            f'<rect x="{bar.start:.7g}" y="{bar.top:.4g}" width="{max(0.0, bar.end - bar.start):.7g}" '
            f'height="{bar.height:.4g}"><title>{bar.told}</title></rect>'
            for bar in bars
        )
        self.shapes.append(f'<g class="{look}" style="--c:{colour}">{drawn}</g>')

    def dots(self, dots: Iterable[tuple[float, float, str]], look: str = "dot") -> None:
        """Something that happened at once: time, pixels from the top, words. They are lines without length."""
        drawn = "".join(f'<path d="M{x:.7g} {y:.4g}h0"><title>{told}</title></path>' for x, y, told in dots)
        self.shapes.append(f'<g class="{look}">{drawn}</g>')

    def scale(self, top: float, values: Iterable[float]) -> None:
        """These numbers to the left; 0 is at the bottom, ``top`` at the top."""
        for value in values:
            down = self.height - EDGE - (self.height - 2 * EDGE) * value / top
            self.across.append(down)
            self.labels.append(f'<span style="top:{down:.4g}px">{counted(value)}</span>')

    def steps(self, name: str, points: Points, top: float, colour: str, look: str = "line") -> None:
        """A curve that keeps each value until the next. Its path has the very values, for the script to tell."""
        first, *rest = points
        path = f"M{first[0]:.7g} {first[1]:.7g}" + "".join(f"H{x:.7g}V{y:.7g}" for x, y in rest)
        fill = f"M{first[0]:.7g} 0V{path.partition(' ')[2]}V0Z" if "filled" in look else ""
        scale = f'transform="matrix(1 0 0 {-(self.height - 2 * EDGE) / top:.7g} 0 {self.height - EDGE})"'
        area = f'<path class=fill d="{fill}"/>' if fill else ""
        line = f'<path class=step data-of="{text(name)}" d="{path}"/>'
        self.shapes.append(f'<g class="{look}" style="--c:{colour}" {scale}>{area}{line}</g>')

    def html(self, end: float, upright_at: Iterable[float] | None = None) -> str:
        """The area with what stands beside it, from 0 to ``end`` seconds; upright lines are at round times."""
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
    """The axis of time, for below an area or above it."""
    return axis((time / end, f"{time:g} s") for time in nice(end, MARKS))


def axis(marks: Iterable[tuple[float, str]], look: str = "times") -> str:
    """Words below an area, each at a share of its width; those at its ends stay within it."""
    words = ""
    for share, told in marks:
        place = "first" if share < 0.03 else "last" if share > 0.97 else "within"
        words += f"<span class={place} style='left:{share:.4%}'>{told}</span>"
    return f'<div class="{look}" aria-hidden=true><div>{words}</div></div>'


def row_label(name: str, down: float, wide: int, narrow: int) -> str:
    """The name of a row, shorter on a narrow screen."""
    long, short = plain(name, wide), plain(name, narrow)
    words = long if long == short else f"<b class=wide>{long}</b><b class=narrow>{short}</b>"
    return f'<span class=row style="top:{down:.4g}px">{words}</span>'


def caption(words: str) -> str:
    """What the area below counts, as HTML."""
    return f"<p class=caption>{words}</p>"


def legend(colours: dict[str, str], units: dict[str, str] | None = None) -> str:
    """Colours and what they mean; where there are units, with a place for the value under the pointer."""
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
    """Areas and axes one above the other that zoom together.

    :param looks: stretches of time to choose from, by name
    """
    chosen = "".join(
        f'<button type=button data-from="{begin:.7g}" data-to="{finish:.7g}">{text(name)}</button>'
        for name, (begin, finish) in {**(looks or {}), f"all {lasting(end)}": (0.0, end)}.items()
    )
    tools = f"<p class=tools hidden><span>Show</span> {chosen}<span class=hint></span></p>"
    return f'<div class=chart data-end="{end:.7g}">{tools}{"".join(parts)}</div>'


def shade(area: Area, spans: Iterable[tuple[float, float, str]], colour: str, look: str) -> None:
    """Stretches of time over all the height, behind what is drawn later."""
    area.bars([Bar(begin, end, 0, area.height, told) for begin, end, told in spans], colour, f"shade {look}")


def changes(points: Points) -> Points:
    """Without the points that change nothing; the last stays."""
    kept = [points[0]] if points else []
    kept += [point for before, point in itertools.pairwise(points) if point[1] != before[1]]
    return kept
