"""The command ``aslab bench``, to which each module here adds a command, and its tables."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from ..cli._prose import console, say, tabulate

app: typer.Typer = typer.Typer(
    help="Measure what things cost on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def show(title: str, rows: list[dict[str, Any]], note: str, *, as_json: bool) -> None:
    """Print a table, or one JSON object with the same rows."""
    if as_json:
        json.dump({"bench": title, "rows": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    out = console()
    words = [name for name, value in rows[0].items() if isinstance(value, str)]
    texts = [{name: _text(value) for name, value in row.items()} for row in rows]
    tabulate(out, texts, left=words, title=title)
    say(out, note, "dim")
    say(out)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)
