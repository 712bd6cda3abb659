"""``aslab lab story --of staging``: pools of pinned staging buffers, side by side."""

from __future__ import annotations

from pathlib import Path

from .._loops import Loop, check_installed, plain_interrupts
from ._common import LabLoop, check_machines, check_writable
from ._progress import progress_bar
from ._rows import put_out


def staging(
    machine: list[str] | None,
    seeds: range,
    loop: LabLoop,
    jobs: int,
    report: Path | None,
    as_json: bool,
) -> int:
    """Run it, and put out the results. The options are those of ``aslab lab story``.

    :return: 0 if each machine ended as expected, 1 if not
    :raises BadInput: for an unknown machine, or a page that cannot be written
    """
    from ...lab._staging._machines import MACHINES

    check_machines(machine or (), [one.name for one in MACHINES], " with --of staging")
    chosen = [one for one in MACHINES if not machine or one.name in machine]
    check_installed(Loop(loop.value))
    check_writable(report)
    from ...lab._staging._chapters import play_staging

    with progress_bar(len(chosen) * len(seeds)) as advance, plain_interrupts():
        rows = play_staging(chosen, seeds, loop=loop.value, jobs=jobs, progress=advance)
    from ...lab._staging._tale import as_tale

    return put_out(rows, lambda: as_tale(rows, seeds[0], loop.value), report, as_json=as_json)
