"""One run of the service, and whether it ended well."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from ...backends import Backend, Mmap
from ...faults import parse_fault
from .._loops import Loop, run_on
from ._processes import FileQueue, in_processes
from ._progress import progress_bar
from ._resume import patience
from ._service import Outcome, Settings, checksum

FROM = 2_000
"""So many files are worth several processes: to make one takes as long as to hash some hundreds."""
MOST = 4
"""Processes."""


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


def perform(run: Run, settings: Settings, files: Sequence[str] | FileQueue) -> Result:
    """Run the service once, with a progress bar on a terminal.

    :raises ConfigError: if a buffer does not fit the limit
    """
    slabs = run.slabs()
    wait = patience(slabs)
    with progress_bar(str(run), len(files), shown=sys.stderr.isatty()) as advance:
        outcome = run_on(run.loop, checksum, files, settings, slabs, wait, advance)
    return Result(run, outcome, endless=wait == 0)


def processes(run: Run, settings: Settings, files: Sequence[str]) -> int:
    """How many are worth it: one for few files, and where progress or a fault is to be seen."""
    if len(files) < FROM or run.injected or sys.stderr.isatty():
        return 1
    if threading.active_count() > 1 or not hasattr(os, "sched_getaffinity"):  # elsewhere forks are frail
        return 1
    return min(len(os.sched_getaffinity(0)), MOST, settings.limit // settings.stride)


def perform_in(number: int, run: Run, settings: Settings, files: Sequence[str]) -> list[Result]:
    """Run the service in so many processes at once, each with its share of the limit.

    :raises Lost: if one of them was killed, or has failed
    """
    if number == 1:
        return [perform(run, settings, files)]
    share = replace(settings, limit=settings.limit // number)
    with closing(FileQueue(files)) as queue:
        return in_processes(number, lambda: perform(run, share, queue))


def wrong_with(result: Result) -> list[str]:
    """What went wrong, one sentence each."""
    if result.outcome.resumed or result.endless:
        return []
    return [f"normal operation did not resume: {result.run}"]
