"""Ctrl-C.

On asyncio it cancels the main task. A task group of anyio that is being cancelled at that moment takes that for
its own cancellation, and the task goes on: so here it is noted, and ends the task all the same.

On trio it by default raises KeyboardInterrupt in any line of any task. Where that is a line of trio's own, or one
between a group and its block, trio's books are wrong from then on, and the run ends with TrioInternalError. So it
waits here for the next checkpoint of the main task, as on asyncio; and as there, a second one is raised at once,
for a program that has no checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

TRIO_OPTIONS = {"restrict_keyboard_interrupt_to_checkpoints": True}
"""Options of every `trio.run`."""


@contextlib.contextmanager
def never_lost() -> Iterator[None]:
    """Where the loop answers Ctrl-C by cancelling this task, raise that at the end of this block at the latest.

    Not in place of another exception, which ends the task as well, and has more to say.
    """
    handler, task = signal.getsignal(signal.SIGINT), _task_of_asyncio()
    if task is None or not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    answer, came = handler, False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        before = task.cancelling()
        answer(number, frame)
        came = came or task.cancelling() > before

    signal.signal(signal.SIGINT, handle)
    try:
        yield
        if came:
            raise asyncio.CancelledError
    except asyncio.CancelledError:
        while task.cancelling():  # the loop makes a KeyboardInterrupt of one that nobody else asked for
            task.uncancel()
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def _task_of_asyncio() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop of asyncio runs
        return None


@contextlib.contextmanager
def second_at_once() -> Iterator[None]:
    """Within this block, the second Ctrl-C is raised wherever it strikes. Does nothing outside the main thread."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    first = handler

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        first(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
