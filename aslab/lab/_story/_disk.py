"""A disk: a limited number of writes at once, each of which takes time and a page of memory."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from ..._flags import GFP
from ..._kmem._wakeup import HOUSEKEEPING
from ...emulation._memory import PhysicalMemory


class Disk:
    """The driver and the device. For one event loop.

    :param latency: seconds per write
    :param depth: writes that the device handles at once; others queue
    :param retry: seconds until the driver retries when it gets no memory
    """

    def __init__(
        self, memory: PhysicalMemory, latency: Callable[[], float], depth: int, *, retry: float = 0.01
    ) -> None:
        self.memory = memory
        self.depth = depth
        self.writes: int = 0
        self.starved: int = 0
        """Times the driver got no page for a request, and had to wait."""
        self._latency = latency
        self._retry = retry
        self._slots = anyio.CapacityLimiter(depth)

    async def write(self) -> None:
        """Do one write. The driver's page comes from the reserve: it is writeback, and must not wait for it."""
        async with self._slots:
            while True:
                try:
                    page = self.memory.allocate(0, GFP.HIGH)
                    break
                except MemoryError:
                    self.starved += 1
                    waiting = HOUSEKEEPING.set(True)  # so that a lab notices that nothing happens
                    try:
                        await anyio.sleep(self._retry)
                    finally:
                        HOUSEKEEPING.reset(waiting)
            try:
                await anyio.sleep(self._latency())
            finally:
                self.memory.free(page)
            self.writes += 1
