"""The one lock that every virtually contiguous allocation takes, and how long callers wait for it.

Contention for the kernel's address space was one reason to have a single worker grow slabs.
"""

from __future__ import annotations

from collections import OrderedDict

import anyio


class AddressSpace:
    """A first-come, first-served lock with statistics. For one event loop; times are in seconds."""

    def __init__(self) -> None:
        self.held: bool = False
        """Whether a search is in progress."""
        self.calls: int = 0
        """Searches started or queued."""
        self.lock_waits: int = 0
        """Searches that had to queue."""
        self.lock_wait_total: float = 0.0
        """Total time in the queue, of all that have left it."""
        self.lock_wait_longest: float = 0.0
        """The longest time in the queue."""
        self.lock_held_total: float = 0.0
        """Total time the lock was held."""
        self._queue: OrderedDict[anyio.Event, float] = OrderedDict()  # with the time of joining

    async def search(self, duration: float) -> None:
        """Take the lock, hold it for ``duration``, release it. Suspends; may be cancelled at any time."""
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
        """How long the current queue has waited so far: the longest wait, and the total."""
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
            if turn.is_set():  # cancelled after the lock was handed over
                self._pass_on()
            else:
                del self._queue[turn]
            raise
        finally:
            waited = anyio.current_time() - begin
            self.lock_wait_total += waited
            self.lock_wait_longest = max(self.lock_wait_longest, waited)

    def _pass_on(self) -> None:
        if self._queue:  # handed over while held, so that nobody can jump the queue
            self._queue.popitem(last=False)[0].set()
        else:
            self.held = False
