"""The driver that pins memory: one call at a time on the whole computer, whichever process makes it.

And the two backends that aslab has on such a computer: pinned memory in pieces, and pageable memory.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator

import anyio

from ..._flags import GFP
from ...backends import Region
from .._simulation._run import current
from ._machines import Server


class Driver:
    """Pins and unpins, a call at a time. Another process pins too, now and then, and holds the same lock."""

    def __init__(self, server: Server, draw: random.Random) -> None:
        self.pinned: int = 0
        """Bytes."""
        self.highest: int = 0
        """The most there were."""
        self.calls: list[tuple[float, float]] = []
        """From when to when each of our calls took, once it was its turn among ours."""
        self._server = server
        self._lock = anyio.Lock()
        self._windows = _windows(server, draw)
        self._window = next(self._windows)

    def had(self, nbytes: int) -> None:
        """So many bytes more, or less, are pinned than were, without a wait for the driver."""
        self.pinned += nbytes
        self.highest = max(self.highest, self.pinned)

    async def pin(self, nbytes: int) -> None:
        """Suspend until so many bytes are pinned. Cancelled, it has pinned nothing."""
        async with self._lock:
            began = current().time()
            await self._let_neighbour_end()
            await anyio.sleep(nbytes * self._server.pin)
            self.had(nbytes)
            self.calls.append((began, current().time()))

    async def _let_neighbour_end(self) -> None:
        now = current().time()
        while self._window[1] <= now:
            self._window = next(self._windows)
        begins, ends = self._window
        if begins <= now:
            await anyio.sleep(ends - now)


def _windows(server: Server, draw: random.Random) -> Iterator[tuple[float, float]]:
    """From when to when the other process holds the lock."""
    now = 0.0
    while True:
        begins = now + draw.uniform(*server.neighbour_rests)
        now = begins + draw.uniform(*server.neighbour_pins)
        yield begins, now


class PinnedPieces:
    """A backend of pinned memory. What is asked for is pinned in one call."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Suspends until the driver has pinned it, however urgent it is: the driver knows no flags."""
        await self._driver.pin(nbytes)
        return _mapped(nbytes, align)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Pinning always waits.

        :raises anyio.WouldBlock: each time
        """
        raise anyio.WouldBlock

    async def release(self, region: Region) -> None:
        """Does not suspend: nobody here waits for what goes back, so its time is left out."""
        self._driver.had(-len(region.memory))


class Pageable:
    """A backend of ordinary memory, which is there at once."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Does not suspend."""
        return _mapped(nbytes, align)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Never fails."""
        return _mapped(nbytes, align)

    async def release(self, region: Region) -> None:
        """Does not suspend. The mapping goes with the last view of it."""


def _mapped(nbytes: int, align: int) -> Region:
    """Zeros that take no room until they are written to."""
    spare = 0 if align <= mmap.PAGESIZE else align
    return Region.over(mmap.mmap(-1, nbytes + spare), align=align)
