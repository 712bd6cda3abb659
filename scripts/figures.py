"""The figures of README.md and docs/, written from the history of the benchmarks.

    python scripts/figures.py [--check] [--plots] [--history FILE]

In a text, ``<!-- figure: NAME -->23<!-- /figure -->`` is a figure, and what stands between a line
``<!-- table: NAME -->`` and a line ``<!-- /table -->`` is a table. Their names, and how each is made of the last
run of a benchmark in the history, are in ``scripts/figures_made.py``. ``scripts/bench --record`` adds to the
history, and then runs this script. With --check nothing is written. With --plots the plots in docs/figures are
drawn from the same history, as ``aslab bench ... --plot`` draws them (that takes the extra 'plot').

Exit code 0 if all is as in the history, or is now; 1 if --check found what is not; 2 for a bad option or history.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from figures_made import FIGURES, PLOTS, TABLES, Book, Make

ROOT = Path(__file__).resolve().parent.parent
HISTORY = ROOT / "docs" / "figures" / "history.jsonl"
FIGURE = re.compile(r"<!-- figure: (?P<name>\S+) -->(?P<text>.*?)<!-- /figure -->", re.DOTALL)
TABLE = re.compile(r"^<!-- table: (?P<name>\S+) -->\n(?P<text>.*?)^<!-- /table -->$", re.DOTALL | re.MULTILINE)
BEGINS_LINE = re.compile(r"^ *<!-- figure: (\S+)", re.MULTILINE)
OPENED = re.compile(r"<!-- (?:figure|table): ")


class Drift(Exception):
    """A mark that is not as it should be. The message is one line."""


def written(text: str, book: Book) -> str:
    """The text, with all figures and tables as they are in the history.

    :raises Drift: for a name that is not known, a mark that does not end, a benchmark that never ran, and a figure
        that begins a line, where Markdown ends the paragraph
    """

    def figure(match: re.Match[str]) -> str:
        name = match["name"]
        bench = name.removeprefix("machine.")
        told = book.machine(bench) if bench != name and bench in book.runs else made(FIGURES, name, book)
        return f"<!-- figure: {name} -->{told}<!-- /figure -->"

    def whole(match: re.Match[str]) -> str:
        return f"<!-- table: {match['name']} -->\n{made(TABLES, match['name'], book)}<!-- /table -->"

    if begins := BEGINS_LINE.search(text):
        raise Drift(f"{begins[1]} begins a line: Markdown would end the paragraph before it")
    marks = len(OPENED.findall(text))
    text, figures = FIGURE.subn(figure, text)
    text, tables = TABLE.subn(whole, text)
    if marks != figures + tables:
        raise Drift(f"{marks} figures and tables begin, and {figures + tables} end")
    return text


def made(known: dict[str, Make], name: str, book: Book) -> str:
    """The text of a figure or table."""
    if name not in known:
        raise Drift(f"no figure or table is called {name!r}")
    try:
        return known[name](book)
    except (KeyError, ValueError, StopIteration):
        raise Drift(f"{name}: the history has nothing to make it of") from None


def draw(book: Book, folder: Path) -> None:
    """Draw the plots. A history has quartiles and no rounds: five values with these quartiles do as well."""
    from aslab.bench._measured import Key, Quantity, Row
    from aslab.bench._plot import plot

    for bench, (title, drawn) in PLOTS.items():
        rows = []
        for key, row in book.rows(bench):
            if drawn(key):
                what, _, unit = key.quantity.rpartition(", ")
                named = Key(key.loop, key.case, key.contender, Quantity(what, unit, unit.endswith("/s")))
                rows.append(Row(named, (row.low, row.low, row.median, row.high, row.high)))
        plot(folder / f"{bench}.svg", title, rows)


def main(args: list[str] | None = None) -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, and say what is not as it should be")
    parser.add_argument("--plots", action="store_true", help="draw the plots too")
    parser.add_argument("--history", type=Path, default=HISTORY, metavar="FILE")
    given = parser.parse_args(args)
    try:
        book = Book(given.history)
    except (OSError, ValueError, KeyError) as exc:
        parser.error(f"--history: {given.history}: {exc}")
    if given.plots:
        draw(book, HISTORY.parent)
    failed = False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        try:
            new = written(text, book)
        except Drift as exc:
            failed = True
            print(f"{page.relative_to(ROOT)}: {exc}", file=sys.stderr)
            continue
        if new != text and given.check:
            failed = True
            was, now = next(
                pair for pair in zip(text.split("\n"), new.split("\n"), strict=False) if len(set(pair)) > 1
            )
            print(f"{page.relative_to(ROOT)}: is {was!r}, and by the history {now!r}", file=sys.stderr)
        elif new != text:
            page.write_text(new, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
