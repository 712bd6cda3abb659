"""Freeing an emergency object that is kept in a list, as in 2012, in a tree, as SPL does now, and in a hash."""

from __future__ import annotations

import random
import time
from typing import Annotated, Any

import typer

from ..emulation._index import INDEXES
from . import app, show

SIZES = (10, 1_000, 10_000)
FREED = 10


@app.command(name="index")
def index(
    rounds: Annotated[int, typer.Option(help="Rounds, interleaved; the best counts.", min=1)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cost of finding and freeing an emergency object among 10, 1,000 and 10,000."""
    best = measure(SIZES, rounds)
    rows: list[dict[str, Any]] = [
        {"kept in a": kind, **{f"us with {size:,}": best[kind, size] for size in SIZES}} for kind in INDEXES
    ]
    show("freeing an emergency object, by where it is kept", rows, "Freed at random.", as_json=as_json)


def measure(sizes: tuple[int, ...], rounds: int) -> dict[tuple[str, int], float]:
    """Best us for one free, by structure and number outstanding."""
    draw = random.Random(1)
    best = {(kind, size): float("inf") for kind in INDEXES for size in sizes}
    for size in sizes:
        addresses = draw.sample(range(0, size * 2**20, 4096), size)
        kept = {kind: make() for kind, make in INDEXES.items()}
        for structure in kept.values():
            for address in addresses:
                structure.add(address, address)
        for _ in range(rounds):
            victims = draw.sample(addresses, min(FREED, size))
            for kind, structure in kept.items():
                begin = time.perf_counter()
                for address in victims:
                    structure.remove(address)
                cost = (time.perf_counter() - begin) / len(victims) * 1e6
                best[kind, size] = min(best[kind, size], cost)
                for address in victims:
                    structure.add(address, address)
    return best
