"""Memory pressure: what is given back, in which order, and when to stop.

    empty slabs ── magazines, and slabs that this empties ── what clients free when asked ── defragmentation

Pressure comes from `aslab.pressure` sources (a cgroup, the kernel's stall information, or your own) and from the
limit: when a caller waits there, other caches give back what they do not use, at once, and then clients are asked.

Always true, between calls:

    1. pressure takes at once what was idle during the last interval, and an interval later what has been idle
       since; memory in use stays, as it would only have to be allocated again (_working_set.py)
    2. every report of pressure not yet taken up is in `_pressed`; of several the largest counts
    3. clients are asked at most once an interval on behalf of callers at the limit

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any

import anyio

from ._kmem._arena import Arena
from ._kmem._move import defragment
from ._kmem._pool import Pool
from ._kmem._reclaim import ask_clients, reap, relieve
from ._kmem._wakeup import WorkQueue, take_turns

Give = Callable[[Pool[Any], bool], Awaitable[int]]
"""Makes a pool give back what it can, after draining its magazine if asked to; returns the number of bytes."""


class Reaper:
    """Gives memory back from all pools of an allocator.

    :param pools: called each time for the current pools; closed ones are skipped
    """

    def __init__(self, arena: Arena, pools: Callable[[], Iterable[Pool[Any]]]) -> None:
        self._arena = arena
        self._pools = pools
        self._pressed: WorkQueue[float] = WorkQueue()
        self._asked_at = -math.inf
        self._emptying = False  # slabs are emptied, for callers at the limit

    def press(self, nbytes: int | None = None) -> None:
        """Report that memory is short by ``nbytes``; None asks for all that can be spared. Never suspends."""
        self._pressed.put(math.inf if nbytes is None else nbytes)

    async def run(self) -> None:
        """React to pressure until cancelled."""
        since, again_at, left = 0.0, math.inf, 0.0
        while True:
            if not self._pressed:
                with anyio.CancelScope(deadline=again_at):
                    await self._pressed.more()
            now, interval = self._arena.clock(), self._arena.interval
            wanted = 0.0
            while (nbytes := self._pressed.take_nowait()) is not None:
                wanted = max(wanted, nbytes)
            if wanted:
                given = await self.steps(wanted, partial(_give_idle, now - interval))
                since, again_at, left = now, now + interval, wanted - given
            elif now >= again_at:
                again_at = math.inf
                if left > 0:
                    await self.steps(left, partial(_give_idle, since))

    async def run_at_the_limit(self) -> None:
        """Ask clients to free objects for callers at the limit, at most once an interval, until cancelled.

        Their frees reach a waiting caller directly, or empty a slab and so make room for one of its own.
        """
        while True:
            nbytes = await self._arena.budget.reclaims.take()
            now = self._arena.clock()
            if now - self._asked_at < self._arena.interval:
                continue
            self._asked_at = now
            for number, pool in enumerate(self._open()):
                ask_clients(pool, nbytes)
                await take_turns(number)
            if not self._emptying:  # a pass may take long, and clients are asked meanwhile
                self._emptying = True
                self._arena.start(self._empty_sparse)

    async def _empty_sparse(self) -> None:
        try:
            for number, pool in enumerate(self._open()):
                if pool.moving.able:
                    await defragment(pool)
                await take_turns(number)
        finally:
            self._emptying = False
        self._arena.budget.ask_all()

    async def steps(self, wanted: float, give: Give) -> int:
        """Take one step after another until ``wanted`` bytes are on their way back. Returns how many are."""
        given = 0
        for drain in (False, True):
            for number, pool in enumerate(self._open()):
                given += await give(pool, drain)
                if given >= wanted:
                    return given
                await take_turns(number)
        for number, pool in enumerate(self._open()):
            await take_turns(number)
            if ask_clients(pool, wanted - given):
                given += await give(pool, True)
                if given >= wanted:
                    return given
        for number, pool in enumerate(self._open()):
            await take_turns(number)
            if pool.moving.able:
                await defragment(pool)
                given += await give(pool, True)
                if given >= wanted:
                    break
        return given

    def _open(self) -> Iterator[Pool[Any]]:
        return (pool for pool in tuple(self._pools()) if not pool.closed)


async def give_everything(pool: Pool[Any], drain: bool) -> int:
    """Give back everything that is free, however soon it may be needed again."""
    return await reap(pool, drain=drain)


async def _give_idle(since: float, pool: Pool[Any], drain: bool) -> int:
    return await relieve(pool, since, drain=drain)
