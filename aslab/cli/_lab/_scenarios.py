"""``aslab lab``: play scenarios, and see what came."""

from __future__ import annotations

import enum
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from .._errors import BadInput, complain, printable
from .._loops import Loop, check_installed, plain_interrupts
from .._prose import console, say

if TYPE_CHECKING:
    from ...lab.scenarios import Played, Scenario

EXTRA = "needs the extra 'lab': pip install '.[lab]' where aslab is cloned"


class LabLoop(enum.StrEnum):
    """The event loops that have simulated time."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


app: typer.Typer = typer.Typer(
    help="Play scenarios of memory that is slow, stuck or refused.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command(name="list")
def list_scenarios(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """The built-in scenarios. Any of them can be run by its name."""
    lab = need("scenarios", "pydantic")
    found = {name: lab.load(path) for name, path in lab.builtin().items()}
    if as_json:
        rows = [
            {"name": name, "about": one.about, "file": str(lab.builtin()[name])} for name, one in found.items()
        ]
        print_json({"scenarios": rows})
        return 0
    out = console()
    width = max((len(name) for name in found), default=0)
    for name, scenario in found.items():
        say(out, scenario.about, head=f"{name:<{width}}  ", head_style="bold")
    return 0


@app.command(name="run")
def run_scenario(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A TOML file, or the name of a built-in scenario.")],
    loop: Annotated[LabLoop, typer.Option(help="The event loop.")] = LabLoop.ASYNCIO,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the file's own.")] = None,
    real_time: Annotated[bool, typer.Option("--real-time", help="On the wall clock.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="OUT.html", help="Write a page to look at.")] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write trace events, for ui.perfetto.dev.")
    ] = None,
    log: Annotated[Path | None, typer.Option(metavar="OUT.txt", help="Write the event log.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Play a scenario in simulated time, and check what it expects.

    Exit code 0 if all of it came, 1 if not, 2 if the file is bad.
    """
    lab = need("scenarios", "pydantic")
    check_installed(Loop(loop.value))
    for path in (report, trace, log):
        check_writable(path)
    scenario = _load(file, real_time=real_time)
    begin = time.perf_counter()
    with _progress(scenario.name) as advance, plain_interrupts():
        played = lab.play(
            scenario,
            seed=seed,
            loop=loop.value,
            real_time=real_time,
            record=report is not None or trace is not None,
            progress=advance,
        )
    _write(played, report, trace, log)
    if as_json:
        print_json(played.result.as_json())
    else:
        _show(played, time.perf_counter() - begin)
    return 0 if played.result.passed else 1


def need(module: str, library: str) -> Any:
    """A module of the lab that needs a library of the extra."""
    try:
        return importlib.import_module(f"aslab.lab.{module}")
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != library:
            raise
        raise BadInput(f"the lab {EXTRA}") from None


def _load(file: str, *, real_time: bool) -> Scenario:
    from ...lab._scenario._builtin import find
    from ...lab.scenarios import load

    try:
        return load(find(file), real_time=real_time)
    except OSError as exc:
        raise BadInput(f"cannot read {printable(file)}: {exc.strerror or exc}") from None
    except ValueError as exc:
        if "\0" in file:
            raise BadInput(f"cannot read {printable(file)}: it has a null character") from None
        raise exc


def check_writable(path: Path | None) -> None:
    """Before a long run, not after it."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"cannot write {printable(str(path))}: it is a folder, or its folder does not exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInput(f"cannot write {printable(str(path))}: no permission")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses is one line that names the file."""
    try:
        yield
    except OSError as exc:
        raise BadInput(f"cannot write {printable(str(path))}: {exc.strerror or exc}") from None


def _write(played: Played, report: Path | None, trace: Path | None, log: Path | None) -> None:
    for path, write in ((report, _write_report), (trace, _write_trace), (log, _write_log)):
        if path is not None:
            with writing(path):
                write(path, played)


def _write_report(path: Path, played: Played) -> None:
    from ...lab._report._page import write_report

    assert played.recording is not None
    write_report(path, played.result, played.recording)


def _write_trace(path: Path, played: Played) -> None:
    from ...lab._report._trace import write_trace

    assert played.recording is not None
    write_trace(path, played.result, played.recording)


def _write_log(path: Path, played: Played) -> None:
    path.write_text(str(played.log), encoding="utf-8")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[float], object]]:
    """A bar on stderr, where that is a terminal; gone at the end."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=Console(stderr=True, highlight=False, markup=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _show(played: Played, wall: float) -> None:
    """For people: what it is about, what was expected and came, and the figures."""
    from ...lab._scenario._metrics import in_words

    result = played.result
    out = console()
    say(out, result.scenario, "bold")
    say(out, result.about)
    clock = "of real time" if result.real_time else f"simulated in {wall:.2f} s"
    say(out, f"seed {result.seed} on {result.loop}, {result.duration:g} s {clock}, {result.events} events")
    say(out)
    width = max(len(verdict.expected) for verdict in result.verdicts)
    for verdict in result.verdicts:
        head, style = ("  ok      ", "green") if verdict.passed else ("  BROKEN  ", "bold red")
        say(out, f"{verdict.expected:<{width}}  {verdict.came}", head=head, head_style=style)
        if verdict.broken_by is not None:
            say(out, verdict.broken_by, "red", head=" " * len(head))
    say(out)
    _show_figures(out, in_words(result.figures))
    for line in result.stuck:
        say(out, line, "yellow", head="  stuck: ", head_style="yellow")
    say(out, f"log sha256 {result.log_sha256}", "dim")
    if not result.passed:
        complain(
            f"{len(result.broken)} of {len(result.verdicts)} expectations broken; the first: {result.broken[0]}"
        )


def _show_figures(out: Console, figures: dict[str, str]) -> None:
    width = max((len(name) for name in figures), default=0)
    for name, text in figures.items():
        say(out, text, head=f"  {name:<{width}}  ", head_style="cyan")


def print_json(told: object) -> None:
    """Print one JSON value."""
    json.dump(told, sys.stdout, indent=2)
    sys.stdout.write("\n")
