"""Who waits on whom, drawn as a ring: down on the left, up on the right, and back to the start."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._figures import plain, text

WIDTH, BOX, TALL, STEP = 340, 152, 34, 74
"""In pixels: width of the drawing, width and height of a box, distance between boxes."""
LETTERS = 20
"""Characters that fit into a box."""

TIP = (
    "<svg class=defs aria-hidden=true><defs><marker id=tip viewBox='0 0 10 10' refX=9 refY=5 "
    "markerWidth=8 markerHeight=8 orient=auto><path d='M0 0L10 5L0 10Z'/></marker></defs></svg>"
)
"""The arrowhead, needed once per page."""

Place = tuple[float, float]


def ring(cycle: Sequence[str]) -> str:
    """Draw a cycle of at least one node as SVG, narrow enough for a phone."""
    places = _places(len(cycle))
    height = max(down for _, down in places) + TALL / 2 + 14
    told = f"{' waits on '.join((*cycle, cycle[0]))}."
    arrows = "".join(
        f'<path class=arrow d="{_arrow(place, following, len(cycle))}" marker-end="url(#tip)"/>'
        for place, following in zip(places, (*places[1:], places[0]), strict=True)
    )
    boxes = "".join(
        f"<g><title>{text(name)}</title>"
        f'<rect x="{x - BOX / 2:g}" y="{y - TALL / 2:g}" width={BOX} height={TALL} rx=6 />'
        f'<text x="{x:g}" y="{y + 4:g}" text-anchor=middle>{plain(name, LETTERS)}</text></g>'
        for name, (x, y) in zip(cycle, places, strict=True)
    )
    drawn = f"{arrows}{boxes}"
    return f'<svg class=ring viewBox="0 0 {WIDTH} {height:g}" role=img aria-label="{text(told)}">{drawn}</svg>'


def _places(count: int) -> list[Place]:
    """The centres of the boxes. Both sides have the same height, so with an odd count one side is sparser."""
    down = math.ceil(count / 2)
    up = count - down
    left, right, top = BOX / 2 + 2, WIDTH - BOX / 2 - 2, TALL / 2 + 14
    whole = STEP * (down - 1)
    gap = whole / (up - 1) if up > 1 else 0.0
    middle = whole / 2 if up == 1 else 0.0
    return [(left, top + STEP * number) for number in range(down)] + [
        (right, top + whole - gap * number - middle) for number in range(up)
    ]


def _arrow(begin: Place, end: Place, count: int) -> str:
    """An arrow from the edge of one box to the edge of another."""
    (x, y), (to_x, to_y) = begin, end
    if count == 1:  # it waits on itself
        right = x + BOX / 2
        return f"M{right:g} {y - 8:g}C{right + 60:g} {y - 14:g} {right + 60:g} {y + 14:g} {right:g} {y + 8:g}"
    if x == to_x:
        side = math.copysign(TALL / 2, to_y - y)
        return f"M{x:g} {y + side:g}V{to_y - side:g}"
    side = math.copysign(BOX / 2, to_x - x)
    shift = math.copysign(8, to_x - x) if count == 2 else 0.0
    return f"M{x + side:g} {y + shift:g}L{to_x - side:g} {to_y + shift:g}"
