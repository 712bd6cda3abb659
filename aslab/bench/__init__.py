"""``aslab bench``: what things cost, measured here and now.

Machines are shared and noisy, so everything that is compared runs interleaved in one process, and
what counts are the ratios. Times are the best of several rounds.
"""

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


from . import _emergency as _emergency  # noqa: E402  (each registers its command with `app`)
from . import _emergency_free as _emergency_free  # noqa: E402  (each registers its command with `app`)
from . import _handover as _handover  # noqa: E402
from . import _index as _index  # noqa: E402
from . import _lab as _lab  # noqa: E402
from . import _move as _move  # noqa: E402
from . import _pair as _pair  # noqa: E402
from . import _scale as _scale  # noqa: E402
from . import _stall as _stall  # noqa: E402
from . import _waiters as _waiters  # noqa: E402

__all__ = ["app", "show"]
