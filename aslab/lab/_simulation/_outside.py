"""What the real world has in hand: calls in threads, child processes. The clock waits for them.

It stands still while one of them is under way that somebody waits for. One that takes longer than
`GRACE` may itself wait for a task that sleeps, or never end: from then on the clock goes on, no faster
than the real one. So it sees the time that it takes, and neither hangs the run nor lets hours pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ._threads import Threads

GRACE = 5.0
"""Real seconds for which the clock stands still for a call or a process."""
STEP = 0.5
"""Real seconds at most between looks at what is waited for longer."""


class Outside:
    """What is waited for, and since when. One for each run.

    ``look`` answers what somebody waits for now: an object for each, the same each time, and words.
    """

    def __init__(self) -> None:
        self.look: Callable[[], list[tuple[object, str]]] = list
        self.threads: Threads = Threads()
        self._since: dict[int, tuple[float, object]] = {}  # by id: to hash them might be to number them

    def waits(self) -> float | None:
        """Real seconds for which the clock must stand still; 0 if it goes at the pace of the real one.

        None where nothing is waited for: then it may jump.
        """
        found = self.look()
        if not found:
            self._since = {}
            return None
        now = time.monotonic()
        self._since = {id(one): self._since.get(id(one), (now, one)) for one, _ in found}
        return max(0.0, max(since for since, _ in self._since.values()) + GRACE - now)

    def told(self) -> tuple[str, ...]:
        """In words."""
        return tuple(words for _, words in self.look())
