"""asyncio in simulated time.

The selector never sleeps: asked to wait for a time, it moves the clock by that much. What it registers
is real, so sockets and threads still wake the loop. While calls are in threads the clock stands still.

Order must not depend on where objects lie in memory. asyncio's ready queue is first in, first out, but
the order in which tasks are cancelled is that of sets: asyncio's and anyio's of tasks, anyio's of cancel
scopes. Here both hash by the order of their making. (anyio offers no way to have scopes of another kind,
so its module's name for them is changed while a simulation runs.)
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import math
import selectors
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio._backends._asyncio as anyio_asyncio

from .._engine import HOUSEKEEPING
from ._idle import THREADS_GRACE, Idle


class _Selector(selectors.BaseSelector):
    """The real one, asked without waiting."""

    def __init__(self, idle: Idle) -> None:
        self._real = selectors.DefaultSelector()
        self._idle = idle
        self.now = 0.0
        self.timers: Callable[[], list[asyncio.TimerHandle]] = list

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if self._idle.threads_at_work():
            return self._wait_for_threads()
        timers = self.timers()
        if timeout is None or timers[0].when() == math.inf:
            if self._idle.hope_again():
                return self._wait_for_threads()
            self._idle.stuck(self.now)
            return []
        self._idle.jumps()
        if self._only_housekeeping() and self._idle.housekeeping(self.now, self.now + timeout):
            return []
        self.now = max(self.now, self.timers()[0].when())  # adding the timeout would round
        return []

    def _wait_for_threads(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(THREADS_GRACE)
        if not ready:
            self._idle.give_threads_up()
        return ready

    def _only_housekeeping(self) -> bool:
        """Whether all timers are of tasks that only look after others."""
        timers = self.timers()
        if not _is_housekeeping(timers[0]):  # the usual case, and the quick answer
            self._idle.since = None
            return False
        if all(timer.cancelled() or timer.when() == math.inf or _is_housekeeping(timer) for timer in timers):
            return True
        self._idle.since = None
        return False


def _is_housekeeping(timer: asyncio.TimerHandle) -> bool:
    context = timer._context  # type: ignore[attr-defined]
    return bool(context.get(HOUSEKEEPING, False))


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps. It starts at 0."""

    def __init__(self, idle: Idle | None = None) -> None:
        self._selector_of_time = _Selector(idle or Idle())
        super().__init__(self._selector_of_time)
        # asked each time: asyncio makes a new list when many of the timers are cancelled
        self._selector_of_time.timers = lambda: self._scheduled  # type: ignore[attr-defined]
        self._selector_of_time._idle.tasks = self._tasks
        self._numbers = itertools.count()
        self.set_task_factory(self._new_task)

    def time(self) -> float:
        """Simulated seconds."""
        return self._selector_of_time.now

    def _new_task(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return _OrderedTask(next(self._numbers), coroutine, loop=loop, **options)

    def _tasks(self) -> list[tuple[str, Any]]:
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, _OrderedTask)]
        tasks.sort(key=hash)
        return [(task.get_name(), task.get_coro()) for task in tasks if not task.context.get(HOUSEKEEPING, False)]


class _OrderedTask(asyncio.Task[Any]):
    """A task that sets keep by the order of its making."""

    def __init__(self, number: int, coroutine: Any, **options: Any) -> None:
        self._number = number
        self.context = options.pop("context", None) or contextvars.copy_context()
        super().__init__(coroutine, context=self.context, **options)

    def __hash__(self) -> int:
        return self._number


@contextlib.contextmanager
def ordered_scopes() -> Iterator[None]:
    """While this lasts, cancel scopes are kept by the order of their making."""
    numbers = itertools.count()
    original: Callable[..., Any] = anyio_asyncio.CancelScope

    class OrderedScope(anyio_asyncio.CancelScope):
        __slots__ = ("_number",)

        def __init__(self, deadline: float = float("inf"), shield: bool = False) -> None:
            super().__init__(deadline, shield)
            self._number = next(numbers)

        def __hash__(self) -> int:
            return self._number

    anyio_asyncio.CancelScope = OrderedScope  # type: ignore[misc]
    try:
        yield
    finally:
        anyio_asyncio.CancelScope = original  # type: ignore[misc, assignment]
