"""The event loop's clock and events, looked up once, when an allocator is opened.

`anyio.current_time` needs a current task. A Protocol method, a ``call_soon`` callback or any other function that
the loop calls directly has none, and yet it may allocate and free. So the loop is asked once for its clock. Each
new `anyio.Event` also looks the loop up, which costs as much as making the event itself.

Always true: both functions returned belong to the loop they were asked on. No state is kept here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from anyio._core._eventloop import get_async_backend  # private, as anyio's public names need a current task

Clock = Callable[[], float]
"""Returns seconds, simulated ones in a simulated loop. Loop's thread only."""


def clock_of_this_loop() -> Clock:
    """Return the clock of the loop that runs this task."""
    return get_async_backend().current_time


def events_of_this_loop() -> Callable[[], anyio.Event]:
    """Return the function that makes events for tasks of the loop that runs this task."""
    return get_async_backend().create_event


def for_any_thread(clock: Clock) -> Clock:
    """Return a function for the time by ``clock`` that any thread may call, also once the loop has ended.

    Off the loop's tasks it is the system's clock, set to agree with the loop's now: exact for real loops. A
    simulated clock stands still while other threads run, so what they get for it means nothing.
    """
    ahead = clock() - time.monotonic()

    def now() -> float:
        try:
            return clock()
        except RuntimeError:  # not in a task of the loop
            return time.monotonic() + ahead

    return now
