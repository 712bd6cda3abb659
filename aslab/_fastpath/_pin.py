"""Pins: the way to the memory of a buffer that may be moved between two of them.

A view holds on to its slot's exporter (see _views.py), and a slot whose exporter is in use is never moved. So a
pin is a view with an end, nothing is counted, and a slice or an array that is kept past that end keeps the
buffer where it is until it goes, too.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._buffer import Buffer


class Pin:
    """What `Buffer.pin` answers. May be entered again and again, and inside of itself."""

    __slots__ = ("_buffer", "_views")

    def __init__(self, buffer: Buffer[Any]) -> None:
        self._buffer = buffer
        self._views: list[memoryview] = []

    def __enter__(self) -> memoryview:
        view = self._buffer._pinned_view()
        self._views.append(view)
        return view

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with contextlib.suppress(BufferError):  # an array is kept: the pin lasts as long as that does
            self._views.pop().release()
