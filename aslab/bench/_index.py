"""Freeing an emergency object found in a list, as in 2012, in a tree, as in SPL today, or in a hash table."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..lab._story._index import INDEXES, removal_cost
from ._app import app, show

SIZES = (10, 1_000, 10_000)


@app.command(name="index")
def index(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the best counts.", min=1)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cost of finding and freeing an emergency object among 10, 1,000 and 10,000."""
    best = {size: removal_cost(INDEXES, size, rounds) for size in SIZES}
    rows: list[dict[str, Any]] = [
        {"kept in a": kind, **{f"us with {size:,}": best[size][kind] * 1e6 for size in SIZES}} for kind in INDEXES
    ]
    show("freeing an emergency object, by kind of index", rows, "Freed at random.", as_json=as_json)
