"""The table of ``aslab top --once``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._prose import say
from ._rows import Row, cells

LEFT = ("NAME", "STATE")
LATE = "bold red"
"""The style of a cache whose growth is late."""
SPARK = "LATELY"
"""The column of the sparklines, of active objects; on the screen alone."""
DROPPED = ("SLABS", "SIZE", "OBJS", "USE", SPARK, "EMERG", "MEMORY", "OLDEST", "ACTIVE", "WAIT", "STATE")
"""The columns in the order in which they go where there is too little room."""
LEAST = 16
"""Letters of a name for which columns are dropped."""


def fitting(rows: Sequence[Mapping[str, str]], room: int) -> dict[str, int]:
    """Choose the columns that fit, and their widths. NAME is among them, with less than the longest if need be.

    :param room: for all of them, and a space after each
    """
    widths = {name: max(cell_len(row[name]) for row in ({name: name}, *rows)) for name in rows[0]}
    longest = widths.pop("NAME")
    for name in DROPPED:
        if min(longest, LEAST) + 1 + _room_of(widths) <= room:
            break
        widths.pop(name, None)
    return {"NAME": max(1, min(longest, room - 1 - _room_of(widths))), **widths}


def _room_of(widths: Mapping[str, int]) -> int:
    return sum(width + 1 for width in widths.values())


def print_table(
    to: Console, heading: Sequence[str], rows: Sequence[Row], holders: Sequence[Mapping[str, str]] = ()
) -> None:
    """Print one snapshot. A name that is too long is wrapped; columns for which there is no room are left out."""
    for line in heading:
        say(to, line)
    if not rows:
        say(to, "no caches")
        return
    table = Table(box=None, header_style="reverse", padding=(0, 1, 0, 0), pad_edge=False)
    texts = [cells(row) for row in rows]
    columns = fitting(texts, to.width + 1)  # there is no space after the last
    for name, width in columns.items():
        justify: Literal["left", "right"] = "left" if name in LEFT else "right"
        table.add_column(name, justify=justify, width=width, overflow="fold")
    for row, text in zip(rows, texts, strict=True):
        style = "" if row.late_for is None else LATE
        table.add_row(*(Text(text[name], style) for name in columns))
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
