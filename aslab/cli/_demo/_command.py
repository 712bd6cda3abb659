"""``aslab demo``: its options, and what they choose."""

from __future__ import annotations

import sysconfig
from typing import Annotated

import typer

from .._errors import BadInput
from .._loops import Loop, check_installed
from ._files import Where, check_paths
from ._once import Form, do_one_run
from ._run import Run
from ._service import BUFFER, LIMIT, TASKS, Settings

ACTS = (1, 2, 3)
CHECKSUMS = 3
"""The act that reads files."""
TASKS_MOST = 10_000
NOT_STDLIB = ("site-packages", "dist-packages")
"""Folders inside the standard library's folder that are not part of it."""


def demo(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Files and folders; by default Python's standard library."),
    ] = None,
    act: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, max=3, help="Play this act alone; may be repeated."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Play shorter acts, within 5 seconds.")] = False,
    loop: Annotated[
        Loop | None, typer.Option(help="The event loop. Without --act: do one run of the third act's service.")
    ] = None,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT",
            help="Do one run with faulty slab memory, such as latency:250ms, deadlock:3s or "
            "failslab:probability=20; may be repeated.",
        ),
    ] = None,
    buffer: Annotated[
        str, typer.Option(metavar="SIZE", help="Size of one buffer, such as 65536, 64KiB, 1M.")
    ] = BUFFER,
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Most memory for slabs.")] = LIMIT,
    tasks: Annotated[int, typer.Option(min=1, max=TASKS_MOST, help="Number of concurrent tasks.")] = TASKS,
    sums: Annotated[bool, typer.Option("--sums", help="Do one run; print lines for `sha256sum -c`.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Do one run; show /proc/spl/kmem/slab, 150 columns wide.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """See what aslab does, in three acts of a few seconds, each with aslab and without.

    1: frames between two processes. 2: memory stuck for 3 seconds, and who is served meanwhile. 3: a checksum
    service that hashes the files at PATH through few buffers; all of them, or for 5 seconds without a PATH.

    With --loop, --inject, --table or --sums it does one run of the checksum service instead, and says more of it.

    The exit code is 0 if all is well, 1 if not, 2 for bad input.
    """
    settings = Settings.parse(buffer, limit, tasks)
    check_installed(loop or Loop.ASYNCIO)
    where = Where(paths or [sysconfig.get_path("stdlib")], () if paths else NOT_STDLIB, given=bool(paths))
    one_run = {"--sums": sums, "--table": table, "--inject": inject, "--loop": loop and not act}
    option = next((name for name, given in one_run.items() if given), None)
    if option is None:
        from ._play import play_acts  # imports multiprocessing, and what the acts need

        numbers = sorted(set(act or ACTS))
        if CHECKSUMS in numbers:
            check_paths(where.paths)
        elif paths:
            raise BadInput(
                f"PATH is read by act {CHECKSUMS} alone, so it cannot be combined with --act {numbers[0]}"
            )
        return play_acts(numbers, loop or Loop.ASYNCIO, where, settings, quick=quick, as_json=as_json)
    if act or quick:
        raise BadInput(f"{option} does one run, so it cannot be combined with {'--act' if act else '--quick'}")
    if sums and as_json:
        raise BadInput("--sums and --json cannot be combined: both write to stdout")
    check_paths(where.paths)
    run = Run(loop or Loop.ASYNCIO, tuple(inject or ()))
    form = Form.SUMS if sums else Form.JSON if as_json else Form.TABLE if table else Form.PROSE
    return do_one_run(run, settings, where, form)
