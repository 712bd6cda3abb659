"""``aslab bench``: what things cost, measured here and now.

Machines are shared and noisy, so everything that is compared runs interleaved in one process, and
what counts are the ratios. Times are the best of several rounds.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

app: typer.Typer = typer.Typer(
    help="Measure what things cost on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


WIDE = 160


def show(title: str, rows: list[dict[str, Any]], note: str, *, as_json: bool) -> None:
    """Print a table, or one JSON object with the same rows."""
    if as_json:
        json.dump({"bench": title, "rows": rows}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # a file or a pipe has no width to fit into
    console.print(table)
    console.print(note, style="dim", highlight=False)
    console.print()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)


from . import _emergency_free as _emergency_free  # noqa: E402  (each registers its command with `app`)
from . import _index as _index  # noqa: E402
from . import _lab as _lab  # noqa: E402
from . import _move as _move  # noqa: E402
from . import _pair as _pair  # noqa: E402
from . import _scale as _scale  # noqa: E402
from . import _stall as _stall  # noqa: E402
from . import _waiters as _waiters  # noqa: E402

__all__ = ["app", "show"]
