"""When nothing can run: is it the end?

A simulation jumps to the next timer. Where there is none left, every task is stuck, for good. An
allocator always has a timer, though, with which it looks after its caches; so where only such timers
are left, and go on being the only ones for long, the tasks are stuck too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from ._outside import Outside
from ._stuck import StuckTask, describe

PATIENCE = 600.0
"""Simulated seconds of nothing but housekeeping that make a run stuck."""
COLLECT_EVERY = 5000
"""Jumps of the clock between collections of garbage."""


class StuckInCleanUp(RuntimeError):
    """A run that was given up is stuck again."""


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Idle:
    """Counts how long nothing but housekeeping has happened. One for each run.

    ``end`` is called when the run is stuck, and must make some task run.
    """

    def __init__(self, end: Callable[[], object] | None = None) -> None:
        self.end: Callable[[], object] | None = end
        self.tasks: Callable[[], list[tuple[str, Any, bool]]] = list
        """Name and coroutine of all tasks, and whether they only look after others; in order of making."""
        self.spend: Callable[[float], object] = _spin
        """Moves the clock by that many seconds, while nothing else runs."""
        self.outside: Outside = Outside()
        self.since: float | None = None
        """Since when nothing but housekeeping has happened; None where that is not so."""
        self.found: tuple[StuckTask, ...] = ()
        """The tasks that were stuck, once the run has been given up."""
        self.found_since: float = 0.0
        self.patience: float = PATIENCE
        self.collect: Callable[[], object] = lambda: None
        self._over = False
        self._jumps = 0

    def jumps(self) -> None:
        """The clock is about to jump. Now and then that is the moment to collect garbage."""
        self._jumps += 1
        if self._jumps % COLLECT_EVERY == 0:
            self.collect()

    def look(self) -> tuple[StuckTask, ...]:
        """The tasks that are stuck now; empty where a timer of theirs is left."""
        return self._stuck_tasks() if self.since is not None else ()

    def housekeeping(self, now: float, following: float) -> bool:
        """Nothing but housekeeping is left, due at ``following``. True if the run was given up."""
        if self.since is None:
            self.since = now
        if following - self.since < self.patience:
            return False
        self.stuck(now)
        return True

    def stuck(self, now: float) -> None:
        """Give the run up.

        :raises StuckInCleanUp: if it was given up before
        """
        if self.since is None:
            self.since = now
        tasks = self._stuck_tasks()
        if self._over or self.end is None:
            raise StuckInCleanUp(
                "every task is stuck: " + "; ".join(map(str, tasks) if tasks else self._whatever())
            )
        self.found, self.found_since, self.since = tasks, self.since, None
        self._over = True
        self.end()

    def _stuck_tasks(self) -> tuple[StuckTask, ...]:
        return describe(
            (name, coroutine) for name, coroutine, looks_after_others in self.tasks() if not looks_after_others
        )

    def _whatever(self) -> tuple[str, ...]:
        """What is left to wait for, where no task of the program is: nobody should have to guess."""
        tasks = describe(((name, coroutine) for name, coroutine, _ in self.tasks()), everyone=True)
        return tuple(map(str, tasks)) or self.outside.told() or ("no task is left, the loop waits for a callback",)


def until_next(following: float, now: float, most: float) -> float:
    """Seconds to the next timer, but no more than ``most``."""
    return min(following - now, most) if following < math.inf else most
