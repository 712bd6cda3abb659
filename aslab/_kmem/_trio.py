"""trio's clock, and a future for trio, which has none. Imported only where trio runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from trio.lowlevel import Abort, Task, current_clock, current_task, reschedule, wait_task_rescheduled


def clock_of_this_run() -> Callable[[], float]:
    """Return the function for the time of this run; `trio.current_time` is that of the run of its caller."""
    return current_clock().current_time


class TrioFuture:
    """A `Future` of _clock.py. Event loop's thread only."""

    __slots__ = ("_done", "_task")

    def __init__(self) -> None:
        self._done = False
        self._task: Task | None = None

    def done(self) -> bool:
        """As asyncio's."""
        return self._done

    def set_result(self, _: None, /) -> None:
        """As asyncio's."""
        self._done = True
        if self._task is not None:
            reschedule(self._task)

    def __await__(self) -> Generator[Any, Any, None]:
        if not self._done:
            self._task = current_task()
            yield from wait_task_rescheduled(self._abort).__await__()  # noqa: ASYNC105 - it is

    def _abort(self, _: Any) -> Abort:
        self._done = True
        return Abort.SUCCEEDED
