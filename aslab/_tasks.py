"""The tasks of an allocator: they take work from the arena's queues, and have clocks.

    wake-ups    what other threads and finalisers leave to the event loop
    releases    regions go back to their backends, slabs and emergency objects each by themselves
    workers     slabs are made
    ageing      what nobody uses goes back, what was lost is found, and nobody starves
    reaper      what can be spared goes back when memory is short
    mover       objects move to where whole slabs come free
    sources     what tells that memory is short

Always true: all of them live in the task group of `open_allocator`, and there is no global state. They are
shielded from the cancellation of its block: when a service is cancelled, its memory still has to go back. `stop`
ends them.

Event loop's thread only.
"""

from __future__ import annotations

from typing import Any

import anyio

from ._cache import Cache, shut
from ._clients import log_failure, must_end
from ._config import AllocatorConfig, CacheConfig
from ._kmem import _move as move
from ._kmem._arena import Arena
from ._kmem._errands import failing_at_the_end
from ._kmem._frees import look_at_all
from ._kmem._pool import Pool
from ._kmem._reclaim import age
from ._kmem._wakeup import HOUSEKEEPING, take_turns
from ._kmem._worker import Worker
from ._reaper import Reaper
from .pressure import Source

CLOSING_GRACE = 0.5
"""Seconds that closing gives to grows and releases under way."""


class Tasks:
    """The caches of one `Allocator`, and the tasks that serve them. Made by a task of the loop that runs it."""

    def __init__(self, config: AllocatorConfig) -> None:
        self.arena: Arena = Arena(config)
        self.caches: dict[str, Cache[Any]] = {}
        """Those that are open, by name."""
        self.worker: Worker = Worker(self.arena)
        self.reaper: Reaper = Reaper(self.arena, lambda: self._pools)
        self._pools: list[Pool[Any]] = []  # those that are open, or have slabs still
        self._scope = anyio.CancelScope(shield=True)

    @property
    def pools(self) -> list[Pool[Any]]:
        """Those that are open."""
        return [pool for pool in self._pools if not pool.closed]

    def make_cache(self, config: CacheConfig[Any]) -> Cache[Any]:
        """A cache with a pool of its own, or with that of others like it if it may share."""
        pool = None
        if config.merge:
            pool = next((pool for pool in self.pools if pool.config.shares_with(config)), None)
        if pool is None:
            pool = Pool(self.arena, config)
            self._pools.append(pool)
        cache = self.caches[config.name] = Cache(pool, config, self.caches)
        return cache

    async def run(self) -> None:
        """Run all tasks until `stop`."""
        arena = self.arena
        with self._scope, arena.wakeup, failing_at_the_end(arena):
            async with anyio.create_task_group() as tasks:
                arena.tasks = tasks
                tasks.start_soon(arena.run_wakeups)
                tasks.start_soon(arena.slabs.run)
                tasks.start_soon(arena.singles.run)
                for _ in range(arena.config.growth_workers):
                    tasks.start_soon(self.worker.run, tasks)
                tasks.start_soon(self._run_ageing)
                tasks.start_soon(self._run_reaper)
                tasks.start_soon(self.reaper.run_at_the_limit)
                tasks.start_soon(move.run, arena)
                for source in arena.config.pressure:
                    tasks.start_soon(self._run_source, source)

    async def _run_ageing(self) -> None:
        HOUSEKEEPING.set(True)
        arena = self.arena
        while True:
            await anyio.sleep(arena.interval)
            arena.budget.all_may_spare()
            self._pools = [pool for pool in self._pools if not pool.closed or len(pool.depot.slabs)]
            for number, pool in enumerate(tuple(self._pools)):
                await look_at_all(pool)
                age(pool, expires=arena.config.expire is not None)
                move.tick(pool)
                pool.attend()
                await take_turns(number)
            arena.budget.look_again(arena.clock() - arena.interval)

    async def _run_reaper(self) -> None:
        HOUSEKEEPING.set(True)  # it looks again an interval later
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
        """Close the caches, and give what is under way a moment to end. Returns what there is to warn of."""
        arena = self.arena
        arena.closed = arena.budget.closed = True
        found = []
        for number, cache in enumerate(tuple(self.caches.values())):
            if warning := shut(cache):
                found.append(warning)
            await take_turns(number)
        for number, pool in enumerate(tuple(self._pools)):  # what other threads have left to the loop
            pool.attend()
            await take_turns(number)
        with anyio.move_on_after(CLOSING_GRACE):
            await self.worker.idle()
            await arena.slabs.idle()
            await arena.singles.idle()
        for pool, since in self.worker.under_way.items():
            found.append(
                f"the allocator was closed with a grow of cache {pool.config.name!r} that has been stuck for "
                f"{arena.clock() - since:.1f} s: abandoned, its region is released if it ever comes"
            )
        late = arena.slabs.close() + arena.singles.close()
        if late:
            found.append(f"the allocator was closed with {late} regions still to be released: a thread goes on")
        return found

    def stop(self) -> None:
        """End all tasks; what is stuck in a thread is left behind."""
        self.worker.stopping = True
        self._scope.cancel()

    def release_late(self) -> None:
        """Leave to a thread what is still to be released, where `close` was cut off before."""
        for supply in (self.arena.slabs, self.arena.singles):
            if not supply.closed:
                supply.close()
