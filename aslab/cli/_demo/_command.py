"""``aslab demo``: its options, and the order of its steps."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from anyio import to_thread

from ..._checks import parse_size
from .._errors import BadInput, complain, printable
from .._loops import Loop, check_installed, run_on
from ._files import Found, Unreadable, check_paths, find_files
from ._output import write_json, write_sums
from ._runs import TOUR, Result, Run, perform, unreadable, wrong_with
from ._service import Settings

if TYPE_CHECKING:
    from ._report import Report

BUFFER_MOST = 2**30
LIMIT_MOST = 2**40
TASKS_MOST = 10_000
NOT_STDLIB = ("site-packages", "dist-packages")
"""Folders inside the standard library's folder that are not part of it."""


def demo(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Files and folders; by default Python's standard library."),
    ] = None,
    loop: Annotated[Loop | None, typer.Option(help="Do one run, on this event loop.")] = None,
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
    ] = "256KiB",
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Most memory for slabs.")] = "8MiB",
    tasks: Annotated[int, typer.Option(min=1, max=TASKS_MOST, help="Number of concurrent tasks.")] = 64,
    sums: Annotated[bool, typer.Option("--sums", help="Do one run; print lines for `sha256sum -c`.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Show /proc/spl/kmem/slab after each run, 150 columns wide.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Run a checksum service: hash files with many tasks, through few buffers.

    Without --loop, --inject and --sums it runs three times: on asyncio, on trio, and on asyncio with growth
    stuck for 3 seconds. The checksums must be the same.

    The exit code is 0 if all is well, 1 if not, 2 for bad input.
    """
    if sums and as_json:
        raise BadInput("--sums and --json cannot be combined: both write to stdout")
    settings = Settings(
        buffer=parse_size("buffer", buffer, BUFFER_MOST), limit=parse_size("limit", limit, LIMIT_MOST), tasks=tasks
    )
    one = Run(loop or Loop.ASYNCIO, tuple(inject or ()))
    runs = (one,) if loop or inject or sums else TOUR
    for run in runs:
        check_installed(run.loop)
        run.slabs()
    found = _find(paths, runs[0].loop)
    report = None
    if not (sums or as_json):
        from ._report import Report  # imports rich

        report = Report(settings, found, table=table)
    if report is not None and not found.files:
        _name(found.unreadable, set())
        report.show_nothing()
        return 1 if found.unreadable else 0
    results = _perform_all(runs, settings, found, report)
    if sums:
        write_sums(results[0].outcome.sums)
    elif as_json:
        write_json(results)
    return 1 if wrong_with(results) or unreadable(results) else 0


def _find(paths: list[str] | None, loop: Loop) -> Found:
    where = paths or [sysconfig.get_path("stdlib")]
    check_paths(where)
    return run_on(loop, _walk, where, () if paths else NOT_STDLIB)


async def _walk(where: list[str], skip: tuple[str, ...]) -> Found:
    return await to_thread.run_sync(find_files, where, skip, abandon_on_cancel=True)


def _perform_all(runs: Iterable[Run], settings: Settings, found: Found, report: Report | None) -> list[Result]:
    results: list[Result] = []
    named: set[str] = set()
    for run in runs:
        result = perform(run, settings, found)
        _name(result.outcome.unreadable, named)
        results.append(result)
        if report is not None:
            report.show_run(result)
    for sentence in wrong_with(results):
        complain(sentence)
    if report is not None:
        report.show_end(results)
    return results


def _name(unreadable: Iterable[Unreadable], named: set[str]) -> None:
    """Report each on stderr, once, even if several runs cannot read it."""
    for one in unreadable:
        if one.path not in named:
            named.add(one.path)
            complain(f"cannot read {printable(one.path)}: {one.error}")
