"""The run queue and the timers of asyncio's simulated loop.

asyncio's own compare two timers by a method in Python and poll the selector in every turn of the loop; in a
simulation that was over half of all time. Here a timer in the heap is a float, and the loop polls where something
can come.

Always true: callbacks run in the very order in which asyncio would run them. For timers due at the same moment,
that depends on how the heap was filled and when it was cleared of cancelled ones; so both are as asyncio has them.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import math
from collections.abc import Callable
from typing import Any

CANCELLED_MOST = 100
"""Timers in the heap from which on it is cleared of cancelled ones, as soon as these are more than half."""


def _fill(handle: Any, callback: Any, args: Any, loop: Any, context: contextvars.Context | None) -> None:
    """As asyncio fills a handle when its loop is not in debug mode, which it asks the loop each time."""
    handle._context = contextvars.copy_context() if context is None else context
    handle._loop = loop
    handle._callback = callback
    handle._args = args
    handle._cancelled = False
    handle._repr = None
    handle._source_traceback = None


def _wake(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.set_result(None)


class Soon(asyncio.Handle):
    """A handle made in one call."""

    __slots__ = ()
    __init__ = _fill


class Later(asyncio.TimerHandle):
    """A timer made in one call, and cancelled in one. Its maker sets when."""

    __slots__ = ()
    __init__ = _fill

    def cancel(self) -> None:
        """As asyncio does."""
        timer: Any = self
        if not timer._cancelled:
            timer._cancelled = True
            timer._callback = timer._args = None
            if timer._scheduled:
                timer._loop._timer_cancelled_count += 1


class Due(float):
    """When a timer is due, and its handle. The heap compares floats without a call."""

    __slots__ = ("handle",)
    handle: Any


class Turns(asyncio.SelectorEventLoop):
    """An event loop with a queue of its own."""

    outside: Any
    """The selector, which moves its clock, ``now``, where it is asked to wait."""
    _untouched = False
    """Since the loop last polled, only sleepers were woken: no file that it watches was written to by them."""
    _ready: Any
    _scheduled: list[Due]
    _debug: bool
    _closed: bool
    _stopping: bool
    _timer_cancelled_count: int
    _clock_resolution: float
    _current_handle: Any
    _process_events: Callable[[Any], object]
    _check_closed: Callable[[], object]
    _check_thread: Callable[[], object]
    _check_callback: Callable[[Any, str], object]

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        """As asyncio does."""
        if self._debug or self._closed:
            return super().call_soon(callback, *args, context=context)
        handle = Soon(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> Any:
        """As asyncio does."""
        if self._debug or self._closed:
            self._check_closed()
            self._check_thread()
            self._check_callback(callback, "call_at")
            timer: Any = asyncio.TimerHandle(when, callback, args, self, context)
        else:
            timer = Later(callback, args, self, context)
            timer._when = when
        due = Due(when)
        due.handle = timer
        heapq.heappush(self._scheduled, due)
        timer._scheduled = True
        return timer

    def _run_once(self) -> None:
        if self._timer_cancelled_count:
            self._drop_cancelled()
        ready, timers, outside = self._ready, self._scheduled, self.outside
        if ready or self._stopping or (timers and timers[0] <= outside.now):
            if not self._untouched and outside.poll():
                self._process_events(outside.select(0))
        elif events := outside.select(timers[0] - outside.now if timers else None):
            self._process_events(events)
        end = outside.now + self._clock_resolution
        while timers and timers[0] < end:
            handle = heapq.heappop(timers).handle
            handle._scheduled = False
            ready.append(handle)
        self._untouched = True
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                if handle._callback is not _wake:
                    self._untouched = False
                self._current_handle = handle  # for what debug mode says of errors
                try:  # as the handle's own method does, without the call
                    handle._context.run(handle._callback, *handle._args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    self._tell(handle, exc)
        self._current_handle = handle = None  # or the frame of an exception would keep it

    def _tell(self, handle: Any, exc: BaseException) -> None:
        """Report what a callback raised, as asyncio does."""
        callback = asyncio.format_helpers._format_callback_source(handle._callback, handle._args)  # type: ignore[attr-defined]
        context = {"message": f"Exception in callback {callback}", "exception": exc, "handle": handle}
        if trace := getattr(handle, "_source_traceback", None):
            context["source_traceback"] = trace
        self.call_exception_handler(context)

    async def sleep(self, delay: float) -> None:
        """As `asyncio.sleep`, which looks for its loop."""
        if self._debug or not 0 < delay < math.inf:
            await asyncio.sleep(delay)
            return
        future = self.create_future()
        timer = self.call_at(self.outside.now + delay, _wake, future)
        try:
            await future
        except BaseException:
            timer.cancel()
            raise

    def _drop_cancelled(self) -> None:
        timers = self._scheduled
        if len(timers) > CANCELLED_MOST and self._timer_cancelled_count * 2 > len(timers):
            for due in timers:
                due.handle._scheduled = not due.handle._cancelled
            self._scheduled = [due for due in timers if due.handle._scheduled]
            heapq.heapify(self._scheduled)
            self._timer_cancelled_count = 0
            return
        while timers and timers[0].handle._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(timers).handle._scheduled = False
