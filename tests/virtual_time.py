"""An asyncio event loop whose clock is simulated.

Its selector never sleeps: asked to wait for a time, it moves the clock by that much. Asked to wait
without end it waits for real, for what another thread may bring, and calls it a deadlock after a
while. (async-solipsism hangs where rounding leaves a delay below its resolution; looptime's plugin
breaks anyio's. This is all it takes.)
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any

STUCK_AFTER = 30.0


class _Selector(selectors.BaseSelector):
    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = 0.0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(0)
        if ready or timeout is None:
            ready = ready or self._real.select(STUCK_AFTER)
            if not ready:
                raise RuntimeError("every task is stuck, and no timer is left")
            return ready
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio in simulated time; no sleep takes any."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now
