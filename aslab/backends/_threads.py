"""Blocking calls in threads that can be abandoned.

A thread stuck in a system call cannot be killed. So a cancelled caller abandons it, and the thread itself undoes
the result of the call if one still comes.

The threads have a limiter of their own: a service must be able to grow its pool even while every worker thread
waits for a buffer.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Generic, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")

MAX_THREADS = 64
PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between attempts to start a thread for a call that must run: doubled from the first to the most."""
LAG: ContextVar[list[float] | None] = ContextVar("aslab_lag", default=None)
"""Collects the seconds from the end of each call until the event loop noticed."""
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("aslab_threads")


class NoThread(MemoryError):
    """The system cannot start a thread now. Like any shortage of memory, this is temporary."""


async def run_blocking(call: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
    """Run ``call`` in a thread; if cancelled meanwhile, abandon it.

    With ``undo``, the result of an abandoned call is passed to ``undo``, in the same thread, and a call that has
    not begun yet is dropped. Without it, ``call`` must run and does so in any case: if no thread can be started,
    it waits for one, or blocks this one if the interpreter is shutting down, as there will be none.

    :raises NoThread: with ``undo``, if no thread can be started
    """
    pause = PAUSE_FIRST
    while True:
        try:
            return await _run(call, undo)
        except NoThread:
            if undo is not None:
                raise
        await _sleep_or_do(pause, call)
        pause = min(2 * pause, PAUSE_MOST)


async def _sleep_or_do(pause: float, call: Callable[[], object]) -> None:
    try:
        await anyio.sleep(pause)
    except anyio.get_cancelled_exc_class():
        _Job(call, None).abandon()
        raise


async def _run(call: Callable[[], T], undo: Callable[[T], object] | None) -> T:
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(MAX_THREADS)
        _limiter.set(limiter)
    job = _Job(call, undo)
    began = anyio.current_time()
    try:
        result = await to_thread.run_sync(job.run, abandon_on_cancel=True, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        job.abandon()
        raise
    except RuntimeError as exc:
        if job.begun:
            raise
        if undo is None and _is_last(exc):
            return job.run()
        raise NoThread(f"no thread can be started: {exc}") from exc
    lag = LAG.get()
    if lag is not None:  # simulated time stands still while a thread runs: then nothing was late
        lag.append(min(time.monotonic() - job.ended, anyio.current_time() - began))
    return result


def _is_last(exc: RuntimeError) -> bool:
    """Whether no thread can be started any more, rather than not now. CPython refuses from 3.12 on."""
    return "shutdown" in str(exc) or not threading.main_thread().is_alive()


class _NotBegun(RuntimeError):
    """The call was dropped, or another thread runs it."""


class _Job(Generic[T]):
    def __init__(self, call: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._call = call
        self._undo = undo
        self._lock = threading.Lock()
        self._begun = False
        self._abandoned = False
        self._results: list[T] = []
        self.ended: float = math.inf
        """When the call ended, by the system's monotonic clock."""

    @property
    def begun(self) -> bool:
        """Whether a thread has started on it."""
        return self._begun

    def run(self) -> T:
        with self._lock:
            if self._begun or (self._abandoned and self._undo is not None):
                raise _NotBegun("abandoned before it began")
            self._begun = True
        result = self._call()
        self.ended = time.monotonic()
        with self._lock:
            self._results.append(result)
            abandoned = self._abandoned
        if abandoned and self._undo is not None:
            self._undo(self._results.pop())
        return result

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
            begun, finished = self._begun, bool(self._results)
        if self._undo is None and not begun:
            in_thread("aslab abandoned", self._run_unless_begun)
        elif self._undo is not None and finished:  # the cancellation overtook the result
            in_thread("aslab undo", partial(self._undo, self._results.pop()))

    def _run_unless_begun(self) -> None:
        with suppress(_NotBegun):  # the thread that was asked first may have begun just now
            self.run()


def in_thread(name: str, call: Callable[[], object]) -> None:
    """Run the call in a new thread, or in this one if none can be started: it must run."""
    try:
        threading.Thread(target=call, name=name).start()
    except RuntimeError:
        call()
