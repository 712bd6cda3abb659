"""The story of 2012 as a `Tale`: its verdicts, columns and terms."""

from __future__ import annotations

import math
from itertools import pairwise

from .._report._figures import lasting
from .._report._seeds import facts
from .._report._tale import Curve, Entry, Outcome, Tale
from .._scenario._metrics import format_seconds
from ._chapters import Row

CURVES = (Curve("swapped pages", "pages", 84), Curve("emergency", "objects", 34))
PARTS = {
    "z_wr_iss": "starts a write, and needs a buffer for it",
    "cache": "hands out buffers; it has none left, so it must grow by a slab",
    "vmalloc": "makes the slab: it needs pages, and a page table to map them",
    "reclaim": "frees memory for callers that find none, by writing old pages to disk",
    "writeback": "writes the old pages to the swap device",
    "zvol": "the swap device, a ZFS volume; its open group is full",
    "txg_sync": "is still writing the previous group",
    "zio": "one write of that group, which has to be started first",
    "z_wr_int": "completes a write, and needs a buffer for that",
    "growth worker": "makes slabs, one after another",
}
TERMS = {
    "slab": "a piece of memory that holds several objects of one size, here eight buffers of 128 KiB",
    "cache": "hands out objects of one size, takes them back, and makes a slab when it has none",
    "magazine": "a few free objects kept ready, so that most calls need neither a lock nor a slab",
    "emergency object": "a single object outside all slabs, for a caller that has waited long enough",
    "dlock": "how often a wait for a slab failed; the cache is then marked DEADLOCKED",
    "order": "the number of contiguous pages in a request, as a power of two: order 0 is one page, order 5 is 32",
    "zvol": "a volume in ZFS; here the swap device, so writing to swap needs ZFS",
    "txg": "transaction group: ZFS collects writes and writes them out together, one group at a time",
    "GFP": "flags of a request for pages: whether it may wait, may start writes, may use the reserve",
    "reserve": "the free pages below the watermark min, which only tasks that free memory may use",
    "seed": "determines everything random: disk and processor times. The same seed gives the same run",
}


def as_tale(rows: list[Row], seed: int, loop: str) -> Tale:
    """All seeds in the tables; one of them, on every machine, in the charts."""
    last = max(
        (
            end
            for row in rows
            for (_, value), (end, _) in pairwise(row.with_seed(seed).counters.get("emergency", []))
            if value
        ),
        default=0.0,
    )
    near = math.ceil(15 * last) / 10  # and half as much again, to show what follows
    return Tale(
        title="The story of 2012",
        question="Which machine gets stuck?",
        about="A computer is out of memory and swaps to a ZFS volume. To free memory it has to write, and "
        "to write it needs a buffer, which needs memory. The machines differ only in how they get that buffer.",
        seed=seed,
        machines=[_entry(row, seed) for row in rows],
        curves=CURVES,
        how_to_read=[
            "The tall curve counts pages written to swap: while it rises, the machine makes progress.",
            "The low curve counts emergency objects in use.",
            "Grey bands: ZFS writes a transaction group (txg); each band is one group.",
        ],
        parts=PARTS,
        terms=TERMS,
        more="Over all seeds. failed: failed requests for pages. lowest free: the fewest free pages. reserve "
        "used: the share of the reserve used by then. va lock: median time spent on vmalloc's address space "
        "lock. free 1 of 10,000: real time to find and free one emergency object among that many.",
        looks={f"the first {lasting(near)}": (0.0, near)} if near else {},
        facts=facts(rows, "ended as the change of 2012 says", loop),
    )


def _entry(row: Row, seed: int) -> Entry:
    figures = row.as_json()
    finish = row.time_to_finish
    cells = {
        "finished": f"{figures['finished']} of {figures['seeds']}",
        "time": "-" if finish is None else f"{finish:.2f} s",
        "longest wait": format_seconds(round(figures["longest_wait"], 4)),
        "emergency now/most": f"{figures['emergency_left']}/{figures['emergency_max']}",
    }
    more = {name: value for name, value in row.needed().items() if name != "machine"}
    expected = f"the change of 2012 says {'it finishes' if row.machine.ends == 'finished' else 'it gets stuck'}"
    return row.entry(seed, _verdict(row), cells, more, expected)


def _verdict(row: Row) -> tuple[Outcome, str]:
    """The outcome of a machine that finishes, and at what price."""
    if min(chapter.lowest_free_pages for chapter in row.chapters) <= 0:
        return "poor", "finishes, but takes the last page"
    if max(chapter.emergency_max for chapter in row.chapters):
        return "good", "finishes, with emergency objects"
    return "good", "finishes"
