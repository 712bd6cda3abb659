"""What runs in the real world: calls in threads, and child processes. The clock waits for them.

The clock stands still while a task waits for one of them. One that takes longer than `GRACE` may itself
wait for a task that sleeps, or never end: from then on the clock runs at the pace of real time. So the run
sees the time the call takes, and neither hangs nor lets hours pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ._threads import Threads

GRACE = 5.0
"""Real seconds that the clock stands still for one call or process."""
STEP = 0.5
"""The longest real time between two checks on a call that takes longer."""


class Outside:
    """What is waited for, and since when. One per run.

    ``look`` returns what tasks wait for now: for each an object, the same one each time, and a description.
    """

    def __init__(self) -> None:
        self.look: Callable[[], list[tuple[object, str]]] = list
        self.threads: Threads = Threads()
        self.waited: bool = False
        """Whether anything was waited for when `waits` was last asked."""
        self._since: dict[int, tuple[float, object]] = {}  # by id: asking for a hash might assign a number

    def waits(self) -> float | None:
        """Real seconds that the clock must stand still; 0 if it must run at the pace of real time.

        None if nothing is waited for: then the clock may jump.
        """
        found = self.look()
        self.waited = bool(found)
        if not found:
            self._since.clear()
            return None
        now = time.monotonic()
        self._since = {id(one): self._since.get(id(one), (now, one)) for one, _ in found}
        return max(0.0, max(since for since, _ in self._since.values()) + GRACE - now)

    def told(self) -> tuple[str, ...]:
        """The descriptions."""
        return tuple(words for _, words in self.look())
