"""Memory that is slow."""

from __future__ import annotations

import anyio

from .._flags import GFP
from .._reach import self_contained
from ..backends import Backend, Region
from ._delay import Delay, drawing


@self_contained("backend")
class Latency:
    """Wraps a backend: each acquire and each release takes longer.

    The delay is a cancellable sleep on the event loop before the wrapped backend is asked, so it also works in
    simulated time. The same ``seed`` gives the same delays.

    A call that may not wait is refused with `anyio.WouldBlock` if its delay is not 0.
    """

    def __init__(self, backend: Backend, acquire: Delay, release: Delay = 0.0, *, seed: int = 0) -> None:
        self.backend = backend
        self._acquire_delay = drawing("acquire", acquire, seed)
        self._release_delay = drawing("release", release, seed + 1)

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Sleep, then ask the wrapped backend."""
        await anyio.sleep(self._acquire_delay())
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend.

        :raises anyio.WouldBlock: if the delay is not 0
        """
        if self._acquire_delay() > 0:
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Sleep, then release to the wrapped backend, even if cancelled meanwhile."""
        try:
            await anyio.sleep(self._release_delay())
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.backend.release(region)
            raise
        await self.backend.release(region)
