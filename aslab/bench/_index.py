"""Freeing an emergency object found in a list, as in 2012, in a tree, as in SPL today, or in a hash table."""

from __future__ import annotations

from functools import partial

from ..lab._story._index import INDEXES, removal_cost
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

SIZES = (10, 1_000, 10_000)
FREE = Quantity("a free", "us")
TIMES = 10
"""Turns of each kind of index in a round."""


@command("index", rounds=5, quick={"rounds": 2})
def index() -> Bench:
    """Cost of finding and freeing an emergency object among 10, 1,000 and 10,000."""
    turns = [
        Turn(f"{size:,} outstanding", f"a {kind}", partial(_measure, kind, size), against="a hash")
        for size in SIZES
        for kind in INDEXES
    ]
    return Bench("freeing an emergency object, by kind of index", turns, "Freed at random.")


def _measure(kind: str, size: int) -> Values:
    return {FREE: removal_cost([kind], size, TIMES)[kind] * 1e6}
