"""One run of the service, and whether it ended well."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ...backends import Backend, Mmap
from ...faults import parse_fault
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
        return f"{self.loop.value}, {' and '.join(self.injected) or 'healthy'}"


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


def wrong_with(result: Result) -> list[str]:
    """What went wrong, one sentence each."""
    if result.outcome.resumed or result.endless:
        return []
    return [f"normal operation did not resume: {result.run}"]
