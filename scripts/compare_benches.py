"""The benchmarks of two checkouts, interleaved, so that what else the machine does falls on both.

    python scripts/compare_benches.py --against DIR [--package DIR] [--bench NAME ...] [--rounds N] [--json]

Each round runs each benchmark (``aslab bench``, of less than its usual size) for the one checkout and then for the
other, each run a process of its own, the next time the other way round. ``--package`` is after, by default the
checkout of this script; ``--against`` is before. A round takes about a minute on two busy cores.

Prints a table of what is slower or faster after, above 1 being slower in every row (for objects a second the ratio
is turned round):

    before, after   the medians of all runs
    ratio           of the two
    best            the ratio of the best run of each: what else the machine does only ever adds

The rows ``others`` are what a benchmark measures of pools that are not aslab's, or of bare events, which no change
of aslab moves: the lowest of their ratios, the middle one and the highest. What lies in between says nothing. To
know the noise where there are none, compare a checkout with itself. The stalls of ``scale`` need an idle machine:
where other processes want both cores, most of a stall is theirs.

Exit code 0 once the table is printed, 1 if a benchmark fails, 2 for a bad option.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Bench(NamedTuple):
    """One benchmark: how to run it, and how often in each round."""

    options: tuple[str, ...]
    times: int = 2


BENCHES = {
    "pair": Bench(("--rounds", "3")),
    "lease": Bench(("--rounds", "3")),
    "waiters": Bench(("--rounds", "1", "--most", "1000")),
    "handover": Bench(("--rounds", "1", "--operations", "5000"), times=3),
    "lab": Bench(("--rounds", "1", "--most", "20000"), times=1),
    "scale": Bench(("--rounds", "1", "--most", "10000"), times=1),
}
OURS = "aslab"
OTHERS = "others: "
SCHEMA = 1
"""Of ``aslab bench --json``."""


class Key(NamedTuple):
    """What was measured."""

    bench: str
    what: str
    unit: str
    more_is_better: bool = False


class Compared(NamedTuple):
    """A row of the table."""

    bench: str
    what: str
    unit: str
    before: float | None
    after: float | None
    ratio: float
    best: float


Figures = dict[Key, list[float]]


def run(checkout: Path, name: str, figures: Figures) -> None:
    """Add the figures of one benchmark of one checkout."""
    bench = BENCHES[name]
    command = [sys.executable, "-m", "aslab", "bench", name, "--json", *bench.options]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.PIPE, check=True)
    told = json.loads(done.stdout)
    if told.get("schema") != SCHEMA:
        raise ValueError(
            f"{name}: its JSON is of another schema than {SCHEMA}, so it is an older or newer checkout"
        )
    for row in told["rows"]:
        what = ", ".join(filter(None, (row["loop"], row["case"], row["contender"], row["what"])))
        ours = row["contender"].startswith(OURS)
        key = Key(name, what if ours else OTHERS + what, row["unit"], row["better"] == "more")
        figures.setdefault(key, []).append(row["best"])


def compare(before: Figures, after: Figures) -> list[Compared]:
    """A row for each figure of aslab that both have; three for the others' of each benchmark."""
    ours: list[Compared] = []
    others: dict[str, list[Compared]] = {}
    for key, was in before.items():
        now = after.get(key)
        if now is None:
            continue
        best = max if key.more_is_better else min
        pairs = (median(was), median(now)), (best(was), best(now))
        ratio, of_best = (old / new if key.more_is_better else new / old for old, new in pairs)
        row = Compared(*key[:3], *pairs[0], ratio, of_best)
        (others.setdefault(key.bench, []) if key.what.startswith(OTHERS) else ours).append(row)
    for name, rows in others.items():
        for word, of in (("lowest", min), ("median", median), ("highest", max)):
            ratio, of_best = of(row.ratio for row in rows), of(row.best for row in rows)
            ours.append(Compared(name, OTHERS + word, "", None, None, ratio, of_best))
    return ours


def table(rows: list[Compared]) -> str:
    """Lined up."""
    lines: list[tuple[str, ...]] = [Compared._fields]
    for row in rows:
        figures = ["" if one is None else f"{one:,.{0 if one >= 100 else 2}f}" for one in (row.before, row.after)]
        lines.append((*row[:3], *figures, f"{row.ratio:.2f}", f"{row.best:.2f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [str.ljust] * 3 + [str.rjust] * 4
    return "\n".join(
        "  ".join(align(word, width) for align, word, width in zip(aligned, line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(args: list[str] | None = None) -> int:
    """Run them, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--against", type=Path, required=True, metavar="DIR", help="the checkout before")
    parser.add_argument("--package", type=Path, default=ROOT, metavar="DIR", help="the checkout after")
    parser.add_argument("--bench", action="append", choices=BENCHES, help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="5 by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(args)
    if given.rounds < 1:
        parser.error("--rounds: must be a whole number from 1 on")
    checkouts: list[Path] = [given.against.resolve(), given.package.resolve()]
    for checkout in checkouts:
        if not (checkout / "aslab" / "__main__.py").is_file():
            parser.error(f"{checkout}: no checkout, it has no aslab/__main__.py")
    figures: list[Figures] = [{}, {}]
    chosen = {name: bench for name, bench in BENCHES.items() if given.bench is None or name in given.bench}
    began = time.monotonic()
    for number in range(given.rounds):
        for name, bench in chosen.items():
            for turn in range(number, number + bench.times):
                for side in (0, 1) if turn % 2 == 0 else (1, 0):
                    try:
                        run(checkouts[side], name, figures[side])
                    except (subprocess.CalledProcessError, ValueError) as exc:
                        print(f"{parser.prog}: {checkouts[side]}: {exc}", file=sys.stderr)
                        return 1
        took = time.monotonic() - began
        print(f"round {number + 1} of {given.rounds}, {took:.0f} s", file=sys.stderr, flush=True)
    rows = compare(figures[0], figures[1])
    print(json.dumps({"rows": [row._asdict() for row in rows]}, indent=2) if given.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
