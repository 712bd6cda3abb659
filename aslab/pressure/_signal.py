"""Pressure reported by hand."""

from __future__ import annotations

from collections.abc import Callable

import anyio


class Signal:
    """A `Source` triggered by hand, for a service that knows before the kernel does, and for tests."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[int | None], object]] = []

    def press(self, nbytes: int | None = None) -> None:
        """Ask for that many bytes; None means everything that can be spared.

        Reaches every allocator currently open with this source. Does not suspend; event loop's thread only.
        """
        for listener in tuple(self._listeners):
            listener(nbytes)

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `Source.run`; it only ends when cancelled."""
        self._listeners.append(on_pressure)
        try:
            await anyio.sleep_forever()
        finally:
            self._listeners.remove(on_pressure)
