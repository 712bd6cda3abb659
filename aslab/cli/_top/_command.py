"""The options of ``aslab top``."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .._errors import BadInput
from .._prose import console
from ._rows import Order, heading, holders_of, rows_of
from ._source import VARIABLE, ask
from ._text import print_table

NEEDS = "aslab top needs the extra 'top': run pip install '.[top]' in a clone of aslab, or use --once"


def top(
    address: Annotated[
        Path,
        typer.Argument(
            metavar="ADDRESS", envvar=VARIABLE, help="The Unix socket of the service's kmem.serve_stats(path)."
        ),
    ],
    delay: Annotated[
        float, typer.Option("--delay", "-d", min=0.1, max=3600, help="Seconds between two looks.")
    ] = 3.0,
    sort: Annotated[
        Order,
        typer.Option(
            "--sort",
            "-s",
            help="a: active objects, b: objects per slab, c: memory, l: slabs, n: name, o: objects, s: size, "
            "u: use, v: active slabs, w: the oldest waiting caller.",
        ),
    ] = Order.OBJECTS,
    once: Annotated[bool, typer.Option("--once", "-o", help="Print one table and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and exit.")] = False,
) -> int:
    """Show the caches of a running service, as slabtop does for the kernel. Rows of DEADLOCKED caches are red.

    Without a terminal it is as with --once.
    """
    snapshot = ask(address)
    if as_json:
        print(json.dumps(snapshot, indent=2))
    elif once or not at_a_terminal():
        print_table(console(), heading(snapshot), rows_of(snapshot, sort), holders_of(snapshot))
    else:
        try:
            from ._screen import Top
        except ModuleNotFoundError as exc:
            if (exc.name or "").partition(".")[0] != "textual":
                raise
            raise BadInput(NEEDS) from None
        Top(partial(ask, address), delay, sort, snapshot).run()
    return 0


def at_a_terminal() -> bool:
    """Whether somebody sees the screen, and has the keys."""
    return all(each is not None and each.isatty() for each in (sys.stdin, sys.stdout, sys.stderr))
