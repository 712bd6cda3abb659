"""``aslab lab list`` and ``run``: play scenarios, and show the results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn

from .._errors import BadInput, complain, printable, why
from .._loops import Loop, check_installed, plain_interrupts
from .._progress import bar
from .._prose import console, say
from ._common import LabLoop, app, check_writable, need, print_json, writing

if TYPE_CHECKING:
    from ...lab.scenarios import Played, Scenario


@app.command(name="list")
def list_scenarios(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """List the built-in scenarios, which can be run by name."""
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
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the file's own.")] = None,
    real_time: Annotated[bool, typer.Option("--real-time", help="Run on the wall clock.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="OUT.html", help="Write an HTML report.")] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write trace events for ui.perfetto.dev.")
    ] = None,
    log: Annotated[Path | None, typer.Option(metavar="OUT.txt", help="Write the event log.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Play a scenario in simulated time, and check its expectations.

    The exit code is 0 if all are met, 1 if not, 2 if the file is wrong.
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


def _load(file: str, *, real_time: bool) -> Scenario:
    from ...lab._scenario._builtin import find
    from ...lab.scenarios import load

    try:
        return load(find(file), real_time=real_time)
    except OSError as exc:
        raise BadInput(f"cannot read {printable(file)}: {why(exc)}") from None
    except ValueError as exc:
        if "\0" in file:
            raise BadInput(f"cannot read {printable(file)}: it has a null character") from None
        raise exc


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
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with bar(*columns) as shown:
        task = shown.add_task(title, total=1.0)
        yield lambda share: shown.update(task, completed=share)


def _show(played: Played, wall: float) -> None:
    """Print what it is about, what was expected, whether that was met, and the figures."""
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
