"""Text for people, no wider than the terminal, or than 80 columns without one."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Stdout, in colour if it is a terminal. Text is printed without markup."""
    return Console(highlight=False, markup=False, emoji=False)


def say(to: Console, text: str = "", style: str = "", *, head: str = "", head_style: str = "") -> None:
    """Print text, wrapped at spaces to the right of ``head``. Words are never broken."""
    room = max(20, to.width - len(head))
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    text = f"\n{'':{len(head)}}".join(lines)
    to.print(Text.assemble((head, head_style), (text, style)), soft_wrap=True)


def tabulate(
    to: Console, rows: Sequence[Mapping[str, str]], *, left: Collection[str] = (), title: str = ""
) -> None:
    """Print a table. If it is too wide, headings are wrapped at spaces to the width of their column.

    If that is not enough, the first column is wrapped after spaces and underscores.

    :param left: columns that are left-aligned; the others are figures
    """
    widths = {name: max(len(row[name]) for row in rows) for name in rows[0]}
    headings = {name: [name] for name in widths}
    if sum(max(len(name), width) + 2 for name, width in widths.items()) - 2 > to.width:
        headings = {
            name: textwrap.wrap(name, max(width, *map(len, name.split())), break_on_hyphens=False)
            for name, width in widths.items()
        }
    first, *others = widths
    least = {name: max(map(len, headings[name])) for name in others}
    for name in others:  # text may be wrapped at spaces, figures may not
        words = (word for row in rows for word in (row[name].split() if name in left else [row[name]]))
        least[name] = max([least[name], *map(len, words)])
    room = to.width - sum(width + 2 for width in least.values())
    tallest = max(map(len, headings.values()))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, lines in headings.items():
        above = [""] * (tallest - len(lines))
        justify: Literal["left", "right"] = "left" if name in left else "right"
        table.add_column("\n".join(above + lines), justify=justify, no_wrap=name == first)
    for row in rows:
        table.add_row(*(_broken(text, room) if name == first else text for name, text in row.items()))
    if title:
        say(to, title, "italic")
    to.print(table)


def _broken(name: str, width: int) -> str:
    """Wrap a name after spaces and underscores; words are never broken."""
    lines = [""]
    for word in re.split(r"(?<=[_ ])", name):
        if lines[-1] and len(lines[-1] + word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)
