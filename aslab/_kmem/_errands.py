"""An allocation for a thread that runs no event loop: the loop waits in line for it.

Always true: what the loop brought is the thread's, or given back, and never both. The thread may give up, by its
timeout or Ctrl-C, at the moment the object comes; so both sides settle under a lock whose the object is. The
thread waits for nothing but that, however busy the loop is.
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
    """What a thread waits for. ``fetch`` runs on the event loop, ``give_back`` takes what comes too late."""

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
        """Block this thread until the event loop has brought something.

        :raises RuntimeError: on the event loop's thread
        :raises TimeoutError: if ``timeout`` seconds have passed
        """
        if arena.on_its_thread:
            raise RuntimeError("alloc_blocking() would block the event loop; here it is: await alloc()")
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
        """Block this thread until it is there.

        :raises TimeoutError: if ``timeout`` seconds have passed
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
        """It cannot be had. Any thread."""
        self._error = error
        self._settled.set()

    @property
    def given_up(self) -> bool:
        """Nobody waits for it any more."""
        return self._over

    def cancel(self) -> None:
        """Nobody waits for it any more. Event loop's thread."""
        if self._scope is not None:
            self._scope.cancel()

    async def bring(self) -> None:
        """Bring it: a task of the allocator, which nothing that is raised here may end."""
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
    """Errands end with this block: no task will run them any more."""
    try:
        yield
    finally:
        arena.stopped = True
        for errand in tuple(arena.errands):
            errand.fail(CacheClosedError("the allocator is closed"))
