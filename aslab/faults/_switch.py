"""Memory that is well until somebody turns a fault on."""

from __future__ import annotations

import anyio

from .._checks import whole_number
from .._flags import GFP
from ..backends import Backend, Region


class Switch:
    """Wraps a backend: faults that are turned on and off while it is in use, by a test for example.

    Releases always work. Event loop's thread only, but for `acquire_nowait`.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.failures: int = 0
        """Acquires that failed so far."""
        self.stuck: int = 0
        """Acquires that are stuck now."""
        self._to_fail = 0
        self._gate: anyio.Event | None = None

    def fail(self, times: int = 1) -> None:
        """Let the next acquires raise MemoryError; ``times`` replaces what is left of an earlier call."""
        whole_number("times", times, 0)
        self._to_fail = times

    def stick(self) -> None:
        """Let acquires get stuck from now on, until `heal`. They can be cancelled."""
        if self._gate is None:
            self._gate = anyio.Event()

    def heal(self) -> None:
        """End all faults; what is stuck goes on."""
        self._to_fail = 0
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Fail, get stuck, or ask the wrapped backend.

        :raises MemoryError: if this call fails
        """
        self._fail_perhaps(nbytes)
        while self._gate is not None:
            self.stuck += 1
            try:
                await self._gate.wait()
            finally:
                self.stuck -= 1
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Fail, or ask the wrapped backend.

        :raises MemoryError: if this call fails
        :raises anyio.WouldBlock: if it would get stuck
        """
        self._fail_perhaps(nbytes)
        if self._gate is not None:
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Release to the wrapped backend."""
        await self.backend.release(region)

    def _fail_perhaps(self, nbytes: int) -> None:
        if self._to_fail:
            self._to_fail -= 1
            self.failures += 1
            raise MemoryError(f"switch: {nbytes} bytes refused")
