"""Output for people: what a run does, its figures, and whether all is well."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich.text import Text

from ..._checks import format_size
from .._prose import console, say
from ._files import Found
from ._run import Result, wrong_with
from ._service import Outcome, Settings
from ._words import and_broken, count, duration


class Report:
    """Prints one run on stdout, as wide as the terminal or 80 columns; in colour on a terminal.

    :param table: also show the text of /proc/spl/kmem/slab, which is 150 columns wide
    """

    def __init__(self, settings: Settings, found: Found, *, table: bool) -> None:
        self._settings = settings
        self._console = console()
        self._found = found
        self._table = table

    def show(self, result: Result) -> None:
        """Print what it did, its figures, the table of caches if requested, and the verdict."""
        self._show_task()
        self._print()
        self._print(str(result.run), "bold")
        for name, text, style in self._rows(result):
            say(self._console, text, style, head=f"   {name:<10}  ", head_style="cyan")
        if self._table:
            self._console.print(Text(result.outcome.table.rstrip("\n"), "dim"), soft_wrap=True)
        self._print()
        wrong = wrong_with(result)
        if missed := len(result.outcome.unreadable):
            wrong.append(f"{missed:,} of the files and folders could not be read")
        if wrong:
            self._print(f"Verdict: NOT well: {'; '.join(wrong)}.", "bold red")
        else:
            self._print(f"Verdict: {_all_well(result)}", "bold green")
        self._print("(--sums prints the checksums.)")

    def show_nothing(self) -> None:
        """Print that there are no files."""
        self._print("There are no files to read, so nothing was run.")

    def _show_task(self) -> None:
        settings, found = self._settings, self._found
        work = f"{count(len(found.files), 'file')}{and_broken(found.broken)}"
        tasks, buffers = count(settings.tasks, "task"), count(settings.buffers, "buffer")
        size = format_size(settings.buffer)
        self._print(f"A checksum service: {work}; {tasks} with {buffers} of {size}.")
        if settings.tasks > settings.buffers:
            self._print("A task that finds no free buffer waits for one, so memory stays within the limit.")

    def _rows(self, result: Result) -> Iterator[tuple[str, str, str]]:
        outcome = result.outcome
        yield "read", _throughput(outcome), ""
        yield "waits", _waits(outcome), ""
        yield "memory", self._memory(outcome), ""
        yield "emergency", _emergency(outcome), ""
        if outcome.unreadable:
            yield "unreadable", f"{count(len(outcome.unreadable), 'file')}, listed on stderr", "red"
        yield _afterwards(result)

    def _memory(self, outcome: Outcome) -> str:
        stats = outcome.stats
        slabs, limit = format_size(stats.slab_size * stats.slab_total), format_size(self._settings.limit)
        return f"{count(stats.slab_total, 'slab')}, {slabs}; the limit is {limit}"

    def _print(self, text: str = "", style: str = "") -> None:
        say(self._console, text, style)


def _all_well(result: Result) -> str:
    told = f"all is well. It read {count(len(result.outcome.sums), 'file')} and computed the checksums."
    if result.outcome.emergency_used:
        told += " When no slab arrived in time, tasks continued with emergency objects"
        told += "; slabs never arrived." if result.endless else ", until slabs arrived again."
    return told


def _throughput(outcome: Outcome) -> str:
    speed = f" ({format_size(outcome.nbytes / outcome.seconds)}/s)" if outcome.seconds else ""
    files = count(len(outcome.sums), "file")
    return f"{files}, {format_size(outcome.nbytes)} in {duration(outcome.seconds)}{speed}"


def _waits(outcome: Outcome) -> str:
    if not outcome.waits:
        return f"none of {outcome.allocations:,} allocations waited"
    median, longest = duration(statistics.median(outcome.waits)), duration(outcome.waits[-1])
    return f"{len(outcome.waits):,} of {outcome.allocations:,} allocations; median {median}, longest {longest}"


def _emergency(outcome: Outcome) -> str:
    if not outcome.emergency_used:
        return "no objects were needed"
    late = outcome.stats.obj_deadlock
    return (
        f"{count(outcome.emergency_used, 'object')}, {outcome.stats.obj_emergency_max:,} at most at once; "
        f"growth was late {'once' if late == 1 else f'{late:,} times'}"
    )


def _afterwards(result: Result) -> tuple[str, str, str]:
    if result.outcome.resumed:
        word = "back to normal" if result.run.injected else "normal"
        return "afterwards", f"{word}: a buffer came from a slab, and no growth is under way", "green"
    if result.endless:
        return "afterwards", "slab memory still does not arrive: this fault never ends", "yellow"
    return "afterwards", "normal operation did NOT resume", "bold red"
