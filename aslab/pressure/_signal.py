"""Pressure that is triggered by hand."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from .._reach import self_contained


@self_contained()
class Signal:
    """A `Source` that is triggered by hand: for a service that knows before the kernel does, and for tests."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[int | None], object]] = []

    def press(self, nbytes: int | None = None) -> None:
        """Ask for ``nbytes`` bytes back; None is everything that can be spared.

        Reaches every open allocator that uses this source. Does not suspend; event loop's thread only.
        """
        for listener in tuple(self._listeners):
            listener(nbytes)

    async def run(self, on_pressure: Callable[[int | None], object]) -> None:
        """As `Source.run`; ends only when cancelled."""
        self._listeners.append(on_pressure)
        try:
            await anyio.sleep_forever()
        finally:
            self._listeners.remove(on_pressure)
