"""When nothing can run: is it the end?

A simulation jumps to the next timer. Where there is none left, every task is stuck, for good. An
allocator always has a timer, though, with which it looks after its caches; so where only such timers
are left, and go on being the only ones for long, the tasks are stuck too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..backends._threads import at_work
from ._stuck import StuckTask, describe

PATIENCE = 600.0
"""Simulated seconds of nothing but housekeeping that make a run stuck."""
THREADS_GRACE = 5.0
"""Real seconds that calls in threads are given to end, while the clock stands still."""
COLLECT_EVERY = 5000
"""Jumps of the clock between collections of garbage."""


class StuckInCleanUp(RuntimeError):
    """A run that was given up is stuck again."""


class Idle:
    """Counts how long nothing but housekeeping has happened. One for each run.

    ``end`` is called when the run is stuck, and must make some task run.
    """

    def __init__(self, end: Callable[[], object] | None = None) -> None:
        self.end: Callable[[], object] | None = end
        self.tasks: Callable[[], list[tuple[str, Any]]] = list
        """Names and coroutines of all tasks, in the order of their making."""
        self.since: float | None = None
        """Since when nothing but housekeeping has happened; None where that is not so."""
        self.found: tuple[StuckTask, ...] = ()
        """The tasks that were stuck, once the run has been given up."""
        self.found_since: float = 0.0
        self.patience: float = PATIENCE
        self.collect: Callable[[], object] = lambda: None
        self._over = False
        self._jumps = 0
        self._given_up = 0  # threads that are not waited for any more
        self._hoped = False

    def jumps(self) -> None:
        """The clock is about to jump. Now and then that is the moment to collect garbage."""
        self._jumps += 1
        if self._jumps % COLLECT_EVERY == 0:
            self.collect()

    def threads_at_work(self) -> bool:
        """Whether calls in threads are under way that are worth waiting for."""
        number = at_work() if threading.active_count() > 1 else 0
        self._given_up = min(self._given_up, number)
        return number > self._given_up

    def give_threads_up(self) -> None:
        """Those that are under way have had their time: go on without them."""
        self._given_up = at_work()

    def hope_again(self) -> bool:
        """Before the run is given up, threads that were get their time once more. Whether there are any."""
        hoped, self._hoped = self._hoped, True
        if hoped or not self._given_up:
            return False
        self._given_up = 0
        return True

    def look(self) -> tuple[StuckTask, ...]:
        """The tasks that are stuck now; empty where a timer of theirs is left."""
        return describe(self.tasks()) if self.since is not None else ()

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
        tasks = describe(self.tasks())
        if self._over or self.end is None:
            raise StuckInCleanUp("every task is stuck: " + "; ".join(map(str, tasks)))
        self.found, self.found_since, self.since = tasks, self.since, None
        self._over = True
        self.end()
