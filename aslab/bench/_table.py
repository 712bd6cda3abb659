"""The table of a benchmark: one layout for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..cli._prose import console, say, tabulate
from ._measured import Row, Spread, spread

INDENT = "  "


def show(title: str, rows: Sequence[Row], note: str) -> None:
    """Print the rows below a heading for each case, loop and quantity, as far as there are several."""
    out = console()
    quantities = {row.key.quantity for row in rows}
    common = next(iter(quantities)) if len(quantities) == 1 else None
    tabulate(out, list(_lines(rows)), left=(WHAT,), title=f"{title} ({common})" if common else title)
    rivals = sorted({row.against for row in rows if row.against})
    if rivals:
        note += f" ratio: to {' or '.join(rivals)}, of the same round."
    say(out, f"{note} The other columns: median of the rounds, and quartiles.".strip(), "dim")
    say(out)


WHAT, RATIOS = "contender", "quartiles "
"""Headings; the second one has a space because there is one without."""


def _lines(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    several = [len(set(column)) > 1 for column in zip(*(row.key for row in rows), strict=True)]
    loops, _, contenders, quantities = several
    compared = any(row.ratios for row in rows)
    blank = dict.fromkeys(["median", "quartiles", *(("ratio", RATIOS) if compared else ())], "")
    before = ""
    for row in rows:
        heading = [row.key.case, row.key.loop if loops else ""]
        label = row.key.contender if contenders else str(row.key.quantity)
        if contenders and quantities:
            heading.append(str(row.key.quantity))
        head = "; ".join(filter(None, heading))
        if head != before:
            yield {WHAT: f"{head}:", **blank}
            before = head
        line = {WHAT: f"{INDENT if head else ''}{label}", **blank}
        line["median"], line["quartiles"] = _texts(spread(row.rounds))
        if row.ratios:
            line["ratio"], line[RATIOS] = (
                _texts(spread(row.ratios)) if row.key.contender != row.against else ("1", "")
            )
        yield line


def _texts(values: Spread) -> tuple[str, str]:
    sides = f"{figure(values.low)} - {figure(values.high)}"
    return figure(values.median), sides if values.low < values.high else ""


def figure(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, and commas; none before the point is left out."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"
