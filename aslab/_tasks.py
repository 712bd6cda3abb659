"""The tasks of an allocator, which take work from the arena's queues or wake by the clock.

    wake-ups    do what other threads and finalisers leave to the event loop
    alarms      wake callers whose time is up, and walk along long lines
    releases    return regions to their backends, slabs and emergency objects separately
    workers     make slabs
    ageing      gives back unused memory, recovers lost buffers, and rescues starved callers
    reaper      gives back what can be spared when memory is short
    mover       moves objects so that whole slabs become free
    sources     report that memory is short
    faults      ends faults whose time is over, where a service lets faults be turned on

Always true:

    1. every task lives in the one task group of `run`; there is no global state
    2. the tasks are shielded from the cancellation of the allocator's block, since a cancelled service still has
       to return its memory; `stop` ends them
    3. a pool is in `_pools` while it is open or still has slabs

Event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import anyio

from ._cache import Cache, shut
from ._clients import log_failure, must_end
from ._config import AllocatorConfig, CacheConfig
from ._faults import Faults
from ._kmem import _move as move
from ._kmem._arena import Arena
from ._kmem._errands import failing_at_the_end
from ._kmem._frees import look_at_all
from ._kmem._invariants import take_step
from ._kmem._pool import Pool
from ._kmem._reclaim import age
from ._kmem._rescue import look_again
from ._kmem._wakeup import HOUSEKEEPING, take_turns
from ._kmem._worker import Worker
from ._reaper import Reaper
from .pressure import Source

CLOSING_GRACE = 0.5
"""Seconds that closing gives to grows and releases under way."""


class Tasks:
    """The caches of one `Allocator`, and the tasks that serve them. Made in a task of the loop that runs them."""

    def __init__(self, config: AllocatorConfig) -> None:
        self.arena: Arena = Arena(config)
        self.caches: dict[str, Cache[Any]] = {}
        """The open caches, by name."""
        self.faults: Faults | None = Faults(self.arena) if config.faults else None
        """Faults for game days, if the service lets them be turned on."""
        self.worker: Worker = Worker(self.arena)
        self.reaper: Reaper = Reaper(self.arena, lambda: self._pools)
        self._pools: dict[Pool[Any], None] = {}  # closed ones stay until the ageing task finds them without slabs
        self._kinds: dict[Hashable, Pool[Any]] = {}  # of them, those that may be shared
        self._scope = anyio.CancelScope(shield=True)

    @property
    def pools(self) -> list[Pool[Any]]:
        """The open pools."""
        return [pool for pool in self._pools if not pool.closed]

    def make_cache(self, config: CacheConfig[Any]) -> Cache[Any]:
        """Make a cache, with a pool of its own or, with ``merge``, that of caches configured alike."""
        pool = self._kinds.get(config.kind) if config.merge else None
        if pool is None or pool.closed:
            pool = Pool(self.arena, config)
            self._pools[pool] = None
            if config.merge:
                self._kinds[config.kind] = pool
        cache = self.caches[config.name] = Cache(pool, config, self.caches)
        return cache

    async def run(self) -> None:
        """Run all tasks until `stop`."""
        arena = self.arena
        with self._scope, arena.wakeup, failing_at_the_end(arena):
            async with anyio.create_task_group() as tasks:
                arena.tasks = tasks
                tasks.start_soon(arena.run_wakeups)
                tasks.start_soon(arena.alarms.run)
                tasks.start_soon(arena.slabs.run)
                tasks.start_soon(arena.singles.run)
                for _ in range(arena.config.growth_workers):
                    tasks.start_soon(self.worker.run, tasks)
                tasks.start_soon(self._run_ageing)
                tasks.start_soon(self._run_reaper)
                tasks.start_soon(self.reaper.run_at_the_limit)
                tasks.start_soon(move.run, arena)
                if self.faults is not None:
                    tasks.start_soon(self.faults.run)
                for source in arena.config.pressure:
                    tasks.start_soon(self._run_source, source)

    async def _run_ageing(self) -> None:
        HOUSEKEEPING.set(True)
        while True:
            await anyio.sleep(self.arena.interval)
            await self.age()

    async def age(self) -> None:
        """One pass over all pools: they grow older by a tick. Suspends."""
        arena = self.arena
        arena.budget.all_may_spare()
        for number, pool in enumerate(tuple(self._pools)):
            if pool.closed and not len(pool.depot.slabs):
                self._forget(pool)
            else:
                await look_at_all(pool)
                age(pool, expires=arena.config.expire is not None)
                move.tick(pool)
                await self._report_held(pool)
                pool.attend()
                take_step(pool)
            await take_turns(number)
        await look_again(arena.budget, arena.clock() - arena.interval)

    async def _report_held(self, pool: Pool[Any]) -> None:
        """Report each buffer that has been held for ``leak_after``, once."""
        for member in tuple(pool.members):
            for number, holder in enumerate(member.holders.overdue()):
                pool.growth.reports.held_long(holder)
                await take_turns(number)

    def _forget(self, pool: Pool[Any]) -> None:
        del self._pools[pool]
        kind = pool.config.kind if pool.config.merge else None
        if self._kinds.get(kind) is pool:
            del self._kinds[kind]

    async def _run_reaper(self) -> None:
        HOUSEKEEPING.set(True)  # it sets a timer to look again, an interval later
        await self.reaper.run()

    async def _run_source(self, source: Source) -> None:
        HOUSEKEEPING.set(True)
        try:
            await source.run(self.reaper.press)
        except BaseException as exc:
            if must_end(exc, stopping=self.worker.stopping):
                raise
            log_failure(exc, "%r failed; the allocator goes on without it", source)

    async def close(self) -> list[str]:
        """Close the caches, and give grows and releases under way `CLOSING_GRACE` seconds. Returns warnings."""
        arena = self.arena
        if self.faults is not None:  # before anything waits for a stuck grow
            self.faults.close()
        arena.closed = arena.budget.closed = True
        arena.listeners.close()
        found = []
        for number, cache in enumerate(tuple(self.caches.values())):
            found += shut(cache)
            await take_turns(number)
        for number, pool in enumerate(tuple(self._pools)):  # do what other threads have left to the loop
            pool.attend()
            await take_turns(number)
        await self._rest()
        for pool, since in self.worker.under_way.items():
            found.append(
                f"the allocator was closed while a grow of cache {pool.config.name!r} had been stuck for "
                f"{arena.clock() - since:.1f} s; the grow is abandoned, its region is released if it ever arrives"
            )
        late = arena.slabs.close() + arena.singles.close()
        if late:
            found.append(f"the allocator was closed with {late} regions still to be released: a thread does it")
        return found

    async def _rest(self) -> None:
        """Suspend until no grow or release is under way, `CLOSING_GRACE` seconds at most.

        If the loop ends that late, it is as late in hearing of what has come, and gets as long again.
        """
        arena, grace = self.arena, CLOSING_GRACE
        for _ in range(2):
            until = arena.clock() + grace
            with anyio.move_on_after(grace):
                await self.worker.idle()
                # again and again, as the end of a view may bring another release
                while not (arena.slabs.at_rest and arena.singles.at_rest):
                    await arena.slabs.idle()
                    await arena.singles.idle()
                return
            grace = arena.clock() - until

    def stop(self) -> None:
        """Cancel all tasks; calls stuck in a thread are left behind."""
        self.worker.stopping = True
        self._scope.cancel()

    def release_late(self) -> None:
        """Hand regions still to be released to a thread, in case `close` was cancelled before it did."""
        for supply in (self.arena.slabs, self.arena.singles):
            if not supply.closed:
                supply.close()
