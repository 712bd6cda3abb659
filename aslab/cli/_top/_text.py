"""The table of ``aslab top --once``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._prose import say
from ._rows import Row, cells

LEFT = ("NAME", "STATE")
LATE = "bold red"
"""The style of a cache whose growth is late."""


def print_table(
    to: Console, heading: Sequence[str], rows: Sequence[Row], holders: Sequence[Mapping[str, str]] = ()
) -> None:
    """Print one snapshot."""
    for line in heading:
        say(to, line)
    if not rows:
        say(to, "no caches")
        return
    table = Table(box=None, header_style="reverse", padding=(0, 1, 0, 0), pad_edge=False)
    for name in cells(rows[0]):
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=name not in LEFT)
    for row in rows:
        style = "" if row.late_for is None else LATE
        table.add_row(*(Text(cell, style) for cell in cells(row).values()))
    to.print(table)
    if holders:
        to.print(holders_table(holders))


def holders_table(holders: Sequence[Mapping[str, str]]) -> Table:
    """A table of those that have held a buffer for longest. What does not fit is wrapped."""
    table = Table(box=None, header_style="reverse", padding=(0, 1, 0, 0), pad_edge=False)
    for name in holders[0]:
        table.add_column(
            name, justify="right" if name == "HELD" else "left", no_wrap=name == "HELD", overflow="fold"
        )
    for holder in holders:
        table.add_row(*map(Text, holder.values()))
    return table
