"""asyncio in simulated time.

The selector never sleeps: asked to wait, it moves the clock forward instead. The files it watches are
real, so sockets and threads still wake the loop. While a call runs in a thread, or a task waits for a
child process, the clock stands still: see `_outside`.

Order must not depend on where objects lie in memory: `_order` sees to that.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from _thread import _count as threads_besides  # besides the main one
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from anyio._backends._asyncio import WorkerThread

from ..._kmem._wakeup import HOUSEKEEPING
from ._idle import Idle, until_next
from ._order import OrderedFuture, OrderedTask, number_in
from ._outside import GRACE, STEP
from ._queue import Due, Turns
from ._stuck import frames_of


class _Selector(selectors.BaseSelector):
    """The real selector, polled without waiting."""

    def __init__(self, idle: Idle) -> None:
        self._real = selectors.DefaultSelector()
        poll = getattr(getattr(self._real, "_selector", None), "poll", None)  # of the system: a tenth of the time
        self.poll: Callable[[], list[Any]] = partial(poll, 0, 1) if poll else partial(self._real.select, 0)
        """Whether anything has come, without waiting."""
        self._idle = idle
        self._hoped = False
        self.now = 0.0
        self.timers: Callable[[], list[Due]] = list
        self.quiet: Callable[[], bool] = lambda: False

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
        ready = self.poll() and self._real.select(0)
        if ready or timeout == 0:
            return ready
        waits = None if self.quiet() else self._idle.outside.waits()
        if waits:
            self._idle.since = None
            return self._real.select(waits)
        timers = self.timers()
        following = timers[0].handle._when if timeout is not None else math.inf
        if waits is not None:
            return self._keep_pace(following)
        if following == math.inf:
            return self._last_look()
        self._idle.jumps()
        if not timers[0].handle._context.get(HOUSEKEEPING, False):  # the common case, and the cheap check
            self._idle.since = None
        elif self._only_housekeeping() and self._idle.housekeeping(self.now, following):
            return []
        if following > self.now:
            self.now = following  # adding the timeout would round
        return []

    def _keep_pace(self, following: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Run the clock at the pace of real time."""
        most = until_next(following, self.now, STEP)
        if (following == math.inf or self._only_housekeeping()) and self._idle.housekeeping(
            self.now, self.now + most
        ):
            return []
        began = time.monotonic()
        ready = self._real.select(most)
        self.now = min(following, self.now + (time.monotonic() - began if ready else most))
        return ready

    def _last_look(self) -> list[tuple[selectors.SelectorKey, int]]:
        """No timer is left. Sockets and busy threads get a grace period; then the run is stuck."""
        sockets = len(self._real.get_map()) > 1  # one is the loop's own
        hopes = not self._hoped and (sockets or self._idle.outside.threads.at_work())
        ready = self._real.select(GRACE if hopes else 0)
        self._hoped = (self._hoped or hopes) and not ready
        if not ready:
            self._idle.stuck(self.now)
        return ready

    def _only_housekeeping(self) -> bool:
        """Whether every timer belongs to a housekeeping task."""
        timers = self.timers()
        if all(due == math.inf or due.handle._cancelled or _is_housekeeping(due) for due in timers):
            return True
        self._idle.since = None
        return False


def _is_housekeeping(due: Due) -> bool:
    return bool(due.handle._context.get(HOUSEKEEPING, False))


class SimulatedLoop(Turns):
    """An event loop whose clock jumps. It starts at 0."""

    def __init__(self, idle: Idle | None = None) -> None:
        self._idle = idle or Idle()
        self.outside: _Selector = _Selector(self._idle)
        super().__init__(self.outside)
        # looked up each time: asyncio replaces the list when many timers are cancelled
        self.outside.timers = lambda: self._scheduled
        self._idle.tasks = self._tasks
        self._idle.clock = self.time
        self._idle.sleep = self.sleep
        self.outside.quiet = self._quiet
        self._idle.spend = self._spend
        self._idle.outside.look = self._outside
        self._calls: list[tuple[asyncio.Future[Any], str]] = []
        self._processes: list[Any] = []
        self._ends_executor = False
        self._awaited: Any = None

    def time(self) -> float:
        """Simulated seconds."""
        return self.outside.now

    def _spend(self, seconds: float) -> None:
        self.outside.now += seconds

    # -- order

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """As asyncio does, but with a hash that keeps tasks in sets in creation order."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, **options)
        self._check_closed()
        task = OrderedTask(coro, loop=self, **options)
        if trace := getattr(task, "_source_traceback", None):
            del trace[-1]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        """As asyncio does, but with a hash that keeps futures in sets in the order of insertion."""
        return OrderedFuture(loop=self)

    # -- the outside world

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """As asyncio does; the clock waits for it."""
        future = super().run_in_executor(executor, func, *args)
        self._calls.append((future, f"a call in a thread, of {getattr(func, '__qualname__', func)!s}"))
        return future

    async def shutdown_default_executor(self, *args: Any, **options: Any) -> None:
        """As asyncio does; the clock waits for it."""
        self._ends_executor = True
        try:
            await super().shutdown_default_executor(*args, **options)
        finally:
            self._ends_executor = False

    async def _make_subprocess_transport(self, *args: Any, **options: Any) -> Any:
        transport = await super()._make_subprocess_transport(*args, **options)  # type: ignore[misc]
        self._processes.append(transport)
        return transport

    def run_until_complete(self, future: Any) -> Any:
        """As asyncio does."""
        self._awaited = future
        try:
            return super().run_until_complete(future)
        finally:
            self._awaited = None

    def _quiet(self) -> bool:
        """Whether the clock has nothing to wait for, as nearly always, and had nothing when last asked."""
        if self._calls or self._processes or self._ends_executor or self._idle.outside.waited:
            return False
        return not threads_besides()  # threading.active_count takes a lock

    def _outside(self) -> list[tuple[object, str]]:
        found: list[tuple[object, str]] = []
        if self._calls:
            self._calls = [call for call in self._calls if not call[0].done()]
            found += self._calls
        if self._ends_executor:
            found.append((self, "the threads of the default executor"))
        if self._processes:
            self._processes = [process for process in self._processes if not process._finished]
            found += [
                (key, f"the process {process.get_pid()}")
                for process in self._processes
                if (key := _wanted(process))
            ]
        return found + self._calls_of_anyio()

    def _calls_of_anyio(self) -> list[tuple[object, str]]:
        if threading.active_count() == 1 or not any(map(self._at_work, threading.enumerate())):
            return []
        found: list[tuple[object, str]] = []
        for task in asyncio.all_tasks(self):
            frames = list(frames_of(task.get_coro()))
            frame = frames[-1] if frames else None
            if frame is not None and frame.f_code.co_qualname == "AsyncIOBackend.run_sync_in_worker_thread":
                names = frame.f_locals
                found.append((names["future"], f"a call in a thread, of {names['func']!r}"))
        return found

    def _at_work(self, thread: threading.Thread) -> bool:
        return isinstance(thread, WorkerThread) and thread.loop is self and thread not in thread.idle_workers

    def _tasks(self) -> list[tuple[str, Any, bool]]:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: number_in(task, 0))
        found = [(task.get_name(), task.get_coro(), _looks_after_others(task)) for task in tasks]
        return found or ([("main", self._awaited, False)] if self._awaited is not None else [])


def _looks_after_others(task: asyncio.Task[Any]) -> bool:
    context: Any = task.context if isinstance(task, OrderedTask) else getattr(task, "get_context", dict)()
    return bool(context.get(HOUSEKEEPING, False))


def _wanted(process: Any) -> object:
    """What a task waits for a child process to do; None if no task waits for it."""
    if process._exit_waiters:
        return process
    protocol = process.get_protocol()
    if not isinstance(protocol, asyncio.subprocess.SubprocessStreamProtocol):
        # a custom protocol is told of everything
        return process if process.get_returncode() is None else None
    for reader in (protocol.stdout, protocol.stderr):
        if reader is not None and reader._waiter is not None:  # type: ignore[attr-defined]
            return reader._waiter  # type: ignore[attr-defined]
    exited = getattr(getattr(protocol, "exited", None), "_waiters", ())  # anyio's event
    return next(iter((*protocol._drain_waiters, *exited)), None)  # type: ignore[attr-defined]
