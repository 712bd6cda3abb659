"""The runs of the service, and whether they ended well."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ...backends import Backend, Mmap
from ...faults import parse_fault
from .._errors import printable
from .._loops import Loop, run_on
from ._files import Found
from ._progress import progress_bar
from ._resume import patience
from ._service import Outcome, Settings, checksum


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the service: the loop, and the faults."""

    loop: Loop
    injected: tuple[str, ...] = ()

    def slabs(self) -> Backend:
        """The backend for its slabs.

        :raises ConfigError: if a fault is not valid
        """
        backend: Backend = Mmap()
        for spec in self.injected:
            backend = parse_fault(spec)(backend)
        return backend

    def __str__(self) -> str:
        if self.injected == STUCK.injected:
            return f"{self.loop.value}, growth stuck for 3 s"
        return f"{self.loop.value}, {' and '.join(self.injected) or 'healthy'}"


STUCK = Run(Loop.ASYNCIO, ("deadlock:3s",))
TOUR = (Run(Loop.ASYNCIO), Run(Loop.TRIO), STUCK)
"""What ``aslab demo`` shows by default."""


@dataclass(frozen=True, slots=True)
class Result:
    """A run and its outcome."""

    run: Run
    outcome: Outcome
    endless: bool
    """Whether the fault never ends, so that normal operation cannot resume."""


def perform(run: Run, settings: Settings, found: Found) -> Result:
    """Run the service once, with a progress bar on a terminal.

    :raises ConfigError: if a buffer does not fit the limit
    """
    slabs = run.slabs()
    wait = patience(slabs)
    with progress_bar(str(run), len(found.files), shown=sys.stderr.isatty()) as advance:
        outcome = run_on(run.loop, checksum, found.files, settings, slabs, wait, advance)
    outcome.unreadable[:0] = found.unreadable
    return Result(run, outcome, endless=wait == 0)


def wrong_with(results: Sequence[Result]) -> list[str]:
    """What went wrong, one sentence each."""
    wrong = []
    different = differing(results)
    if different:
        first = printable(different[0])
        wrong.append(f"{len(different)} checksums differ between the runs; the first is of {first}")
    wrong += [
        f"normal operation did not resume: {result.run}"
        for result in results
        if not (result.outcome.resumed or result.endless)
    ]
    return wrong


def unreadable(results: Sequence[Result]) -> int:
    """The number of files and folders that could not be read, over all runs."""
    return len({one.path for result in results for one in result.outcome.unreadable})


def differing(results: Sequence[Result]) -> list[str]:
    """The paths whose checksums differ between runs."""
    first, *others = (result.outcome.sums for result in results)
    paths = {path for sums in (first, *others) for path in sums}
    return sorted(path for path in paths if any(first.get(path) != sums.get(path) for sums in others))
