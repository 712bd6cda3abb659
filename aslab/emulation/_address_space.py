"""The one lock that every virtually contiguous allocation takes, and how long it is waited for.

That many callers compete for the kernel's address space was a reason to let one worker grow slabs.
"""

from __future__ import annotations

from collections import OrderedDict

import anyio


class AddressSpace:
    """A lock with a queue, first come, first served, that counts. For one event loop; times in seconds."""

    def __init__(self) -> None:
        self.held: bool = False
        """Whether somebody searches now."""
        self.calls: int = 0
        """Searches begun, or queued for."""
        self.lock_waits: int = 0
        """Those that had to queue."""
        self.lock_wait_total: float = 0.0
        """Time spent in the queue, by all that left it."""
        self.lock_wait_longest: float = 0.0
        """The longest that one was in the queue."""
        self.lock_held_total: float = 0.0
        """Time that the lock was held."""
        self._queue: OrderedDict[anyio.Event, float] = OrderedDict()  # and since when

    async def search(self, duration: float) -> None:
        """Take the lock, hold it for so long, let go. Suspends; may be cancelled at any time."""
        self.calls += 1
        if self.held:
            await self._wait()
        self.held = True
        begin = anyio.current_time()
        try:
            await anyio.sleep(duration)
        finally:
            self.lock_held_total += anyio.current_time() - begin
            self._pass_on()

    def queued(self) -> tuple[float, float]:
        """How long those that are in the queue have waited so far: the longest, and all together."""
        now = anyio.current_time()
        waits = [now - since for since in self._queue.values()]
        return max(waits, default=0.0), sum(waits)

    async def _wait(self) -> None:
        turn = anyio.Event()
        begin = anyio.current_time()
        self._queue[turn] = begin
        self.lock_waits += 1
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # the cancellation overtook the lock on its way here
                self._pass_on()
            else:
                del self._queue[turn]
            raise
        finally:
            waited = anyio.current_time() - begin
            self.lock_wait_total += waited
            self.lock_wait_longest = max(self.lock_wait_longest, waited)

    def _pass_on(self) -> None:
        if self._queue:  # handed over while held, so that nobody can come between
            self._queue.popitem(last=False)[0].set()
        else:
            self.held = False
