"""Slabs that come one after another in one grow, each used at once while the backend makes the next.

The thread that makes slabs would otherwise rest for as long as the event loop takes to look after each: a tenth of
the time that it takes to fault in 8 MiB. So it goes on by itself: while there is room set aside for the next slab,
and that is needed, or somebody waits even for the last. It stops for other pools, and once growth is late.

The event loop hears of each slab that somebody waits for, and of the others now and then.

Always true: room for a slab is set aside before the backend begins it, and each slab set aside is committed, or
given up once the backend has nothing outstanding for it.

`_deliver` runs in any thread, all else on the event loop's.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

from .._errors import BackendError
from ..backends._protocol import Region
from ._arena import Arena
from ._growth import BATCH, BATCH_SECONDS
from ._pool import Pool
from ._slab import Slab


class Arrivals:
    """The slabs of one grow.

    :param room: slabs that room is set aside for already, at least one
    :param gone: gives up the room of one
    """

    def __init__(self, arena: Arena, pool: Pool[Any], room: int, gone: Callable[[], object]) -> None:
        self._arena = arena
        self._pool = pool
        self._gone = gone
        self._room = room
        self._sure = 1  # so many are needed, whoever waits
        self._begun = 1
        self._settled = 0  # committed, or left to whoever calls `gone`
        self._taken = 0
        self._arrived: deque[object] = deque()
        self._told = arena.clock()  # when the loop was last told
        self._ended = False  # the backend has been told to end
        self._over = False
        self._fault: Exception | None = None

    async def run(self) -> tuple[list[Slab[Any]], int]:
        """Suspend until no more are to come. Returns those that are not committed yet, and the number of all.

        :raises MemoryError: if the backend has no memory for the first
        :raises BackendError: if it breaks its contract
        """
        supply, growth, shape = self._arena.slabs, self._pool.growth, self._pool.config.shape
        self._set_aside()
        try:
            try:
                await supply.acquire_each(growth.account.slab_size, shape.align, growth.gfp, self._deliver)
            except MemoryError:
                if not self._taken and not self._arrived:
                    raise
            last = self._slabs()
            if self._fault is None and not self._taken and not last:
                self._fault = BackendError(f"{supply.backend!r}.acquire_each delivered no region")
            if self._fault is not None:
                self._commit(last)
                raise self._fault
            self._settled += len(last)
            return last, self._taken + len(last)
        finally:
            self._end()

    def _deliver(self, region: object) -> bool:
        if self._ended:  # no room is set aside for it
            self._fault = BackendError(f"{self._arena.slabs.backend!r}.acquire_each went on when it had to end")
            if isinstance(region, Region):
                self._arena.slabs.release(region)
            return False
        self._arrived.append(region)
        if self._over:
            self._give_back()
            return False
        waits = self._pool.waiters.first is not None
        if self._must_end or self._begun >= self._room or not (waits or self._begun < self._sure):
            self._ended = True
            return False
        self._begun += 1
        now = self._arena.clock()
        if waits or now - self._told >= BATCH_SECONDS:
            self._told = now
            self._arena.call_soon(self._take)
        return True

    @property
    def _must_end(self) -> bool:
        arena, pool = self._arena, self._pool
        ends = bool(arena.grows.places) or arena.budget.sealed or pool.growth.unwell or pool.closed
        return ends or self._fault is not None

    def _take(self) -> None:
        """Take in what has come."""
        self._commit(self._slabs())
        if not self._over:
            self._pool.attend()
            self._set_aside()

    def _set_aside(self) -> None:
        """Set room aside for the next slabs: as many as are needed, and one for whoever may wait then."""
        growth = self._pool.growth
        wanted = growth.slabs_wanted - (self._begun - self._settled)
        sure = self._begun + max(0, wanted)
        target = min(sure + (growth.demand.slabs_ahead > 0), BATCH, self._settled + growth.slabs_allowed)
        if not self._must_end:
            budget, account = self._arena.budget, self._pool.account
            while self._room < target and budget.try_charge_more(account, self._room - self._settled):
                self._room += 1
        self._sure = sure

    def _slabs(self) -> list[Slab[Any]]:
        slabs: list[Slab[Any]] = []
        shape, size = self._pool.config.shape, self._pool.account.slab_size
        while self._arrived:
            region = self._arrived.popleft()
            try:
                slabs.append(Slab(self._arena.slabs.checked(region, size, shape.align, self._gone), shape))
            except BackendError as exc:
                self._fault = exc
                self._settled += 1
        return slabs

    def _commit(self, slabs: list[Slab[Any]]) -> None:
        for slab in slabs:
            self._taken += 1
            self._settled += 1
            self._arena.budget.commit(self._pool.account)
            self._pool.growth.came(slab)

    def _end(self) -> None:
        """Give back what was not taken in, and the room of what has not come; what comes later goes back, too."""
        self._over = True
        self._settled += self._give_back(self._gone)
        for _ in range(self._room - self._settled):
            self._gone()

    def _give_back(self, gone: Callable[[], object] = lambda: None) -> int:
        given = 0
        with contextlib.suppress(IndexError):  # another thread took the last
            while True:
                region = self._arrived.popleft()
                if isinstance(region, Region):
                    given += 1
                    self._arena.slabs.release(region, gone)
        return given
