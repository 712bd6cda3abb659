"""anyio's `wait_all_tasks_blocked` on asyncio, without the sleep.

anyio's own looks again every tenth of a second. That is no time for it to take, with a clock that jumps;
and where the clock stands still, for a call in a thread, the second look would come when the call is over.
So here it looks again at each turn of the loop, as on trio, where it takes no time either. What that
tenth of a second gives besides is that a thread begins with what it was handed: here that is waited for.
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
    """Wait until every other task waits for something, but for those that wait here. Suspends."""
    loop = asyncio.get_running_loop()
    await anyio.lowlevel.checkpoint()
    this: Any = asyncio.current_task()
    _waiting.add(this)
    try:
        while any(map(_is_ready, asyncio.all_tasks())) or _is_to_begin(loop):  # noqa: ASYNC110 - no task tells
            await asyncio.sleep(0)
    finally:
        _waiting.discard(this)


def _is_ready(task: asyncio.Task[Any]) -> bool:
    waiter = task._fut_waiter  # type: ignore[attr-defined]
    return (waiter is None or waiter.done()) and task not in _waiting


def _is_to_begin(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a thread was handed a call, and has not taken it."""
    return threading.active_count() > 1 and any(
        isinstance(thread, WorkerThread) and thread.loop is loop and bool(thread.queue.queue)
        for thread in threading.enumerate()
    )
