"""An allocation for a thread that runs no event loop: the loop waits in line for it.

The thread may give up, by its timeout or Ctrl-C, at the moment the object comes. So both sides settle under a lock
whose the object is, and it is lost to neither.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Generic, TypeVar

from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class Errand(Generic[T]):
    """What a thread waits for. ``fetch`` runs on the event loop, ``give_back`` takes what comes too late."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], give_back: Callable[[T], object]) -> None:
        self._fetch = fetch
        self._give_back = give_back
        self._lock = threading.Lock()
        self._over = False
        self._brought: list[T] = []

    def run(self, portal: BlockingPortal, timeout: float | None) -> T:
        """Block until it is there.

        :raises TimeoutError: if ``timeout`` seconds have passed
        :raises concurrent.futures.CancelledError: if the event loop ended it
        """
        future = portal.start_task_soon(self._bring)
        try:
            future.result(timeout)
        except BaseException:
            with self._lock:
                self._over = True
                late = self._brought[:]
            future.cancel()
            for what in late:
                self._give_back(what)
            raise
        if not self._brought:
            raise CancelledError
        return self._brought.pop()

    async def _bring(self) -> None:
        what = await self._fetch()
        with self._lock:
            over = self._over
            if not over:
                self._brought.append(what)
        if over:
            self._give_back(what)
