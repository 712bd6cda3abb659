"""Leases: an allocation, or several, for the time of a block.

A lease is given a function that allocates, and knows no cache. Always true: what it holds was allocated by the
entry it is in, and is freed by the exit of that; a lease may be entered again after that.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._fastpath import Buffer

T = TypeVar("T")


class Lease(Generic[T]):
    """What `Cache.lease` returns: allocates on entry, frees on exit."""

    __slots__ = ("_alloc", "_buffer")

    def __init__(self, alloc: Callable[[], Coroutine[Any, Any, Buffer[T]]]) -> None:
        self._alloc = alloc
        self._buffer: Buffer[T] | None = None

    async def __aenter__(self) -> Buffer[T]:
        self._buffer = await self._alloc()
        return self._buffer

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.__exit__(exc_type, exc, tb)


class ManyLease(Generic[T]):
    """What `Cache.lease_many` returns: allocates all on entry, frees each on exit."""

    __slots__ = ("_alloc", "_buffers")

    def __init__(self, alloc: Callable[[], Coroutine[Any, Any, list[Buffer[T]]]]) -> None:
        self._alloc = alloc
        self._buffers: list[Buffer[T]] = []

    async def __aenter__(self) -> list[Buffer[T]]:
        self._buffers = await self._alloc()
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
