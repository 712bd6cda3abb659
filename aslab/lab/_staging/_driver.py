"""The driver that pins memory, which handles one call at a time for all processes of the computer.

And the two backends that aslab uses there: pinned memory in pieces, and pageable memory.
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
    """Pins memory, one call at a time. From time to time another process pins too, and holds the same lock."""

    def __init__(self, server: Server, draw: random.Random) -> None:
        self.pinned: int = 0
        """Bytes."""
        self.highest: int = 0
        """The most bytes pinned at once."""
        self.calls: list[tuple[float, float]] = []
        """The begin and end of each of our calls, from its turn among them."""
        self._server = server
        self._lock = anyio.Lock()
        self._windows = _windows(server, draw)
        self._window = next(self._windows)

    def had(self, nbytes: int) -> None:
        """Count bytes that were pinned, or unpinned, without waiting for the driver."""
        self.pinned += nbytes
        self.highest = max(self.highest, self.pinned)

    async def pin(self, nbytes: int) -> None:
        """Pin memory; suspends until it is done. If cancelled, nothing is pinned."""
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
    """When the other process holds the lock."""
    now = 0.0
    while True:
        begins = now + draw.uniform(*server.neighbour_rests)
        now = begins + draw.uniform(*server.neighbour_pins)
        yield begins, now


class PinnedPieces:
    """A backend of pinned memory. Each region is pinned in one call."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Suspends until the driver has pinned it, even if it is urgent: the driver knows no flags."""
        await self._driver.pin(nbytes)
        return _mapped(nbytes, align)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Pinning always has to wait.

        :raises anyio.WouldBlock: always
        """
        raise anyio.WouldBlock

    async def release(self, region: Region) -> None:
        """Does not suspend: no task waits for a release, so its duration is left out."""
        self._driver.had(-len(region.memory))


class Pageable:
    """A backend of ordinary memory, available at once."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Does not suspend."""
        return _mapped(nbytes, align)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Never fails."""
        return _mapped(nbytes, align)

    async def release(self, region: Region) -> None:
        """Does not suspend. The mapping ends with the last view of it."""


def _mapped(nbytes: int, align: int) -> Region:
    """Map zeroed memory, which uses no pages until it is written to."""
    spare = 0 if align <= mmap.PAGESIZE else align
    return Region.over(mmap.mmap(-1, nbytes + spare), align=align)
