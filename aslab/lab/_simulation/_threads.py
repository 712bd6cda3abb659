"""Which other threads may still have something for the loop.

A thread that a cancelled task has left behind, one of an executor of the program's own, another loop's:
nobody can tell for what it works, but while it does, a loop without timers has something to hope for. A
thread of a pool that waits for work has nothing in hand.
"""

from __future__ import annotations

import concurrent.futures.thread
import sys
import threading
from types import FrameType
from typing import Any
from weakref import WeakSet

from anyio._backends._asyncio import WorkerThread

_EXECUTORS: Any = concurrent.futures.thread


class Threads:
    """Those other than the loop's own. One for each run, made at its beginning."""

    def __init__(self) -> None:
        self._before = WeakSet(thread for thread in _at_work() if not _of_a_pool(thread))

    def at_work(self) -> bool:
        """Whether one is that may call the loop. Does not suspend.

        The main thread always may, as with a blocking portal. Threads that were there before the run began
        have nothing to do with it, but those of pools, which work for one after the other. What has come is
        to be looked for after this, not before: the last of them may have called, and ended.
        """
        return threading.current_thread() is not threading.main_thread() or not _at_work() <= set(self._before)


def _at_work() -> set[threading.Thread]:
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    return {
        thread
        for thread in threading.enumerate()
        if (frame := frames.get(thread.ident or 0)) and not _waits_for_work(thread, frame)
    }


def _of_a_pool(thread: threading.Thread) -> bool:
    return isinstance(thread, WorkerThread) or thread in _EXECUTORS._threads_queues or bool(_of_trio(thread))


def _of_trio(thread: threading.Thread) -> Any:
    """The object by which trio knows it, if it is of trio's pool."""
    owner = getattr(getattr(thread, "_target", None), "__self__", None)
    return owner if type(owner).__module__ == "trio._core._thread_cache" else None


def _waits_for_work(thread: threading.Thread, frame: FrameType) -> bool:
    """Whether a thread is of a pool, and has nothing in hand; ``frame`` is its innermost."""
    if isinstance(thread, WorkerThread):
        return thread in thread.idle_workers
    if frame.f_code is _EXECUTORS._worker.__code__:
        return thread not in _EXECUTORS._threads_queues or _EXECUTORS._threads_queues[thread].empty()
    owner = _of_trio(thread)
    return owner is not None and owner._job is None and frame.f_code.co_name == "_work"
