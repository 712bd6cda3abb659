"""Leases: an allocation, or several, for the time of a block."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from ._buffer import Buffer
from ._flags import KM

if TYPE_CHECKING:
    from ._cache import Cache

T = TypeVar("T")


class Lease(Generic[T]):
    """What `Cache.lease` answers: allocates on entry, frees on exit."""

    __slots__ = ("_buffer", "_cache", "_flags", "_timeout")

    def __init__(self, cache: Cache[T], flags: KM, timeout: float | None) -> None:
        self._cache = cache
        self._flags = flags
        self._timeout = timeout
        self._buffer: Buffer[T] | None = None

    async def __aenter__(self) -> Buffer[T]:
        self._buffer = await self._cache.alloc(self._flags, timeout=self._timeout)
        return self._buffer

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.__exit__(exc_type, exc, tb)


class ManyLease(Generic[T]):
    """What `Cache.lease_many` answers: allocates all on entry, frees each on exit."""

    __slots__ = ("_buffers", "_cache", "_flags", "_n", "_timeout")

    def __init__(self, cache: Cache[T], n: int, flags: KM, timeout: float | None) -> None:
        self._cache = cache
        self._n = n
        self._flags = flags
        self._timeout = timeout
        self._buffers: list[Buffer[T]] = []

    async def __aenter__(self) -> list[Buffer[T]]:
        self._buffers = await self._cache.alloc_many(self._n, self._flags, timeout=self._timeout)
        return list(self._buffers)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        refused: BufferError | None = None
        while self._buffers:
            try:
                self._buffers.pop().__exit__(exc_type, exc, tb)
            except BufferError as error:  # one that is still in use must not keep the others
                refused = refused or error
        if refused is not None:
            raise refused
