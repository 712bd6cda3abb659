"""Front: the allocations of a cache that hit its magazine. What does not hit is left to the cache itself."""

from __future__ import annotations

from functools import partial
from typing import Generic, TypeVar

from .._flags import KM
from ._buffer import Buffer
from ._home import Home
from ._lease import Lease
from ._magazine import NOTED, Magazine
from ._native import compiled

T = TypeVar("T")

_SLEEP, _NOSLEEP = KM.SLEEP, KM.NOSLEEP


@compiled
class Front(Generic[T]):
    """What `Cache` derives from."""

    __slots__ = ("_home", "_magazine")

    _magazine: Magazine[T]
    _home: Home[T]

    async def alloc(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Buffer[T]:
        """Allocate one object.

        SLEEP, PUSHPAGE and MEMALLOC never fail when memory is short: they wait for a free, for growth or, when
        growth is late, for an emergency object. NOSLEEP behaves as `alloc_nowait`.

        A hit does not suspend (unless the allocator has ``checkpoints``). Every wait may be cancelled; an
        object already on its way goes to the next waiter. Event loop's thread only.

        :param timeout: seconds to wait at most; None waits for as long as it takes
        :raises TimeoutError: after ``timeout`` seconds
        :raises anyio.WouldBlock: with NOSLEEP, if no object is free
        :raises TooManyWaiting: if ``max_waiting`` callers wait already
        :raises ConfigError: if ``limit``, less what other caches are guaranteed, can never allow the object
        :raises CacheClosedError: if the cache is closed, before the call or while it waits
        :raises BackendError: if a backend breaks its contract
        :raises ConstructorError: if the cache's ``ctor`` raises
        """
        magazine = self._magazine
        if magazine.detour or flags is not _SLEEP or timeout is not None:
            return await self._alloc_slowly(flags, timeout)
        try:
            slot = magazine.pop()
        except IndexError:
            pass  # and let the error go: it would live as long as the wait
        else:
            magazine.hits += 1
            if magazine.hits >= magazine.due:
                magazine.detour |= NOTED
            buf: Buffer[T] = Buffer()
            buf._home = self._home
            buf._view = None
            buf._slot = slot
            return buf
        return await self._alloc_slowly(flags, timeout)

    def alloc_nowait(self, flags: KM = KM.NOSLEEP) -> Buffer[T]:
        """Allocate one object without waiting: from the magazine, the slabs, or as an emergency object.

        It may pass callers that wait in `alloc`, but not once the first of them has seen an object free for a
        millisecond. A miss asks for growth in the background. Never suspends; any thread, but not in a finaliser.

        :param flags: NOSLEEP, PUSHPAGE or MEMALLOC
        :raises anyio.WouldBlock: if no object is free, and no emergency object can be made at once
        :raises CacheClosedError: if the cache is closed
        """
        magazine = self._magazine
        if magazine.detour or flags is not _NOSLEEP:
            return self._alloc_now(flags)
        try:
            slot = magazine.pop()
        except IndexError:
            return self._alloc_now(flags)
        magazine.hits += 1
        if magazine.hits >= magazine.due:
            magazine.detour |= NOTED
        buf: Buffer[T] = Buffer()
        buf._home = self._home
        buf._view = None
        buf._slot = slot
        return buf

    def lease(self, flags: KM = KM.SLEEP, *, timeout: float | None = None) -> Lease[T]:
        """``async with cache.lease() as buf:`` is `alloc` and `Buffer.free` around a block.

        Entering suspends where `alloc` does, leaving does not; event loop's thread only.
        """
        return Lease(partial(self.alloc, flags, timeout=timeout))

    async def _alloc_slowly(self, flags: KM, timeout: float | None) -> Buffer[T]:
        """`alloc`, if it is not a plain hit."""
        raise NotImplementedError

    def _alloc_now(self, flags: KM) -> Buffer[T]:
        """`alloc_nowait`, if it is not a plain hit."""
        raise NotImplementedError

    for _shown in (alloc, alloc_nowait, lease):  # in tracebacks and warnings, by the name that callers know
        _shown.__qualname__ = f"Cache.{_shown.__name__}"
        _shown.__code__ = _shown.__code__.replace(co_qualname=_shown.__qualname__)
    del _shown
