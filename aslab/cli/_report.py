"""Output for people: what each run shows and why, and what came of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from .._sizes import format_size
from ._files import Found
from ._runs import STUCK, Result, differing
from ._service import Outcome, Settings


class Report:
    """Prints a demo as it goes, on stdout; in colour where that is a terminal."""

    def __init__(self, settings: Settings, found: Found) -> None:
        self._settings = settings
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._found = found
        self._shown = 0

    def show_run(self, result: Result) -> None:
        """One run: headline, figures, and the table of the caches."""
        if not self._shown:
            self._show_task()
        self._shown += 1
        self._print()
        self._print(f"{self._shown}. {result.run}", "bold")
        self._print(f"   {_purpose(result)}")
        for name, text, style in self._rows(result):
            line = Text.assemble((f"   {name:<12}", "cyan"), (text, style))
            self._console.print(line, soft_wrap=True)
        self._print(result.outcome.table.rstrip("\n"), "dim")

    def show_end(self, results: Sequence[Result]) -> None:
        """What the runs together have shown."""
        self._print()
        if len(results) > 1:
            different = differing(results)
            if different:
                self._print(f"The checksums of {_files(len(different))} differ between the runs.", "bold red")
            else:
                self._print(f"All {len(results)} runs gave the same checksums.", "bold green")
        else:
            self._print(f"{_files(len(results[0].outcome.sums))} hashed; --sums prints the checksums.")

    def _show_task(self) -> None:
        settings, found = self._settings, self._found
        work = f"{_files(len(found.files))}, {format_size(found.nbytes)}"
        tasks = f"{settings.tasks} task{'s' if settings.tasks > 1 else ''}"
        buffers = f"{settings.buffers} buffer{'s' if settings.buffers > 1 else ''}"
        self._print(f"A checksum service: {work}; {tasks} with {buffers} of {format_size(settings.buffer)}.")

    def _rows(self, result: Result) -> Iterator[tuple[str, str, str]]:
        outcome = result.outcome
        yield "throughput", _throughput(outcome), ""
        yield "waits", _waits(outcome), ""
        yield "emergency", _emergency(outcome), ""
        if outcome.unreadable:
            yield "unreadable", f"{_files(len(outcome.unreadable))}, named on stderr", "red"
        yield _afterwards(result)

    def _print(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)


def _purpose(result: Result) -> str:
    if result.run.injected == STUCK.injected:
        return "No slab comes: after 0.1 s the service goes on with emergency objects from the heap."
    if result.run.injected:
        return "Slab memory misbehaves: does the service go on?"
    return "Who finds no free buffer waits for one: memory stays within the limit."


def _throughput(outcome: Outcome) -> str:
    speed = f", {format_size(outcome.nbytes / outcome.seconds)}/s" if outcome.seconds else ""
    return f"{_files(len(outcome.sums))}, {format_size(outcome.nbytes)} in {_time(outcome.seconds)}{speed}"


def _waits(outcome: Outcome) -> str:
    if not outcome.waits:
        return f"none of {outcome.allocations:,} allocations waited"
    median, longest = _time(statistics.median(outcome.waits)), _time(outcome.waits[-1])
    return f"{len(outcome.waits):,} of {outcome.allocations:,} allocations; median {median}, longest {longest}"


def _emergency(outcome: Outcome) -> str:
    if not outcome.emergency_used:
        return "no objects were needed"
    episodes = outcome.stats.obj_deadlock
    return (
        f"{outcome.emergency_used:,} objects, {outcome.stats.obj_emergency_max} at most at one time; "
        f"{episodes} dlock episode{'' if episodes == 1 else 's'}"
    )


def _afterwards(result: Result) -> tuple[str, str, str]:
    if result.outcome.resumed:
        word = "resumed" if result.run.injected else "well"
        return "afterwards", f"{word}: a buffer came from a slab, GROWING and DEADLOCKED are clear", "green"
    if result.endless:
        return "afterwards", "slab memory still does not come: this fault has no end", "yellow"
    return "afterwards", "normal operation did NOT resume", "bold red"


def _files(number: int) -> str:
    return f"{number:,} file" if number == 1 else f"{number:,} files"


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
