"""Ctrl-C on trio.

By default it raises KeyboardInterrupt in any line of any task. Where that is a line of trio's own, or one between
a group and its block, trio's books are wrong from then on, and the run ends with TrioInternalError. So here it
waits for the next checkpoint of the main task, as on asyncio; and as there, a second one is raised at once, for a
program that has no checkpoints.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

TRIO_OPTIONS = {"restrict_keyboard_interrupt_to_checkpoints": True}
"""Options of every `trio.run`."""


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
