"""Lease: one allocation for the duration of a block.

A lease is given a function that allocates, and knows no cache.

Always true: a lease holds only what its current entry allocated, and the matching exit frees it or, if it is
still in use, raises BufferError. After the exit the lease holds nothing, and may be entered again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._buffer import Buffer
from ._native import compiled

T = TypeVar("T")


@compiled
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
