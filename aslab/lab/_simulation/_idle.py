"""When nothing can run: is this the end?

A simulation jumps to the next timer. If none is left, every task is stuck for good. An allocator
always has a timer, though: it looks after its caches at intervals. So if only such housekeeping timers
are left for a long time, the tasks are stuck too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from ._outside import Outside
from ._stuck import StuckTask, describe

PATIENCE = 600.0
"""Simulated seconds of nothing but housekeeping after which a run counts as stuck."""
COLLECT_EVERY = 5000
"""Clock jumps between garbage collections."""


class StuckInCleanUp(RuntimeError):
    """A run that was given up got stuck again while it cleaned up."""


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Idle:
    """Tracks how long nothing but housekeeping has happened. One per run.

    ``end`` is called when the run is stuck; it must make a task runnable.
    """

    def __init__(self, end: Callable[[], object] | None = None) -> None:
        self.end: Callable[[], object] | None = end
        self.tasks: Callable[[], list[tuple[str, Any, bool]]] = list
        """Name and coroutine of each task, and whether it is housekeeping, in creation order."""
        self.clock: Callable[[], float] | None = None
        """The loop's clock, if it is simulated."""
        self.sleep: Callable[[float], Awaitable[object]] = anyio.sleep
        """The loop's own, which does not look for its loop."""
        self.spend: Callable[[float], object] = _spin
        """Moves the clock forward by that many seconds while nothing else runs."""
        self.outside: Outside = Outside()
        self.since: float | None = None
        """The time since which only housekeeping has happened; None if anything else has."""
        self.found: tuple[StuckTask, ...] = ()
        """The tasks that were stuck when the run was given up."""
        self.found_since: float = 0.0
        self.patience: float = PATIENCE
        self.collect: Callable[[], object] = lambda: None
        self._over = False
        self._jumps = 0

    def jumps(self) -> None:
        """The clock is about to jump: from time to time, collect garbage first."""
        self._jumps += 1
        if self._jumps % COLLECT_EVERY == 0:
            self.collect()

    def look(self) -> tuple[StuckTask, ...]:
        """The tasks that are stuck now; none while any of them has a timer."""
        return self._stuck_tasks() if self.since is not None else ()

    def housekeeping(self, now: float, following: float) -> bool:
        """Only housekeeping is left, next due at ``following``. Returns True if the run was given up."""
        if self.since is None:
            self.since = now
        if following - self.since < self.patience:
            return False
        self.stuck(now)
        return True

    def stuck(self, now: float) -> None:
        """Give up the run.

        :raises StuckInCleanUp: if it was given up already
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
        """What is still waited for when no task of the program is left, so that nobody has to guess."""
        tasks = describe(((name, coroutine) for name, coroutine, _ in self.tasks()), everyone=True)
        return tuple(map(str, tasks)) or self.outside.told() or ("no task is left; the loop waits for a callback",)


def until_next(following: float, now: float, most: float) -> float:
    """Seconds to the next timer, but no more than ``most``."""
    return min(following - now, most) if following < math.inf else most
