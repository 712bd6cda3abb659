"""The story of the staging buffers as a `Tale`: its verdicts, columns and terms."""

from __future__ import annotations

from .._report._seeds import facts
from .._report._tale import Curve, Entry, Outcome, Tale
from ._chapters import Row
from ._machines import SERVER

EXPECTED = {"finished": "finishes", "stuck": "gets stuck"}
CURVES = (Curve("served", "requests", 84), Curve("pinned", "buffers", 34))
PARTS = {
    "GPU places": "all taken: data there has to be stored before a place is free",
    "store": "copies new data off the GPU, and needs a buffer for it",
    "staging pool": "has no free buffer, and has reached its limit",
    "retrieve": "holds its data in a buffer, and waits for a place or for a second buffer",
}
TERMS = {
    "KV cache": "what a language model remembers of a conversation; moved off the GPU when not needed",
    "pinned": "memory that the driver keeps in place, so that the GPU can copy it at full speed",
    "pageable": "ordinary memory; a copy takes four times as long here",
    "staging buffer": f"{SERVER.buffer // 2**20} MiB of pinned memory; data passes through it to and from the GPU",
    "retrieve": "load the data of an earlier turn into a buffer, wait for a place on the GPU, copy it there",
    "store": "copy data off the GPU into a buffer and write it; the place is free once it is copied",
    "try": "a check for a free buffer",
    "seed": "determines everything random: requests, times, the other process. The same seed gives the same run",
}


def as_tale(rows: list[Row], seed: int, loop: str) -> Tale:
    """All seeds in the tables; one of them, on every machine, in the charts."""
    return Tale(
        title="The story of the staging buffers",
        question="Which pool gets stuck?",
        about=f"{SERVER.requests} requests to a server that moves its KV cache through a pool of pinned buffers. "
        "Storing frees room on the GPU; it needs a buffer, and requests that wait for room hold the buffers. "
        "The machines differ only in the pool.",
        seed=seed,
        machines=[_entry(row, seed) for row in rows],
        curves=CURVES,
        how_to_read=[
            "The tall curve counts requests served: while it rises, the machine makes progress.",
            f"The low curve counts pinned buffers; {SERVER.limit} is the limit, if there is one.",
            "Bands: a request waits for a buffer.",
        ],
        parts=PARTS,
        terms=TERMS,
        more="Over all seeds. tries/s: checks for a free buffer in the busiest second. "
        "pinned, pageable: the maximum.",
        facts=facts(rows, "ended as expected", loop),
    )


def _entry(row: Row, seed: int) -> Entry:
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
    return row.entry(seed, _verdict(row), cells, more, f"expected: it {EXPECTED[row.machine.ends]}")


def _verdict(row: Row) -> tuple[Outcome, str]:
    """The outcome of a machine that finishes, and at what price."""
    figures = row.as_json()
    if figures["pinned_max"] > SERVER.limit * SERVER.buffer:
        return "poor", "finishes, but pins without limit"
    return "good", "finishes, with emergency objects" if figures["emergency_max"] else "finishes"
