#!/usr/bin/env python
"""Mutation tests of the core: ``python scripts/mutants.py --seed 1 --count 150``.

Draws mutants from a seed, runs the tests that reach each in a copy of the tree, and prints those that survive.
Needs the ``dev`` extra. Exit status 1 if fewer are killed than ``--at-least``.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mutation.contexts import Contexts, gather, test_files
from mutation.draw import Mutant, draw, is_there
from mutation.runner import Verdict, copy_of, judge
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table

TREE = Path(__file__).resolve().parents[1]
HARMLESS = Path(__file__).with_name("mutants_harmless.toml")


def main() -> int:
    """Draw, run, report."""
    options = _options()
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 160)
    listed = {
        (entry["where"], entry["was"], entry["now"]): entry["why"]
        for entry in tomllib.loads(HARMLESS.read_text()).get("harmless", [])
    }
    mutants = draw(TREE, options.seed, options.count, options.only)
    if options.pick:
        mutants = [mutants[number - 1] for number in options.pick]
    if options.dry:
        for number, mutant in enumerate(mutants, 1):
            console.print(
                f"{number}. {mutant.where} ({mutant.operator})\n{mutant.diff}", markup=False, highlight=False
            )
        return 0
    for where, was, _ in listed:
        if not is_there(TREE, was):
            console.print(f"listed as harmless, but not there any more: {where}: {was}", markup=False)
    verdicts = _judge_all(mutants, listed, options, console)
    killed = sum(verdict.killed for verdict in verdicts)
    rate = 100 * killed / max(1, len(verdicts))
    if options.json:
        json.dump(
            {"seed": options.seed, "killed_percent": rate, "mutants": _as_json(verdicts)}, sys.stdout, indent=1
        )
    else:
        _print(verdicts, console)
    harmless = sum(bool(verdict.harmless) for verdict in verdicts)
    console.print(f"{killed} of {len(verdicts)} mutants killed ({rate:.1f} %), {harmless} listed as harmless")
    return int(rate < options.at_least)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default 1)")
    parser.add_argument("--count", type=int, default=150, help="how many mutants (default 150)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="how many at the same time, each in a process (default 1)"
    )
    parser.add_argument("--cap", type=float, default=60.0, help="seconds of tests for one mutant (default 60)")
    parser.add_argument("--only", default="", help="draw from where path:Qualified.name matches this pattern")
    parser.add_argument("--pick", type=int, nargs="*", help="only these of the drawn mutants, by number")
    parser.add_argument("--at-least", type=float, default=92.0, help="percent that must be killed (default 92)")
    parser.add_argument("--dry", action="store_true", help="print the drawn mutants and run nothing")
    parser.add_argument("--json", action="store_true", help="results on stdout as JSON, the rest on stderr")
    return parser.parse_args()


def _judge_all(
    mutants: list[Mutant], listed: dict[tuple[str, str, str], str], options: argparse.Namespace, console: Console
) -> list[Verdict]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=console))
        copies: queue.Queue[Path] = queue.Queue()
        for _ in range(options.jobs):
            copies.put(stack.enter_context(copy_of(TREE)))
        first = copies.queue[0]
        files = progress.add_task("which test reaches what", total=len(test_files(TREE)))
        contexts = gather(first, TREE / ".mutants", options.jobs, lambda _: progress.advance(files))
        for test in contexts.failed:
            console.print(f"left out, since it fails without a mutant: {test}", markup=False)
        bar = progress.add_task("mutants", total=len(mutants))

        def one(mutant: Mutant) -> Verdict:
            copy = copies.get()
            try:
                verdict = _one(mutant, copy, contexts, listed, options.cap)
            finally:
                copies.put(copy)
            progress.advance(bar)
            if not verdict.killed and not verdict.harmless:
                console.print(f"survived: {mutant.where}: {mutant.now}", markup=False, highlight=False)
            return verdict

        return list(stack.enter_context(ThreadPoolExecutor(options.jobs)).map(one, mutants))


def _one(
    mutant: Mutant, copy: Path, contexts: Contexts, listed: dict[tuple[str, str, str], str], cap: float
) -> Verdict:
    if mutant.key in listed:
        return Verdict(mutant, False, "", 0, 0, 0.0, listed[mutant.key])
    verdict = judge(mutant, copy, contexts.of(mutant), cap)
    if not verdict.killed and not contexts.reached(mutant):
        verdict.by = "no test reaches the line"
    return verdict


def _state(verdict: Verdict) -> str:
    if verdict.harmless:
        return "harmless"
    return "killed" if verdict.killed else "SURVIVED"


def _print(verdicts: list[Verdict], console: Console) -> None:
    table = Table("#", "", "where", "operator", "tests", "s", "by", box=None, pad_edge=False)
    for number, verdict in enumerate(verdicts, 1):
        ran = f"{verdict.ran}/{verdict.tests}"
        mutant = verdict.mutant
        where = f"{mutant.where}:{mutant.lines[0]}"
        table.add_row(
            str(number), _state(verdict), where, mutant.operator, ran, f"{verdict.seconds:.1f}", verdict.by
        )
    console.print(table)
    by_module = Counter((verdict.mutant.module, verdict.killed) for verdict in verdicts)
    modules = Table("module", "killed", "of", box=None, pad_edge=False)
    for module in sorted({module for module, _ in by_module}):
        killed, left = by_module[module, True], by_module[module, False]
        modules.add_row(module, str(killed), str(killed + left))
    console.print(modules)
    for number, verdict in enumerate(verdicts, 1):
        if not verdict.killed:
            said = (
                verdict.harmless
                or f"{verdict.ran} of {verdict.tests} tests passed{', ' * bool(verdict.by)}{verdict.by}"
            )
            console.rule(f"{number}. {_state(verdict)}: {verdict.mutant.where}", align="left")
            console.print(said, markup=False, highlight=False)
            console.print(Syntax(verdict.mutant.diff, "diff", background_color="default"))


def _as_json(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [
        {
            "module": verdict.mutant.module,
            "where": verdict.mutant.where,
            "line": verdict.mutant.lines[0],
            "operator": verdict.mutant.operator,
            "was": verdict.mutant.was,
            "now": verdict.mutant.now,
            "verdict": _state(verdict).lower(),
            "by": verdict.by,
            "why_harmless": verdict.harmless,
            "tests": verdict.tests,
            "ran": verdict.ran,
            "seconds": round(verdict.seconds, 2),
            "diff": verdict.mutant.diff,
        }
        for verdict in verdicts
    ]


if __name__ == "__main__":
    sys.exit(main())
