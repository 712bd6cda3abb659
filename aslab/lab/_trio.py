"""trio in simulated time, and in an order that comes from the seed.

trio runs the tasks that are ready in random order, on purpose. It has a switch and a generator of its
own for tests that must be repeatable (pytest-trio and Hypothesis use them): here they are seeded for the
time of a run, and put back.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import trio
import trio._core._run as trio_run
import trio.testing

from .._engine import HOUSEKEEPING
from ._idle import THREADS_GRACE, Idle

_POLL = 0.001  # real seconds between looks for what another thread brings


def simulated_clock(idle: Idle) -> trio.testing.MockClock:
    """A clock that starts at 0, jumps to the next deadline when nothing can run, and tells when there is none."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    waited = 0.0

    def autojump() -> None:
        nonlocal waited
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        now, following = clock.current_time(), runner.deadlines.next_deadline()
        if not idle.threads_at_work():
            waited = 0.0
        elif waited < THREADS_GRACE:
            waited += _POLL
            time.sleep(_POLL)
            return
        else:
            idle.give_threads_up()
        if following < math.inf:
            idle.jumps()
            if not _only_housekeeping(runner.deadlines._heap):
                idle.since = None
            elif idle.housekeeping(now, following):
                return
            if following > now:
                clock.jump(following - now)
        elif not idle.hope_again():
            idle.stuck(now)

    clock._autojump = autojump  # type: ignore[method-assign]
    idle.tasks = _tasks
    return clock


def _only_housekeeping(heap: list[Any]) -> bool:
    return _is_housekeeping(heap[0][2]) and all(
        _is_housekeeping(scope) for deadline, _, scope in heap if scope._registered_deadline == deadline
    )


def _is_housekeeping(scope: Any) -> bool:
    status = scope._cancel_status
    return status is not None and any(task.context.get(HOUSEKEEPING, False) for task in status._tasks)


def _tasks() -> list[tuple[str, Any]]:
    root = trio.lowlevel.current_root_task()
    system = {root} | {task for nursery in (root.child_nurseries if root else ()) for task in nursery.child_tasks}
    runner = trio_run.GLOBAL_RUN_CONTEXT.runner
    main = runner.main_task
    tasks = sorted(runner.tasks, key=lambda task: task._counter)
    return [
        (task.name, task.coro)
        for task in tasks
        if (task is main or task not in system) and not task.context.get(HOUSEKEEPING, False)
    ]


@contextlib.contextmanager
def ordered_tasks(seed: int) -> Iterator[None]:
    """While this lasts, trio's choices come from the seed."""
    state, switch = trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._r.seed(seed)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        trio_run._r.setstate(state)
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = switch  # type: ignore[misc]
