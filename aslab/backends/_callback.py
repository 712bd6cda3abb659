"""A backend made of two functions: for memory that a library provides, for tests, for teaching."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import cast

import anyio

from .._flags import GFP
from ._protocol import Region
from ._threads import run_blocking

AcquireFunction = Callable[[int, int, GFP], object]
ReleaseFunction = Callable[[object], object]


class Callback:
    """Memory from ``acquire(nbytes, align, gfp)``, given back with ``release(what acquire returned)``.

    ``acquire`` returns any writable buffer (a bytearray, an mmap, a numpy array, a `Region`) or raises
    `MemoryError`. If the buffer does not start at a multiple of ``align``, the region starts at the next one, so
    allocate ``nbytes + align`` bytes. Plain functions run in a thread; ``async def`` functions are awaited on the
    event loop and must clean up when they are cancelled.

    `acquire_nowait` always raises `anyio.WouldBlock`, because nobody knows how long the function takes.
    """

    def __init__(self, acquire: AcquireFunction, release: ReleaseFunction) -> None:
        self._acquire = acquire
        self._release = release

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Call ``acquire``; its exceptions propagate unchanged."""
        if inspect.iscoroutinefunction(self._acquire):
            given = await cast("Awaitable[object]", self._acquire(nbytes, align, gfp))
        else:
            given = await run_blocking(partial(self._acquire, nbytes, align, gfp), undo=self._give_back_in_thread)
        if isinstance(given, Region):
            return Region(given.memory, given.address, given)
        try:
            return Region.over(given, align=align, token=given)
        except (TypeError, BufferError):
            await self._give_back(given)
            raise

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Never succeed.

        :raises anyio.WouldBlock: always
        """
        raise anyio.WouldBlock

    async def release(self, region: Region) -> None:
        """Call ``release``; its exceptions propagate unchanged."""
        given, region.token, region.memory = region.token, None, memoryview(b"")
        await self._give_back(given)

    async def _give_back(self, given: object) -> None:
        if inspect.iscoroutinefunction(self._release):
            await cast("Awaitable[object]", self._release(given))
        else:
            await run_blocking(partial(self._release, given))

    def _give_back_in_thread(self, given: object) -> None:
        if inspect.iscoroutinefunction(self._release):
            anyio.run(self._release, given)
        else:
            self._release(given)
