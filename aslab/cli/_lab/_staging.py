"""``aslab lab story --of staging``: pools of pinned staging buffers, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .._errors import BadInput, printable
from .._loops import Loop, check_installed, plain_interrupts
from .._prose import console, say, tabulate
from ._progress import progress_bar
from ._scenarios import LabLoop, check_writable, print_json, writing

if TYPE_CHECKING:
    from ...lab._staging._chapters import Row


def staging(
    machine: list[str] | None,
    seeds: range,
    loop: LabLoop,
    jobs: int,
    report: Path | None,
    as_json: bool,
) -> int:
    """Play it, and print or write what came. The options are those of ``aslab lab story``.

    :return: 0 if each machine ended as foretold, 1 if not
    :raises BadInput: for a machine that there is not, and a page that cannot be written
    """
    from ...lab._staging._machines import MACHINES

    known = {one.name: one for one in MACHINES}
    for name in machine or ():
        if name not in known:
            raise BadInput(f"--machine {printable(name)}: allowed with --of staging are {', '.join(known)}")
    chosen = [one for one in MACHINES if not machine or one.name in machine]
    check_installed(Loop(loop.value))
    check_writable(report)
    from ...lab._staging._chapters import play_staging

    with progress_bar(len(chosen) * len(seeds)) as advance, plain_interrupts():
        rows = play_staging(chosen, seeds, loop=loop.value, jobs=jobs, progress=advance)
    if report is not None:
        from ...lab._report._tale import write_tale
        from ...lab._staging._tale import as_tale

        with writing(report):
            write_tale(report, as_tale(rows, seeds[0], loop.value))
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        _show(rows)
    return 0 if all(row.as_told for row in rows) else 1


def _show(rows: list[Row]) -> None:
    out = console()
    tabulate(out, [row.in_words() for row in rows], left=("machine",))
    say(out)
    for row in rows:
        say(out, row.machine.about, head=f"{row.machine.name}: ")
        if stuck := row.stuck_in_words():
            say(out, stuck, "yellow", head="    stuck: ", head_style="yellow")
