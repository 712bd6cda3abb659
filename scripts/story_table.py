"""The table of a grid of the story, run and written into docs/story.md, between the lines that mark its place.

    python scripts/story_table.py [--grid FILE.toml] [--machine NAME ...] [--seeds N|A:B] [--jobs N]
                                  [--resume FILE [--no-run]]

By default it is examples/grids/hard.toml with three seeds, on all machines, the controls included. With
--resume, results are kept in FILE as ``aslab lab story --grid`` keeps them, and what is there is not run
again; with --no-run, everything has to be there.

Exit code 0 once the table is written, 1 if results are missing, 2 for a bad option or file.
"""

from __future__ import annotations

import argparse
import io
import logging
import re
import shlex
import sys
from pathlib import Path

from rich.console import Console

from aslab import ConfigError
from aslab.cli._errors import BadInput
from aslab.cli._lab._grid import foot
from aslab.cli._lab._progress import progress_bar
from aslab.cli._lab._story import parse_seeds
from aslab.cli._prose import say, tabulate
from aslab.lab._story._experiments import Notebook, Result, play_grid, rows_of, runs_of
from aslab.lab._story._grid import Grid, load_grid
from aslab.lab._story._machines import CONTROLS, MACHINES

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "story.md"
BEGIN, END = "<!-- table of a grid: scripts/story_table.py -->", "<!-- end of the table -->"
LOOP = "asyncio"


def main(args: list[str] | None = None) -> int:
    """Run what is missing, and write the table."""
    names = [machine.name for machine in (*MACHINES, *CONTROLS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--grid", type=Path, default=ROOT / "examples" / "grids" / "hard.toml")
    parser.add_argument("--machine", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--seeds", default="3", help="how many, or which, from A to B-1")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--resume", type=Path, help="results, kept here")
    parser.add_argument("--no-run", action="store_true", help="take results from --resume alone")
    parser.add_argument("--doc", type=Path, default=DOC, help="the file to write into")
    given = parser.parse_args(args)
    if given.jobs < 1:
        parser.error("--jobs: allowed are whole numbers from 1 on")
    if given.no_run and given.resume is None:
        parser.error("--no-run: allowed with --resume")
    logging.disable()  # failures of pages are part of the story
    try:
        return _write(given)
    except (BadInput, ConfigError, OSError) as exc:
        parser.error(str(exc))


def _write(given: argparse.Namespace) -> int:
    grid = load_grid(given.grid)
    machines = [one for one in (*MACHINES, *CONTROLS) if not given.machine or one.name in given.machine]
    seeds = parse_seeds(given.seeds)
    text = given.doc.read_text(encoding="utf-8")
    if len(re.findall(f"^(?:{re.escape(BEGIN)}|{re.escape(END)})$", text, re.MULTILINE)) != 2:
        raise BadInput(f"{given.doc}: needs one line {BEGIN} and one line {END}")
    runs = runs_of(grid, machines, seeds, LOOP)
    with Notebook(given.resume) as notebook, progress_bar(len(runs)) as advance:
        missing = len(runs.keys() - notebook.known.keys())
        if given.no_run and missing:
            print(f"{given.resume}: {missing} of {len(runs)} results are missing", file=sys.stderr)
            return 1
        results = play_grid(grid, machines, seeds, notebook=notebook, loop=LOOP, jobs=given.jobs, progress=advance)
    command = ["aslab", "lab", "story", "--grid", _relative(given.grid), "--seeds", given.seeds]
    command += [word for name in given.machine or () for word in ("--machine", name)] or ["--controls"]
    table = f"```sh\n{shlex.join(command)}\n```\n\n```\n{_table(results, grid, len(seeds))}```"
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    given.doc.write_text(f"{text[:begin]}\n{table}\n{text[end:]}", encoding="utf-8")
    return 0


def _table(results: list[Result], grid: Grid, seeds: int) -> str:
    out = Console(file=io.StringIO(), width=80, highlight=False, markup=False, emoji=False)
    with out.capture() as captured:
        tabulate(out, rows_of(results), left=("machine",))
        say(out)
        say(out, foot(grid, seeds))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _relative(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
