"""Who has just given an object back, and so comes first for what is kept for MEMALLOC callers.

A task that finishes work gives back what the work held, and may at once need one object to go on with the next.
It must find it: others who finish, and have run or waited meanwhile, may depend on that very task, as all
writes of ZFS do on the one that ends them. So for a moment one of the kept objects is its own. With one object
kept, it is that of the task that gave back last.

Event loop's thread only; `others` from any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

from ._reserve import Reserve

T = TypeVar("T")


class Claims(Generic[T]):
    """The claims of tasks on what is kept in one pool.

    :param lasts: how many seconds a claim lasts
    """

    def __init__(self, reserve: Reserve[T], now: Callable[[], float], lasts: float) -> None:
        self._reserve = reserve
        self._now = now
        self._lasts = lasts
        self._until: dict[int, float] = {}  # by task, the oldest first

    def note(self) -> None:
        """The task that runs gives an object back."""
        task = _current_task() if self._reserve.kept else None
        if task is not None:
            self._until.pop(task, None)
            self._until[task] = self._now() + self._lasts
            while len(self._until) > self._reserve.kept:
                del self._until[next(iter(self._until))]

    @property
    def mine(self) -> bool:
        """Whether the task that runs has one."""
        return bool(self._until) and self._until.get(_current_task() or 0, 0.0) > self._now()

    @property
    def others(self) -> int:
        """How many other tasks have one."""
        if not self._until:
            return 0
        task, now = _current_task(), self._now()
        return sum(until > now and one != task for one, until in list(self._until.items()))


def _current_task() -> int | None:
    try:
        return anyio.get_current_task().id
    except RuntimeError:  # a callback of the loop, or a thread
        return None
