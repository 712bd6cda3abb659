"""Claim: what a client holds of a buffer."""

from __future__ import annotations

import ctypes
from types import TracebackType

from .._fastpath import has_company
from ._descriptor import Descriptor


class Claim:
    """A buffer of another process, readable until it is released. Use it as a ``with`` block.

    While the claim lives the buffer's memory has no other owner. If the claim is dropped unreleased, the buffer
    goes back once no array or slice of it is left.
    """

    def __init__(self, exporter: ctypes.Array[ctypes.c_ubyte], descriptor: Descriptor, *, writable: bool) -> None:
        self._exporter: ctypes.Array[ctypes.c_ubyte] | None = exporter
        self.descriptor: Descriptor = descriptor
        whole = memoryview(exporter)
        part = whole if writable else whole.toreadonly()
        self._view = part.cast("B")
        part.release()  # none but the view may share its managed buffer: `release` looks for others
        whole.release()

    @property
    def view(self) -> memoryview:
        """The memory; after `release` it raises ValueError, as any released view."""
        return self._view

    def __len__(self) -> int:
        return self.descriptor.size

    def release(self) -> None:
        """Let go. A second time does nothing. Any thread.

        :raises BufferError: if an array or a slice of the view is alive: the claim is still held
        """
        if self._exporter is None:
            return
        if has_company(self._view):
            raise BufferError(
                "an array, a slice or another memoryview of this claim is alive: del or release it first"
            )
        self._view.release()  # raises if an array is alive
        self._exporter = None  # the client notices, and tells the service

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.release()
        except BufferError:  # an exception's frames often keep a slice: the buffer goes back when they go
            if exc is None:
                raise
            self._exporter, self._view = None, memoryview(b"")

    def __repr__(self) -> str:
        state = "released" if self._exporter is None else "held"
        return f"<Claim on {self.descriptor}, {state}>"
