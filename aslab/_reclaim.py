"""Giving memory back: reaping on request, and ageing of what nobody uses.

While free slabs are on their way back the cache is REAPING and does not grow (SPL): a slab about to
be asked for must not be paid for twice. Releasing goes through the allocator's queue, so a caller
that is cancelled leaves nothing half done, and a stuck release holds up releases alone.

Event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from ._config import CacheConfig
from ._depot import Depot
from ._slab import Slab
from ._state import Mark, Marks

if TYPE_CHECKING:
    from ._engine import Engine

T = TypeVar("T")

AGEING_STEPS = 3
"""The ageing task looks so many times in ``expire`` (SPL: every 5 s, for 15 s)."""


class Reclaim(Generic[T]):
    """The reaping and ageing of one cache. ``on_reaped`` is called when a reap has ended."""

    def __init__(
        self,
        config: CacheConfig[T],
        marks: Marks,
        depot: Depot[T],
        engine: Engine,
        on_reaped: Callable[[], None],
    ) -> None:
        self._config = config
        self._marks = marks
        self._depot = depot
        self._engine = engine
        self._on_reaped = on_reaped
        self._ended = anyio.Event()
        self._last_seen: object = None
        self._idle_ticks = 0

    async def reap(self) -> int:
        """Give back every empty slab beyond the watermark; suspends until they are back. Answers their bytes."""
        while Mark.REAPING in self._marks:
            await self._ended.wait()
        if Mark.DESTROY in self._marks:
            return 0
        self._depot.drain(self._engine.tick)
        slabs = self._depot.remove_empty(self._config.watermark)
        ended = self._give_back(slabs)
        await ended.wait()
        return len(slabs) * self._config.shape.slab_size

    def age(self, seen: object, least: int) -> None:
        """One tick. ``seen`` differs from the last time if the cache was used; ``least`` objects stay free."""
        self._idle_ticks = self._idle_ticks + 1 if seen == self._last_seen else 0
        self._last_seen = seen
        if Mark.REAPING in self._marks or Mark.DESTROY in self._marks:
            return
        until = self._engine.tick - AGEING_STEPS
        if self._idle_ticks >= AGEING_STEPS:
            self._depot.drain(until)  # what has lain in an idle magazine is as old as that
        self._give_back(self._depot.remove_empty(least, until))

    def spare(self) -> None:
        """Another cache waits at the limit: give back what nobody uses here."""
        if Mark.REAPING not in self._marks and Mark.DESTROY not in self._marks:
            self._depot.drain(self._engine.tick)
            self._give_back(self._depot.remove_empty(self._config.watermark))

    def empty_out(self) -> anyio.Event:
        """Closing: everything that is free goes back. The event is set when it is back."""
        self._depot.drain(self._engine.tick)
        return self._give_back(self._depot.remove_empty())

    def _give_back(self, slabs: list[Slab[T]]) -> anyio.Event:
        ended = anyio.Event()
        if not slabs:
            ended.set()
            return ended
        marked = Mark.DESTROY not in self._marks
        if marked:
            self._marks.fire("reap")
            self._ended = ended
        left = [len(slabs)]

        def one_is_back() -> None:
            self._engine.room_made(self._config.shape.slab_size)
            left[0] -= 1
            if not left[0]:
                if marked:
                    self._marks.fire("reaped")
                ended.set()
                self._on_reaped()

        for slab in slabs:
            self._engine.budget.give_back(self._config.shape.slab_size)
            self._engine.release_slab(slab.dismantle(self._config.dtor), one_is_back)
        return ended
