"""An allocation for a thread that runs no event loop: a task of the loop waits in line for it.

Always true:

    1. what the loop brought either belongs to the thread or was given back, never both
    2. the thread waits only for its event and for the short lock, however busy the loop is

The thread may give up, by its timeout or Ctrl-C, at the very moment the object comes; so a lock decides which side
owns it.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import anyio

from .._clients import keep_interrupt
from .._errors import CacheClosedError
from ._arena import Arena

T = TypeVar("T")


class Errand(Generic[T]):
    """One such allocation. ``fetch`` runs on the event loop; ``give_back``, in any thread, takes a late result."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], give_back: Callable[[T], object]) -> None:
        self._fetch = fetch
        self._give_back = give_back
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._over = False
        self._brought: list[T] = []
        self._error: BaseException | None = None
        self._scope: anyio.CancelScope | None = None

    def run(self, arena: Arena, timeout: float | None) -> T:
        """Block this thread until the event loop has brought the result. Any thread but the loop's.

        :param timeout: seconds to wait at most; None waits for as long as it takes
        :raises RuntimeError: on the event loop's thread
        :raises TimeoutError: after ``timeout`` seconds
        :raises CacheClosedError: if the allocator is closed
        """
        if arena.on_its_thread:
            raise RuntimeError("alloc_blocking() would block the event loop; use await alloc() here")
        arena.errands[self] = None
        try:
            arena.call_soon(partial(arena.start, self.bring))
            if arena.stopped:
                self.fail(CacheClosedError("the allocator is closed"))
            return self.wait(timeout)
        except BaseException:
            arena.call_soon(self.cancel)
            raise
        finally:
            del arena.errands[self]

    def wait(self, timeout: float | None) -> T:
        """Block this thread until the result is there, or raise the error that `fetch` raised.

        :raises TimeoutError: after ``timeout`` seconds
        """
        try:
            if not self._settled.wait(timeout):
                raise TimeoutError
        except BaseException:
            with self._lock:
                self._over = True
                late, self._brought = self._brought, []
            for what in late:
                self._give_back(what)
            raise
        if self._error is not None:
            raise self._error
        return self._brought.pop()

    def fail(self, error: BaseException) -> None:
        """End the wait with an error. Any thread."""
        self._error = error
        self._settled.set()

    @property
    def given_up(self) -> bool:
        """Whether the thread has stopped waiting."""
        return self._over

    def cancel(self) -> None:
        """Cancel the fetch, as the thread has stopped waiting. Event loop's thread only."""
        if self._scope is not None:
            self._scope.cancel()

    async def bring(self) -> None:
        """Fetch the result for the thread. Runs as a task of the allocator, so no client's error may get out."""
        try:
            with anyio.CancelScope() as self._scope:
                if self.given_up:
                    return
                what = await self._fetch()
                with self._lock:
                    over = self._over
                    if not over:
                        self._brought.append(what)
                if over:
                    self._give_back(what)
        except BaseException as exc:
            if isinstance(exc, (GeneratorExit, anyio.get_cancelled_exc_class())):
                self.fail(CacheClosedError("the allocator is closed"))
                raise
            keep_interrupt(exc)
            self._error = exc
        finally:
            self._settled.set()


@contextmanager
def failing_at_the_end(arena: Arena) -> Iterator[None]:
    """Fail all errands at the end of this block, as no task runs them any more."""
    try:
        yield
    finally:
        arena.stopped = True
        for errand in tuple(arena.errands):
            errand.fail(CacheClosedError("the allocator is closed"))
