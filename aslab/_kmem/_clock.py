"""The event loop's clock and its events, kept when an allocator is opened.

`anyio.current_time` asks which task runs. A Protocol method, a ``call_soon`` callback, and any other function that
the loop calls has none, and may allocate and free all the same; so the loop is asked once, for its clock. An
`anyio.Event` asks as well, each time one is made; that takes as long as all else about it.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio._core._eventloop import get_async_backend  # anyio's own way to it; the public names ask for a task

Clock = Callable[[], float]
"""Seconds; simulated ones where the loop's are. Only on the loop's own thread."""


def clock_of_this_loop() -> Clock:
    """The clock of the loop that runs this task."""
    return get_async_backend().current_time


def events_of_this_loop() -> Callable[[], anyio.Event]:
    """What makes an event for tasks of the loop that runs this task."""
    return get_async_backend().create_event
