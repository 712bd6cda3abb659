"""Memory that does not come."""

from __future__ import annotations

import contextlib
import math

import anyio

from .._config import seconds, whole_number
from .._flags import GFP
from ..backends import Backend, Region


class Deadlock:
    """Wraps a backend: from the ``at``-th acquire on, calls are stuck.

    They stay so for ``duration`` seconds after the first one got stuck, or until `let_go`, whichever
    comes first; afterwards everything works. Stuck calls can be cancelled. Releases always work.

    A call that may not wait is refused with `anyio.WouldBlock` while others would be stuck.
    """

    def __init__(self, backend: Backend, *, at: int = 1, duration: float | None = None) -> None:
        whole_number("at", at, 1)
        if duration is not None:
            seconds("duration", duration)
        self.backend = backend
        self.duration = duration
        """Seconds that calls are stuck, from the first one on; None is until `let_go`."""
        self.stuck: int = 0
        """Calls that are stuck now."""
        self.calls: int = 0
        """Calls there have been."""
        self._at = at
        self._until: float | None = None
        self._over = False
        self._waiting: set[anyio.Event] = set()

    def let_go(self) -> None:
        """End the deadlock, for good. Event loop's thread only."""
        self._over = True
        for event in self._waiting:
            event.set()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Get stuck, if it is time to; then ask the wrapped backend."""
        self.calls += 1
        if self._is_time():
            await self._get_stuck()
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend.

        :raises anyio.WouldBlock: while calls get stuck
        """
        self.calls += 1
        if self._is_time():
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Give back to the wrapped backend."""
        await self.backend.release(region)

    def _is_time(self) -> bool:
        if self._until is not None and not self._over:
            with contextlib.suppress(RuntimeError):  # a thread without a loop cannot know the time
                self._over = anyio.current_time() >= self._until
        return self.calls >= self._at and not self._over

    async def _get_stuck(self) -> None:
        if self._until is None:
            self._until = anyio.current_time() + (math.inf if self.duration is None else self.duration)
        event = anyio.Event()
        self._waiting.add(event)
        self.stuck += 1
        try:
            with anyio.CancelScope(deadline=self._until):
                await event.wait()
        finally:
            self.stuck -= 1
            self._waiting.remove(event)
        self._over = True
