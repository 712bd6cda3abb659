"""Which other threads may still call the loop.

It may be a thread that a cancelled task left behind, one of the program's own executor, or one of another
loop: nobody knows what it works on, but while it works, a loop without timers may still be woken. A pool
thread that waits for work is idle.
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
    """The threads other than the loop's own. One per run, created at its start."""

    def __init__(self) -> None:
        self._before = WeakSet(thread for thread in _at_work() if not _of_a_pool(thread))

    def at_work(self) -> bool:
        """Whether any thread is at work that may call the loop. Does not suspend.

        The main thread always may, as with a blocking portal. Threads that existed before the run have
        nothing to do with it, except those of pools, which are reused. Check for pending calls after this,
        not before: the last thread may have called the loop and ended.
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
    """The object by which trio knows the thread, if it belongs to trio's pool."""
    owner = getattr(getattr(thread, "_target", None), "__self__", None)
    return owner if type(owner).__module__ == "trio._core._thread_cache" else None


def _waits_for_work(thread: threading.Thread, frame: FrameType) -> bool:
    """Whether a thread belongs to a pool and is idle; ``frame`` is its innermost frame."""
    if isinstance(thread, WorkerThread):
        return thread in thread.idle_workers
    if frame.f_code is _EXECUTORS._worker.__code__:
        return thread not in _EXECUTORS._threads_queues or _EXECUTORS._threads_queues[thread].empty()
    owner = _of_trio(thread)
    return owner is not None and owner._job is None and frame.f_code.co_name == "_work"
