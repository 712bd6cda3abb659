"""``aslab lab story``: the machines of 2012 and aslab, side by side."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import BadInput, printable
from .._loops import Loop, check_installed, plain_interrupts
from ._common import LabLoop, app, check_machines, check_writable, need
from ._grid import run_grid
from ._progress import progress_bar
from ._rows import put_out
from ._settings import StoryCommand, computer_for, settings_for

if TYPE_CHECKING:
    from ...lab._story._machines import Machine

SEEDS_MOST = 100_000


class Story(enum.StrEnum):
    """The stories there are."""

    SWAP = "swap"
    STAGING = "staging"


@app.command(name="story", cls=StoryCommand)
def story(
    of: Annotated[
        Story, typer.Option("--of", help="Which story: swap is that of 2012, staging is about pinned buffers.")
    ] = Story.SWAP,
    machine: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run only this machine; may be repeated.")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N|A:B", help="How many seeds, or those from A to B-1.")] = "3",
    loop: Annotated[LabLoop, typer.Option(help="The event loop.")] = LabLoop.ASYNCIO,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the computer; may be repeated.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Run on many computers, described by this file.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save each result of --grid here, and skip those already saved."),
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also run the machines that serve as controls.")
    ] = False,
    fragmented: Annotated[
        float, typer.Option(min=0, max=50, metavar="PERCENT", help="Percentage of pages pinned, spread evenly.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Number of processes.")] = 1,
    report: Annotated[Path | None, typer.Option(metavar="OUT.html", help="Write an HTML report.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> int:
    """Swap to a zvol on machines that grow caches as SPL did before and after 2012, and as aslab does.

    With --of staging: serve a model through pinned staging buffers, on machines with different pools.

    The exit code is 0 if each machine ends as the change of 2012, or docs/staging.md, says it does, and 1 if not.
    With --grid it is 0.
    """
    if of is Story.STAGING:
        from ._staging import staging

        refused = {"set": settings, "grid": grid, "resume": resume, "controls": controls, "fragmented": fragmented}
        for name, given in refused.items():
            if given:
                raise BadInput(f"--{name}: cannot be given with --of staging")
        return staging(machine, parse_seeds(seeds), loop, jobs, report, as_json)
    chosen = _machines(machine or [], controls=controls)
    which = parse_seeds(seeds)
    check_installed(Loop(loop.value))
    if grid is not None:
        if report is not None:
            raise BadInput("--report: cannot be given with --grid")
        more = settings_for(settings or (), fragmented)
        run_grid(grid, chosen, which, more, loop=loop.value, jobs=jobs, resume=resume, as_json=as_json)
        return 0
    if resume is not None:
        raise BadInput("--resume: needs --grid")
    computer = computer_for(settings or (), fragmented)
    check_writable(report)
    play_story = need("_story._chapters", "pydantic").play_story

    with progress_bar(len(chosen) * len(which)) as advance, plain_interrupts():
        rows = play_story(chosen, which, computer=computer, loop=loop.value, jobs=jobs, progress=advance)
    from ...lab._story._tale import as_tale

    return put_out(rows, lambda: as_tale(rows, which[0], loop.value), report, as_json=as_json)


def _machines(names: list[str], *, controls: bool) -> list[Machine]:
    """Those named, or all; controls only if named or requested."""
    from ...lab._story._machines import CONTROLS, MACHINES

    known = [*MACHINES, *CONTROLS]
    check_machines(names, [one.name for one in known])
    wanted = names or [one.name for one in MACHINES]
    return [one for one in known if one.name in wanted or (controls and one in CONTROLS)]


def parse_seeds(text: str) -> range:
    """Parse a number of seeds, or a range of them.

    :raises BadInput: if it is neither
    """
    first, colon, last = text.partition(":")
    try:
        seeds = range(int(first), int(last)) if colon else range(int(first))
    except ValueError:
        seeds = range(0)
    if not seeds or seeds[0] < 0 or len(seeds) > SEEDS_MOST:
        raise BadInput(f"--seeds {printable(text)}: must be a number, such as 20, or a range, such as 20:40")
    return seeds
