"""trio in simulated time, and in an order that comes from the seed.

trio deliberately runs ready tasks in random order. It has a switch and a generator of its own for
repeatable tests (pytest-trio and Hypothesis use them): here both are set for the duration of a run, and
restored.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import trio
import trio._core._run as trio_run
import trio._subprocess
import trio._threads
import trio._unix_pipes
import trio.testing

from ..._kmem._wakeup import HOUSEKEEPING
from ._idle import Idle, until_next
from ._outside import GRACE, STEP
from ._stuck import frames_of

_THREADS = trio._threads.__file__
_PROCESSES = (trio._subprocess.__file__, trio._unix_pipes.__file__)  # a pipe leads to one
_POLL = 0.001  # real seconds between polls of the outside world, where trio offers no way to wait for it


def simulated_clock(idle: Idle) -> trio.testing.MockClock:
    """A clock that starts at 0, jumps to the next deadline when nothing can run, and notices if there is none."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    hoped = False

    def keep_pace(now: float, following: float, runner: Any) -> None:
        most = until_next(following, now, STEP)
        idles = following == math.inf or _only_housekeeping(runner.deadlines._heap)
        if not idles:
            idle.since = None
        elif idle.housekeeping(now, now + most):
            return
        began = time.monotonic()
        came = _wait(runner, most)
        clock.jump(min(time.monotonic() - began, most) if came else most)

    def autojump() -> None:
        nonlocal hoped
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        now, following = clock.current_time(), runner.deadlines.next_deadline()
        waits = idle.outside.waits()
        if waits:
            idle.since = None
            _wait(runner, waits)
        elif waits is not None:
            keep_pace(now, following, runner)
        elif following < math.inf:
            idle.jumps()
            if not _only_housekeeping(runner.deadlines._heap):
                idle.since = None
            elif idle.housekeeping(now, following):
                return
            if following > now:
                clock.jump(following - now)
        else:
            hopes = not hoped and (_sockets(runner) or idle.outside.threads.at_work())
            came = _wait(runner, GRACE if hopes else 0)
            hoped = (hoped or hopes) and not came
            if not came:
                idle.stuck(now)

    clock._autojump = autojump  # type: ignore[method-assign]
    idle.tasks = _tasks
    idle.clock = clock.current_time
    idle.sleep = trio.sleep
    idle.spend = clock.jump
    idle.outside.look = _outside
    return clock


def _wait(runner: Any, seconds: float) -> bool:
    """Wait for something from outside, which trio itself will handle. Returns whether anything came, if known."""
    events = getattr(runner.io_manager, "_epoll", None) or getattr(runner.io_manager, "_kqueue", None)
    if events is None:
        time.sleep(min(_POLL, seconds))
        return seconds > 0
    return bool(select.select([events], [], [], seconds)[0])


def _sockets(runner: Any) -> bool:
    return len(getattr(runner.io_manager, "_registered", ())) > 1  # one is trio's own


def _at_sockets(runner: Any) -> list[Any]:
    """The tasks that wait for a socket or a pipe. A task that waits for a child process is one of them."""
    found = []
    for waiting in getattr(runner.io_manager, "_registered", {}).values():
        found += [getattr(waiting, "read_task", waiting), getattr(waiting, "write_task", None)]  # epoll; kqueue
    return [task for task in found if isinstance(task, trio.lowlevel.Task)]


def _calls() -> int:
    """At least as many as there are calls in threads; counted by tasks, so that none is missed in transit."""
    count = getattr(trio.testing, "active_thread_count", None)  # older versions of trio do not count
    return int(count()) if count is not None else threading.active_count() - 1


def _children() -> bool:
    """Whether this process has children; True where that cannot be known."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except AttributeError:  # macOS
        pass
    return True


def _outside() -> list[tuple[object, str]]:
    """Calls in threads and child processes that tasks wait for, found from where the tasks are suspended."""
    runner = trio_run.GLOBAL_RUN_CONTEXT.runner
    everybody = _calls() or _children()  # inspecting every task is slow when there are many
    found: list[tuple[object, str]] = []
    for task in runner.tasks if everybody else _at_sockets(runner):
        for frame, following in itertools.pairwise(frames_of(task.coro)):
            file, name = frame.f_code.co_filename, following.f_code.co_name
            if file == _THREADS and name == "wait_task_rescheduled":
                names = frame.f_locals
                found.append((names["placeholder"], f"a call in a thread, of {names['sync_fn']!r}"))
            elif file in _PROCESSES and name in ("wait_readable", "wait_writable", "wait_child_exiting"):
                found.append((following, "a child process"))
    return found


def _only_housekeeping(heap: list[Any]) -> bool:
    return _is_housekeeping(heap[0][2]) and all(
        _is_housekeeping(scope) for deadline, _, scope in heap if scope._registered_deadline == deadline
    )


def _is_housekeeping(scope: Any) -> bool:
    status = scope._cancel_status
    return status is not None and any(task.context.get(HOUSEKEEPING, False) for task in status._tasks)


def _tasks() -> list[tuple[str, Any, bool]]:
    root = trio.lowlevel.current_root_task()
    system = {root} | {task for nursery in (root.child_nurseries if root else ()) for task in nursery.child_tasks}
    runner = trio_run.GLOBAL_RUN_CONTEXT.runner
    main = runner.main_task
    tasks = sorted(runner.tasks, key=lambda task: task._counter)
    return [
        (task.name, task.coro, task.context.get(HOUSEKEEPING, False))
        for task in tasks
        if task is main or task not in system
    ]


@contextlib.contextmanager
def ordered_tasks(seed: int) -> Iterator[None]:
    """Within this block, trio's choices come from the seed."""
    state, switch = trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._r.seed(seed)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        trio_run._r.setstate(state)
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = switch  # type: ignore[misc]
