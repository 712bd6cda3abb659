"""The story of the staging buffers as a `Tale`: its verdicts, its columns and its terms, for the page."""

from __future__ import annotations

from .._report._seeds import facts
from .._report._tale import Curve, Outcome, Tale, Told
from ._chapters import Row
from ._machines import SERVER

FORETOLD = {"finished": "finishes", "stuck": "gets stuck"}
CURVES = (Curve("served", "requests", 84), Curve("pinned", "buffers", 34))
PARTS = {
    "GPU places": "all taken: what is there has to be stored before a place is free",
    "store": "copies new data off the GPU, and needs a buffer for it",
    "staging pool": "has no free buffer, and has reached its limit",
    "retrieve": "has its data loaded, in a buffer, and waits for a place, or for a second buffer",
}
TERMS = {
    "KV cache": "what a language model remembers of a conversation; moved off the GPU when it is not needed",
    "pinned": "memory that stays where it is, as the driver knows, so that the GPU copies at full speed",
    "pageable": "ordinary memory; a copy takes four times as long here",
    "staging buffer": f"{SERVER.buffer // 2**20} MiB of pinned memory; data passes through it to and from the GPU",
    "retrieve": "load the data of an earlier turn into a buffer, wait for a place on the GPU, copy it there",
    "store": "copy data off the GPU into a buffer, write it; the place is free once it is copied",
    "try": "a look whether a buffer is free",
    "seed": "draws all that is random: requests, times, when another process pins. The same seed, the same run",
}


def as_tale(rows: list[Row], seed: int, loop: str) -> Tale:
    """All seeds in the tables; one of them, on every machine, in the charts."""
    return Tale(
        title="The story of the staging buffers",
        question="Which pool gets stuck?",
        about=f"{SERVER.requests} requests to a server that moves its KV cache through a pool of pinned buffers. "
        "Room on the GPU comes back by storing, to store takes a buffer, and who waits for room holds them. "
        "The machines differ only in the pool.",
        seed=seed,
        machines=[_told(row, seed) for row in rows],
        curves=CURVES,
        how_to_read=[
            "The tall curve counts requests served: while it climbs, the machine gets on.",
            f"The low curve counts buffers that are pinned; {SERVER.limit} is the limit, where there is one.",
            "Bands: somebody waits for a buffer.",
        ],
        parts=PARTS,
        terms=TERMS,
        more="Over all seeds. tries/s: looks for a buffer in the busiest second. pinned, pageable: the most ever.",
        facts=facts(rows, "ended as foretold", loop),
    )


def _told(row: Row, seed: int) -> Told:
    words = row.in_words()
    cells = {
        "finished": words["finished"],
        "longest wait, median": words["wait"],
        "worst": words["worst"],
        "of stores": words["stores"],
    }
    more = {
        "requests/s": words["req/s"],
        "tries/s": words["tries/s"],
        "MiB pinned": words["pinned MiB"],
        "MiB pageable": words["paged MiB"],
    }
    return row.told(seed, _verdict(row), cells, more, f"foretold was that it {FORETOLD[row.machine.ends]}")


def _verdict(row: Row) -> tuple[Outcome, str]:
    """At what price it finishes."""
    told = row.as_json()
    if told["pinned_max"] > SERVER.limit * SERVER.buffer:
        return "poor", "finishes, but pins without end"
    return "good", "finishes, with emergency objects" if told["emergency_max"] else "finishes"
