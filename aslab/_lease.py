"""ManyLease: several allocations for the duration of a block.

As a `Lease` it is given a function that allocates, knows no cache, holds only what its current entry allocated,
and may be entered again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeVar

from ._errors import CorruptionError
from ._fastpath import Buffer

T = TypeVar("T")


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
        refused: BufferError | CorruptionError | None = None
        while self._buffers:
            try:
                self._buffers.pop().__exit__(exc_type, exc, tb)
            except (BufferError, CorruptionError) as error:  # one buffer must not keep the others allocated
                refused = refused or error
        if refused is not None:
            raise refused
