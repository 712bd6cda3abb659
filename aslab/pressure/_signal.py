"""Pressure that somebody tells of by hand."""

from __future__ import annotations

from collections.abc import Callable

import anyio


class Signal:
    """A `Source` that is pressed by hand: for a service that knows before the kernel does, and for tests."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[int | None], object]] = []

    def press(self, nbytes: int | None = None) -> None:
        """Say that so many bytes are wanted back; None is all that can be spared.

        Heard by every allocator that is open with it now. Does not suspend; event loop's thread only.
        """
        for listener in tuple(self._listeners):
            listener(nbytes)

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `Source.run`; it ends only by cancellation."""
        self._listeners.append(on_pressure)
        try:
            await anyio.sleep_forever()
        finally:
            self._listeners.remove(on_pressure)
