"""``aslab lab story``: the machines of 2012 and aslab, side by side."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ._errors import BadInput, printable
from ._lab import LabLoop, app, check_writable, need, print_json
from ._loops import Loop, check_installed, plain_interrupts
from ._prose import console, say, tabulate

if TYPE_CHECKING:
    from ..lab._chapters import Row

SEEDS_MOST = 100_000


class Story(enum.StrEnum):
    """What can be told."""

    SWAP = "swap"
    STAGING = "staging"


@app.command(name="story")
def story(
    of: Annotated[
        Story, typer.Option("--of", help="Which: swap is that of 2012, staging one of pinned buffers.")
    ] = Story.SWAP,
    machine: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this machine; may be repeated.")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N|A:B", help="How many seeds, or which, from A to B-1.")] = "3",
    loop: Annotated[LabLoop, typer.Option(help="The event loop.")] = LabLoop.ASYNCIO,
    fragmented: Annotated[
        float, typer.Option(min=0, max=50, metavar="PERCENT", help="Pages pinned evenly all over memory.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes at once.")] = 1,
    report: Annotated[
        Path | None, typer.Option(metavar="OUT.html", help="Write a page about the first seed.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> int:
    """Swap to a zvol on machines that grow caches as SPL did before 2012, since then, and as aslab does.

    With --of staging: serve a model through a pool of pinned staging buffers, on machines with different pools.

    Exit code 0 if each machine ended as the change says it does, or as docs/staging.md does, 1 if not.
    """
    if of is Story.STAGING:
        from ._staging import staging

        if fragmented:
            raise BadInput("--fragmented: allowed is only --of swap")
        return staging(machine, _seeds(seeds), loop, jobs, report, as_json, _progress)
    from ..lab._machines import MACHINES

    known = {one.name: one for one in MACHINES}
    for name in machine or ():
        if name not in known:
            raise BadInput(f"--machine {printable(name)}: allowed are {', '.join(known)}")
    chosen = [one for one in MACHINES if not machine or one.name in machine]
    which = _seeds(seeds)
    check_installed(Loop(loop.value))
    if report is not None:
        need("_report", "plotly")
    check_writable(report)
    from ..lab._chapters import as_result, play_story

    with _progress(len(chosen) * len(which)) as advance, plain_interrupts():
        rows = play_story(chosen, which, loop=loop.value, pinned=fragmented / 100, jobs=jobs, progress=advance)
    if report is not None:
        from ..lab._report import write_report

        try:
            write_report(report, *as_result(rows, which[0], loop.value))
        except OSError as exc:
            raise BadInput(f"cannot write {printable(str(report))}: {exc.strerror or exc}") from None
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        _show(rows)
    return 0 if all(row.as_told for row in rows) else 1


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    try:
        seeds = range(int(first), int(last)) if colon else range(int(first))
    except ValueError:
        seeds = range(0)
    if not seeds or seeds[0] < 0 or len(seeds) > SEEDS_MOST:
        raise BadInput(f"--seeds {printable(text)}: allowed are a number, such as 20, or a range, such as 20:40")
    return seeds


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], object]]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False, markup=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("the story", total=total)
        yield lambda name, seed: bar.update(task, advance=1, description=f"{name}, seed {seed}")


def _show(rows: list[Row]) -> None:
    out = console()
    for table in ([row.ended() for row in rows], [row.needed() for row in rows]):
        tabulate(out, table, left=("machine", "failed"))
        say(out)
    for row in rows:
        say(out, row.machine.about, head=f"{row.machine.name}: ")
        if row.cycle:
            say(out, " → ".join((*row.cycle, row.cycle[0])), "yellow", head="    stuck: ", head_style="yellow")
