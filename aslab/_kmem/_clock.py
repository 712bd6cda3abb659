"""The event loop's clock and futures, looked up once, when an allocator is opened.

`anyio.current_time` needs a current task. A Protocol method, a ``call_soon`` callback or any other function that
the loop calls directly has none, and yet it may allocate and free. So the loop is asked once for its clock.

A waiter sleeps on a future, the least that a loop can sleep on: an `anyio.Event` looks the loop up each time, and
on asyncio it is an event around an event around a queue around a future.

Always true: both functions returned belong to the loop they were asked on. No state is kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from anyio._core._eventloop import get_async_backend  # private, as anyio's public names need a current task

Clock = Callable[[], float]
"""Returns seconds, simulated ones in a simulated loop. Any thread, even one that runs another loop, and also once
this loop has ended."""


class Future(Protocol):
    """What one task awaits, once, until it has a result. `asyncio.Future` is one."""

    def done(self) -> bool:
        """Whether the task need not sleep any more: there is a result, or it was cancelled."""
        ...

    def set_result(self, result: None, /) -> None:
        """Wake the task. Raises RuntimeError if its loop is closed."""
        ...

    def __await__(self) -> Generator[Any, Any, Any]: ...


def clock_of_this_loop() -> Clock:
    """Return the clock of the loop that runs this task."""
    clock: Clock | None = getattr(get_async_backend().current_token(), "time", None)  # asyncio's token is its loop
    if clock is None:
        from ._trio import clock_of_this_run

        return clock_of_this_run()
    return clock


def futures_of_this_loop() -> Callable[[], Future]:
    """Return the function that makes futures for tasks of the loop that runs this task."""
    create: Callable[[], Future] | None = getattr(get_async_backend().current_token(), "create_future", None)
    if create is None:  # no loop of asyncio
        from ._trio import TrioFuture

        return TrioFuture
    return create
