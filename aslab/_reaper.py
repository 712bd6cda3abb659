"""Under pressure: what is given back, in which order, and when it is enough.

    empty slabs ── magazines, and what that empties ── what clients free when asked ── defragmentation

Pressure comes from `aslab.pressure` sources (a cgroup, the kernel's stall information, or your own), and from
the limit: a caller that waits there has other caches give back what they do not use, at once, and then has
clients asked.

Pressure takes what was idle during the last interval, at once; one interval later what was idle since. So memory
is back within an interval, and what is in use stays: it would only have to be got again (see _demand.py).

Event loop's thread only.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ._kmem._state import Mark
from ._kmem._wakeup import take_turns

if TYPE_CHECKING:
    from ._kmem._pool import Pool
    from ._tasks import Engine

Give = Callable[["Pool[Any]", bool], Awaitable[int]]
"""Has a pool give back what it may, its magazine drained first or not; answers the bytes."""


class Relief:
    """Gives memory back for all pools of an allocator."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wanted: float = 0
        self._pressed = anyio.Event()
        self._asked_at = -math.inf

    def press(self, nbytes: int | None = None) -> None:
        """Memory is short by so many bytes; None is all that can be spared. Returns at once."""
        self._wanted = math.inf if nbytes is None else max(self._wanted, nbytes)
        self._pressed.set()

    def limit_reached(self, nbytes: int) -> None:
        """Callers wait at the limit, and nobody has idle slabs: have clients asked, once an interval."""
        now = self._engine.clock()
        if now - self._asked_at >= self._engine.interval:
            self._asked_at = now
            self._engine.start(partial(self._ask_clients, nbytes))

    async def run(self) -> None:
        """React until cancelled."""
        since, again_at, left = 0.0, math.inf, 0.0
        while True:
            with anyio.CancelScope(deadline=again_at):
                await self._pressed.wait()
            now = self._engine.clock()
            if self._pressed.is_set():
                wanted, self._wanted = self._wanted, 0.0
                self._pressed = anyio.Event()
                given = await self.steps(wanted, self._idle_since(now - self._engine.interval))
                since, again_at, left = now, now + self._engine.interval, wanted - given
            else:
                again_at = math.inf
                if left > 0:
                    await self.steps(left, self._idle_since(since))

    async def steps(self, wanted: float, give: Give) -> int:
        """Take the steps one after the other until so many bytes are on their way. Answers how many are."""
        given = 0
        for drain in (False, True):
            for number, pool in enumerate(tuple(self._engine.pools)):
                given += await give(pool, drain)
                if given >= wanted:
                    return given
                await take_turns(number)
        for number, pool in enumerate(tuple(self._engine.pools)):
            await take_turns(number)
            if self._ask(pool, wanted - given):
                given += await give(pool, True)
                if given >= wanted:
                    return given
        for number, pool in enumerate(tuple(self._engine.pools)):
            await take_turns(number)
            if pool.mover.able:
                await pool.mover.defragment()
                given += await give(pool, True)
                if given >= wanted:
                    break
        return given

    @staticmethod
    async def everything(pool: Pool[Any], drain: bool) -> int:
        """All that is free, whoever may need it soon."""
        return await pool.reclaim.reap(drain=drain)

    @staticmethod
    def _idle_since(time: float) -> Give:
        async def give(pool: Pool[Any], drain: bool) -> int:
            return await pool.reclaim.relieve(time, drain=drain)

        return give

    @staticmethod
    def _ask(pool: Pool[Any], nbytes: float) -> int:
        freed = 0
        for cache in tuple(pool.caches):
            missing = nbytes - freed * pool.config.shape.stride
            if missing > 0:
                freed += cache._ask_client(missing)
        return freed

    async def _ask_clients(self, nbytes: int) -> None:
        """For a caller at the limit: what clients free it gets by the frees themselves, or by slabs that go."""
        for number, pool in enumerate(tuple(self._engine.pools)):
            self._ask(pool, nbytes)
            await take_turns(number)
        for pool in tuple(self._engine.pools):
            if pool.mover.able and Mark.DESTROY not in pool.marks:
                await pool.mover.defragment()
        self._engine.ask_all()
