"""Giving memory back: on request, for others at the limit, under pressure, and what nobody uses.

While free slabs are on their way back the cache is REAPING and does not grow (SPL): a slab about to
be asked for must not be paid for twice. Releasing goes through the allocator's queue, so a caller
that is cancelled leaves nothing half done, and a stuck release holds up releases alone.

Event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from .._config import CacheConfig
from ._budget import Account, Claim
from ._depot import Depot
from ._slab import Slab
from ._state import Mark, Marks
from ._waiters import Line
from ._working_set import Demand

if TYPE_CHECKING:
    from .._tasks import Engine

T = TypeVar("T")

AGEING_STEPS = 3
"""The ageing task looks so many times in ``expire`` (SPL: every 5 s, for 15 s)."""


class Reclaim(Generic[T]):
    """The reaping and ageing of one pool. ``on_reaped`` is called when a reap has ended."""

    def __init__(
        self,
        config: CacheConfig[T],
        marks: Marks,
        depot: Depot[T],
        engine: Engine,
        account: Account,
        line: Line[T],
        on_reaped: Callable[[], None],
    ) -> None:
        self.demand: Demand = Demand(engine.interval * AGEING_STEPS)
        self._config = config
        self._marks = marks
        self._depot = depot
        self._engine = engine
        self._account = account
        self._line = line
        self._on_reaped = on_reaped
        self._ended = anyio.Event()
        self._last_seen: object = None
        self._idle_ticks = 0

    async def reap(self, *, drain: bool = True) -> int:
        """Give back every empty slab that nobody waits for; suspends until they are back. Answers their bytes.

        :param drain: empty the magazine first
        """
        while Mark.REAPING in self._marks:
            await self._ended.wait()
        if self._settled:
            return 0
        if drain:
            self._depot.drain(self._engine.tick)
        slabs = self._depot.remove_empty(self._kept)
        await self._give_back(slabs).wait()
        return len(slabs) * self._config.shape.slab_size

    async def relieve(self, since: float, *, drain: bool) -> int:
        """Pressure: give back what has not been needed since then, but nothing while growing. Answers the bytes.

        Suspends only for slabs that are on their way already, and for no longer than an interval.
        """
        with anyio.move_on_after(self._engine.interval):
            while Mark.REAPING in self._marks:
                await self._ended.wait()
        now = self._engine.clock()
        if self._marks.state & (Mark.GROWING | Mark.REAPING) or self._settled:
            return 0
        self._note_peak(now)
        if drain:
            self._depot.drain(self._engine.tick)
            self._depot.slabs.restart_peak()  # what lay in the magazine is not in use
        in_use = self._depot.slabs.slots_total - self._depot.free
        keep = max(self._kept, self.demand.needed(since) - in_use)
        slabs = self._depot.remove_empty(keep)
        if slabs:
            self.demand.gave_back(now)
        self._give_back(slabs)
        return len(slabs) * self._config.shape.slab_size

    def age(self, seen: object, *, expires: bool) -> None:
        """One tick. ``seen`` differs from the last time if the cache was used; what is idle may expire."""
        self._idle_ticks = self._idle_ticks + 1 if seen == self._last_seen else 0
        self._last_seen = seen
        self._note_peak(self._engine.clock())
        if not expires or Mark.REAPING in self._marks or self._settled:
            return
        until = self._engine.tick - AGEING_STEPS - 1  # it became empty at some time after that tick
        if self._idle_ticks >= AGEING_STEPS:
            self._depot.drain(until)  # what has lain in an idle magazine is as old as that
        self._give_back(self._depot.remove_empty(self._kept, until))

    def spare(self, nbytes: int, rank: Claim | None) -> int:
        """Another cache waits at the limit: give back as much of what nobody uses here. Answers the bytes.

        What this one was guaranteed it keeps: that room is its own. And what gathers for callers that wait here,
        unless the other's, of that rank, have waited longer.
        """
        slabs = min(-(-nbytes // self._account.slab_size), self._account.beyond // self._account.slab_size)
        if slabs <= 0 or Mark.REAPING in self._marks or self._settled:
            return 0
        if self._depot.free < self._config.shape.objects:  # most have no whole slab: no need to look closer
            return 0
        self._depot.drain(self._engine.tick)
        first = self._line.first
        older = first is None or (rank is not None and rank < first.rank)
        given = self._depot.remove_empty(self._config.watermark if older else self._kept, most=slabs)
        self._give_back(given)
        return len(given) * self._config.shape.slab_size

    def clear_condemned(self) -> bool:
        """A slab that was to go is empty perhaps: give it back; whether it was."""
        if Mark.REAPING in self._marks:
            return False
        slabs = self._depot.take_condemned()
        self._give_back(slabs)
        return bool(slabs)

    def empty_out(self) -> anyio.Event:
        """Closing: everything that is free goes back. The event is set when it is back."""
        self._depot.drain(self._engine.tick)
        return self._give_back(self._depot.remove_empty())

    @property
    def _kept(self) -> int:
        """Free objects that stay: the watermark, or what gathers for the first in line."""
        first = self._line.first
        return max(self._config.watermark, 0 if first is None else first.need)

    @property
    def _settled(self) -> bool:
        """Nothing may go, as it could not come back, or nothing is left to decide."""
        return Mark.DESTROY in self._marks or self._engine.budget.sealed

    def _note_peak(self, now: float) -> None:
        self.demand.roll(now, self._depot.slabs.restart_peak())

    def _give_back(self, slabs: list[Slab[T]]) -> anyio.Event:
        ended = anyio.Event()
        if not slabs:
            ended.set()
            return ended
        marked = Mark.DESTROY not in self._marks
        if marked:
            self._marks.fire("reap")
            self._engine.budget.note(self._account)
            self._ended = ended
        left = [len(slabs)]

        def one_is_back() -> None:
            self._engine.room_made(self._account)
            left[0] -= 1
            if not left[0]:
                if marked:
                    self._marks.fire("reaped")
                    self._engine.budget.note(self._account)
                ended.set()
                self._on_reaped()

        for slab in slabs:
            self._engine.budget.give_back(self._account)
            self._engine.release_slab(slab.region, slab.dismantle(self._config.dtor), one_is_back)
        return ended
