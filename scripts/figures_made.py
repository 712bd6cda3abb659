"""How each figure, table and plot of the docs is made of the last runs in the history of the benchmarks.

It is the median of all rounds; but the best one for a gap of the event loop and the like, since what else a
machine does only ever makes them worse. A table, its plot and the ratios told of it have the same statistic.
`FIGURES`, `TABLES` and `PLOTS` are what ``scripts/figures.py`` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """What a history keeps of a row of a benchmark."""

    best: float
    median: float
    low: float
    high: float
    ratio: float = 1.0
    """To the contender that it is compared with; 1 if it is compared with none."""
    ratio_low: float = 1.0
    ratio_high: float = 1.0


class Key(NamedTuple):
    """What a row is about."""

    loop: str
    case: str
    contender: str
    quantity: str


class Book:
    """The last run of each benchmark."""

    def __init__(self, history: Path) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        for line in history.read_text(encoding="utf-8").splitlines():
            run = json.loads(line)
            self.runs[run["bench"]] = run

    def row(self, bench: str, *key: str) -> Row:
        """One row.

        :raises KeyError: if the history has no such row
        """
        return Row(*self.runs[bench]["rows"][" | ".join(key)])

    def rows(self, bench: str) -> Iterator[tuple[Key, Row]]:
        """All rows of one benchmark, in their order."""
        for key, values in self.runs[bench]["rows"].items():
            yield Key(*key.split(" | ")), Row(*values)

    def machine(self, bench: str) -> str:
        """What that one ran on."""
        run = self.runs[bench]
        machine = run["machine"]
        way = ", compiled fast path" if run["compiled"] else ""
        return f"{machine['processors']} processors, a load of {machine['load']:.0f}, Python {run['python']}{way}"


def number(value: float, digits: int = 2) -> str:
    """So many significant digits, and no more: what stands before the point is rounded, too."""
    if not value:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


# -- the figures

Make = Callable[[Book], str]
PAIR = "a pair, ns"
LIST = "a bare list: pop, append"
NOWAIT, AWAIT = "aslab: alloc_nowait, free", "aslab: await alloc, free"
VIEW, MOVABLE = "aslab: await alloc, view, free", "aslab, movable: await alloc, free"
STREAM = "anyio memory stream"
KEPT, GONE = "aslab: kept for the next caller", "given back"
FRAMES, CPU = "frames, 1/s", "CPU of a frame, ms"
SHARE, FRESH, RING = "aslab.share", "a fresh SharedMemory each", "ring of 8, by hand"
GROWING = "gap while it grows, ms"
PASSED, AT_ONCE = "aslab", "aslab, hands over at once"
BUFFERS, LONGEST = "buffers, 1/s", "longest wait, ms"
PATTERNS = {
    "asks again at once": ("comes again", PASSED),
    "the same, if each buffer were handed over at once": ("comes again", AT_ONCE),
    "rests for a turn first": ("rests", PASSED),
    "holds it for five turns, and asks again at once": ("works", PASSED),
}
LOOPS = ("asyncio", "trio")
SERVED = "aslab: buffers of one cache"
UNBOUNDED = "a bytearray each, unbounded"
PEAK = "peak memory, MiB"
HUGE, SHARED, OURS_SHARED = "aslab, huge pages", "SharedMemory", "aslab, SharedMemory"


def queue(loop: str) -> str:
    """The loop's own queue."""
    return "trio memory channel" if loop == "trio" else "asyncio.Queue"


def median(bench: str, *key: str, digits: int = 2) -> Make:
    """The median of one row."""
    return lambda book: number(book.row(bench, *key).median, digits)


def range_of(bench: str, chosen: Callable[[Key], bool], value: Callable[[Row], float], digits: int = 2) -> Make:
    """From the least to the most of several rows, or one number if they are the same."""

    def make(book: Book) -> str:
        values = [value(row) for key, row in book.rows(bench) if chosen(key)]
        texts = [number(min(values), digits), number(max(values), digits)]
        return " to ".join(dict.fromkeys(texts))

    return make


def to_queue(contender: str) -> Make:
    """Its median to that of the queue, on asyncio."""
    return lambda book: number(pair(book, contender) / pair(book, queue("asyncio")))


def pair(book: Book, contender: str) -> float:
    """Nanoseconds of one pair on asyncio."""
    return book.row("pair", "asyncio", "", contender, PAIR).median


def waiter(book: Book) -> str:
    """Microseconds beyond a bare event, least and most, of all numbers of waiters and both loops."""
    costs = []
    for key, row in book.rows("waiters"):
        if key.contender == "aslab":
            costs.append(row.median - book.row("waiters", key.loop, key.case, "bare events", key.quantity).median)
    return " to ".join(dict.fromkeys((number(min(costs)), number(max(costs)))))


def rival(book: Book, loop: str, case: str) -> float:
    """Buffers a second of the better of the loop's semaphore with a list, and its queue."""
    names = (f"{loop}.Semaphore and a list", queue(loop))
    return max(book.row("handover", loop, case, name, BUFFERS).median for name in names)


def handover(loop: str, case: str, contender: str) -> Make:
    """Throughput against the better rival."""
    return lambda book: (
        f"{book.row('handover', loop, case, contender, BUFFERS).median / rival(book, loop, case):.2f}"
    )


def free_of_emergency(book: Book) -> str:
    """By how much a free of an emergency object differs with their number, in percent."""
    costs = [row.median for _, row in book.rows("emergency-free")]
    return f"{(max(costs) / min(costs) - 1) * 100:.0f}"


def sharing_costs(book: Book) -> str:
    """CPU milliseconds of a frame of 6.2 MB beyond a ring of semaphores."""
    small = next(key.case for key, _ in book.rows("frames") if key.case.startswith("1080p"))
    ours, ring = (book.row("frames", "", small, way, CPU).median for way in (SHARE, RING))
    return number(ours - ring, 1)


def to_fresh(book: Book, case: str, way: str) -> str:
    """How many times as many frames a second as through fresh segments."""
    ours, fresh = (book.row("frames", "", case, one, FRAMES).median for one in (way, FRESH))
    return number(ours / fresh)


FIGURES: dict[str, Make] = {
    "pair.list": median("pair", "asyncio", "", LIST, PAIR),
    "pair.await": median("pair", "asyncio", "", AWAIT, PAIR, digits=3),
    "pair.await.queue": to_queue(AWAIT),
    "pair.await.us": lambda book: number(pair(book, AWAIT) / 1e3, 1),
    "pair.movable.us": lambda book: number(pair(book, MOVABLE) / 1e3),
    "pair.view.us": lambda book: number((pair(book, VIEW) - pair(book, AWAIT)) / 1e3),
    "emergency.kept": range_of("emergency", lambda key: key.contender == KEPT, lambda row: row.best, 1),
    "emergency.gone": range_of("emergency", lambda key: key.contender == GONE, lambda row: row.best, 1),
    "emergency-free.percent": free_of_emergency,
    "waiters.us": waiter,
    "index.list": median("index", "", "10,000 outstanding", "a list", "a free, us"),
    "index.tree": median("index", "", "10,000 outstanding", "a tree", "a free, us"),
    "index.hash": median("index", "", "10,000 outstanding", "a hash", "a free, us"),
    "stall.ours": range_of(
        "stall", lambda key: key.contender.startswith("aslab") and key.quantity == GROWING, lambda row: row.best, 1
    ),
    "stall.loop": range_of(
        "stall",
        lambda key: not key.contender.startswith("aslab") and key.quantity == GROWING,
        lambda row: row.best,
        1,
    ),
    "frames.ratio": lambda book: to_fresh(book, "25 MB", SHARE),
    "frames.cpu": sharing_costs,
    "move.small": range_of(
        "move", lambda key: key.case == "objects of 4 KiB" and key.quantity == "took, ms", lambda row: row.best
    ),
    "move.large": range_of(
        "move", lambda key: key.case == "objects of 64 KiB" and key.quantity == "took, ms", lambda row: row.best
    ),
    "move.gap": range_of("move", lambda key: key.quantity == "longest gap, ms", lambda row: row.best),
    "service.ours": median("service", "asyncio", "", SERVED, PEAK),
    "service.unbounded": median("service", "asyncio", "", UNBOUNDED, PEAK),
    "memory.shared": range_of("memory", lambda key: key.contender == SHARED, lambda row: row.ratio),
    "memory.ours-shared": range_of("memory", lambda key: key.contender == OURS_SHARED, lambda row: row.ratio),
    **{
        f"handover.{loop}.{name}": handover(loop, "comes again", contender)
        for loop in LOOPS
        for name, contender in (("passed", PASSED), ("at-once", AT_ONCE))
    },
}


# -- the tables


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    headings = list(headings)
    return "".join(f"| {' | '.join(row)} |\n" for row in (headings, ["---"] * len(headings), *rows))


def pair_table(book: Book) -> str:
    """One object allocated and freed on asyncio."""
    names = {
        "a bare list: pop, append": LIST,
        "aslab: `alloc_nowait`, `free`": NOWAIT,
        "aslab: await `alloc`, `free`": AWAIT,
        "the same, with a view made and checked": VIEW,
        "the same, in a `movable` cache": MOVABLE,
        "`asyncio.Queue`: await `get`, `put_nowait`": queue("asyncio"),
        "anyio memory stream: await `receive`, `send_nowait`": STREAM,
    }
    against = [pair(book, LIST), pair(book, queue("asyncio"))]
    return table(
        ["one object allocated and freed", "ns", "against the list", "against the queue"],
        (
            [told, number(pair(book, name), 3), *(number(pair(book, name) / other) for other in against)]
            for told, name in names.items()
        ),
    )


def handover_table(book: Book) -> str:
    """Throughput against the better rival, and the longest wait."""

    def cell(loop: str, case: str, name: str) -> str:
        longest = book.row("handover", loop, case, name, LONGEST).best
        return f"{handover(loop, case, name)(book)} ({number(longest)} ms)"

    return table(
        ["a task holds a buffer for a turn of the loop, and", *LOOPS],
        ([told, *(cell(loop, *pattern) for loop in LOOPS)] for told, pattern in PATTERNS.items()),
    )


def frames_table(book: Book) -> str:
    """Frames a second, against fresh segments, and CPU time of a frame."""
    return table(
        ["frame", "way", "frames a second", "against fresh segments", "CPU ms a frame"],
        (
            [
                key.case,
                key.contender,
                number(row.median, 3),
                to_fresh(book, key.case, key.contender),
                number(book.row("frames", *key[:3], CPU).median),
            ]
            for key, row in book.rows("frames")
            if key.quantity == FRAMES
        ),
    )


def index_table(book: Book) -> str:
    """Microseconds of a free by kind of index, lined up."""
    sizes = list(dict.fromkeys(key.case for key, _ in book.rows("index")))
    kinds = list(dict.fromkeys(key.contender for key, _ in book.rows("index")))
    lines = [["us of a free", *sizes]]
    lines += [
        [kind, *(number(book.row("index", "", size, kind, "a free, us").median) for size in sizes)]
        for kind in kinds
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = (
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() + "\n"
        for line in lines
    )
    return f"```\n{''.join(texts)}```\n"


def memory_table(book: Book) -> str:
    """The time of each way to that of aslab on `Mmap`, or on shared memory."""
    ways = {
        "bytearray": "bytearray",
        "numpy.empty": "numpy",
        "pyarrow": "pyarrow",
        "SharedMemory(create=True)": SHARED,
        'aslab, `huge_pages="transparent"`': HUGE,
        "aslab on `SharedMemory()`": OURS_SHARED,
    }
    rows: dict[str, dict[str, str]] = {}
    for key, row in book.rows("memory"):
        rows.setdefault(key.case, {})[key.contender] = number(row.ratio)
    measured = {told: name for told, name in ways.items() if any(name in row for row in rows.values())}
    return table(
        ["buffers", *measured],
        ([case, *(row.get(name, "") for name in measured.values())] for case, row in rows.items()),
    )


def touch_table(book: Book) -> str:
    """The first touch of a slab, by pages and threads."""
    kinds = list(dict.fromkeys(key.contender for key, _ in book.rows("touch")))

    def of(kind: str, quantity: str) -> Row:
        return book.row("touch", "", "", kind, quantity)

    return table(
        ["slab", "s, after other pages", "s, again at once", "GiB/s", "longest gap of the loop, ms"],
        (
            [
                kind,
                number(of(kind, "after other pages, s").high),
                number(of(kind, "again, at once, s").best),
                number(of(kind, "again, at once, GiB/s").best),
                number(of(kind, "longest gap of the loop, ms").high),
            ]
            for kind in kinds
        ),
    )


TABLES: dict[str, Make] = {
    "pair": pair_table,
    "handover": handover_table,
    "frames": frames_table,
    "index": index_table,
    "memory": memory_table,
    "touch": touch_table,
}


# -- the plots

PLOTS: dict[str, tuple[str, Callable[[Key], bool]]] = {
    "pair": (
        "One object allocated and freed",
        lambda key: key.loop == "asyncio" and "view kept" not in key.contender,
    ),
    "frames": ("Frames of 25 MB to another process", lambda key: key.case == "25 MB" and key.quantity == FRAMES),
    "stall": ("The longest gap of a task while a slab of 256 MiB is made", lambda key: key.quantity == GROWING),
    "service": ("200 uploads of 4 MiB at once, with a limit of 64 MiB", lambda key: key.quantity == PEAK),
}
"""For each benchmark with a plot, its title, and the rows of it that are drawn."""
