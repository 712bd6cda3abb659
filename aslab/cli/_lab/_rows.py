"""The results of a story: tables or JSON on stdout, and a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .._prose import console, say, tabulate
from ._common import print_json, writing

if TYPE_CHECKING:
    from ...lab._report._seeds import Machine
    from ...lab._report._tale import Tale


class Row(Protocol):
    """One machine with all seeds."""

    @property
    def machine(self) -> Machine: ...
    @property
    def as_expected(self) -> bool: ...

    def as_json(self) -> dict[str, Any]:
        """The row as JSON."""
        ...

    def tables(self) -> Sequence[dict[str, str]]:
        """Its row in each table."""
        ...

    def stuck_in_words(self) -> str:
        """Who waits on whom, as text; empty if it never got stuck."""
        ...


def put_out(rows: Sequence[Row], tale: Callable[[], Tale], report: Path | None, *, as_json: bool) -> int:
    """Write the page, if requested, and print the results.

    :return: the exit code: 0 if each machine ended as expected, 1 if not
    :raises BadInput: if the page cannot be written
    """
    if report is not None:
        from ...lab._report._tale import write_tale

        with writing(report):
            write_tale(report, tale())
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        show(rows)
    return 0 if all(row.as_expected for row in rows) else 1


def show(rows: Sequence[Row]) -> None:
    """Print the tables, and a line or two about each machine."""
    out = console()
    for table in zip(*(row.tables() for row in rows), strict=True):
        tabulate(out, table, left=("machine", "failed"))
        say(out)
    for row in rows:
        say(out, row.machine.about, head=f"{row.machine.name}: ")
        if stuck := row.stuck_in_words():
            say(out, stuck, "yellow", head="    stuck: ", head_style="yellow")
