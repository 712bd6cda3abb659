"""anyio's `wait_all_tasks_blocked` on asyncio, without the sleep.

anyio polls every tenth of a second. With a clock that jumps, that changes the simulated time; and while the
clock stands still for a call in a thread, the second poll would only come after the call. So this one polls on
each iteration of the loop, as trio does, which takes no time. The tenth of a second also gives a thread time
to pick up its call; here that is waited for explicitly.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from weakref import WeakSet

import anyio
from anyio._backends._asyncio import WorkerThread

_waiting: WeakSet[asyncio.Task[Any]] = WeakSet()


async def wait_all_tasks_blocked(_: type) -> None:
    """Wait until every other task is blocked, except those that wait here too. Suspends."""
    loop = asyncio.get_running_loop()
    await anyio.lowlevel.checkpoint()
    this: Any = asyncio.current_task()
    _waiting.add(this)
    try:
        while any(map(_is_ready, asyncio.all_tasks())) or _is_to_begin(loop):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0)
    finally:
        _waiting.discard(this)


def _is_ready(task: asyncio.Task[Any]) -> bool:
    waiter = task._fut_waiter  # type: ignore[attr-defined]
    return (waiter is None or waiter.done()) and task not in _waiting


def _is_to_begin(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a thread has been given a call that it has not started."""
    return threading.active_count() > 1 and any(
        isinstance(thread, WorkerThread) and thread.loop is loop and bool(thread.queue.queue)
        for thread in threading.enumerate()
    )
