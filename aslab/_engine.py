"""Engine: what all caches of an allocator share, and the tasks that serve them.

    bell     what other threads and finalisers leave to the event loop
    supply   regions from backends, and back
    budget   the limit
    worker   growth
    ageing   what nobody uses goes back

All tasks live in the task group of `open_allocator`; there is no global state. They are shielded from
the cancellation of its block: when a service is cancelled, its memory still has to go back. `stop`
ends them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from ._bell import Bell
from ._budget import Budget
from ._config import AllocatorConfig
from ._growth import Growth
from ._reclaim import AGEING_STEPS
from ._supply import Supply
from ._worker import Worker
from .backends._protocol import Region

if TYPE_CHECKING:
    from ._cache import Cache

LOOK_EVERY = 5.0
"""Seconds between looks at what was lost or waits, where nothing expires."""
CLOSING_GRACE = 0.5
"""Seconds that closing gives to grows and releases under way."""
HOUSEKEEPING: ContextVar[bool] = ContextVar("aslab_housekeeping", default=False)
"""Set in tasks that only look after others: a simulation in which no other has a timer left is stuck."""


class Engine:
    """The machinery behind one `Allocator`."""

    def __init__(self, config: AllocatorConfig) -> None:
        self.config = config
        self.bell: Bell = Bell()
        self.supply: Supply = Supply(self.bell)
        self.budget: Budget = Budget(config.limit)
        self.worker: Worker = Worker(self.supply, config.slabs, self.budget, config.kick_after, self._make_room)
        self.caches: dict[str, Cache[Any]] = {}
        self._retired: list[Cache[Any]] = []  # closed, with slabs still
        self.tick: int = 0
        """Counts the looks of the ageing task."""
        self.closed: bool = False
        self._thread = threading.get_ident()
        self._scope = anyio.CancelScope(shield=True)

    async def run(self) -> None:
        """Run all tasks until `stop`."""
        with self._scope, self.bell:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._run_bell)
                tasks.start_soon(self.supply.run)
                for _ in range(self.config.growth_workers):
                    tasks.start_soon(self.worker.run, tasks)
                tasks.start_soon(self._run_ageing)

    def stop(self) -> None:
        """End all tasks; what is stuck in a thread is left behind."""
        self.worker.stopping = True
        self._scope.cancel()

    def attend(self, call: Callable[[], object]) -> None:
        """Call on the event loop's thread: now if this is it; else the bell makes every cache look."""
        if threading.get_ident() == self._thread:
            call()
        else:
            self.bell.ring()

    def release_slab(self, region: Region, done: Callable[[], object]) -> None:
        """Queue a slab's region for release; ``done`` is called on the event loop's thread. Any thread."""
        self.supply.release(self.config.slabs, region, done)

    def room_made(self, nbytes: int) -> None:
        """That many bytes are back at the backend: others may grow."""
        self.budget.back(nbytes)
        for cache in self.caches.values():
            cache._growth.ask()
        self.worker.look_again()

    def retire(self, cache: Cache[Any]) -> None:
        """A cache is closed. It is looked after until its last slab is back."""
        del self.caches[cache.name]
        self._retired.append(cache)

    def _make_room(self, growth: Growth[Any]) -> None:
        if self.budget.full(growth.config.shape.slab_size):
            for cache in self.caches.values():
                if cache._growth is not growth:
                    cache._reclaim.spare()

    def _all_caches(self) -> tuple[Cache[Any], ...]:
        self._retired = [cache for cache in self._retired if len(cache._depot.slabs)]
        return (*self.caches.values(), *self._retired)

    async def close(self) -> list[str]:
        """Close the caches, and give what is under way a moment to end. Answers what there is to warn of."""
        self.closed = True
        found = [warning for cache in tuple(self.caches.values()) if (warning := cache._shut())]
        with anyio.move_on_after(CLOSING_GRACE):
            await self.worker.idle()
            await self.supply.idle()
        for growth, since in self.worker.under_way.items():
            found.append(
                f"the allocator was closed with a grow of cache {growth.config.name!r} stuck since "
                f"{anyio.current_time() - since:.1f} s: abandoned, its region is released if it ever comes"
            )
        late = self.supply.close()
        if late:
            found.append(f"the allocator was closed with {late} regions still to be released: a thread goes on")
        return found

    async def _run_bell(self) -> None:
        while True:
            await self.bell.wait()
            self.supply.attend()
            for cache in self._all_caches():
                cache._attend()

    async def _run_ageing(self) -> None:
        HOUSEKEEPING.set(True)
        interval = (self.config.expire or LOOK_EVERY * AGEING_STEPS) / AGEING_STEPS
        while True:
            await anyio.sleep(interval)
            self.tick += 1
            for cache in self._all_caches():
                cache._age(expires=self.config.expire is not None)
