"""The serialized worker that makes slabs.

Pools put themselves into its queue; it takes one at a time, by the urgency of their first callers, so that only
one call for slab memory is made at a time: in the kernel, several would only contend for the lock of the address
space (SPL moved growth to one work queue in 2012, for this reason and for the deadlock).

Always true, between calls:

    1. a pool is GROWING while it is in the queue or `under_way`
    2. room for the slab is set aside while its grow is under way
    3. each grow ends with `Pool.grown`, `grow_failed` or `call_off`, exactly once

One stuck call would hold up every cache. So each runs in a task of its own, and after ``kick_after`` the worker
sets it aside and takes the next; the pool keeps its marks until the call ends. (SPL later went to four threads,
and to a module parameter that starts another thread for a stuck queue.)

Event loop's thread only.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from .._clients import keep_interrupt, log_failure, must_end
from .._errors import BackendError, ConstructorError, SlabError, clear_frames
from .._flags import ORDINARY
from ..backends._threads import LAG
from ._arena import Arena
from ._arrivals import Arrivals
from ._growth import BATCH_SECONDS
from ._invariants import take_step
from ._pool import Pool
from ._slab import Slab, construct
from ._wakeup import AT_ONCE

SLICE = 0.002
"""Seconds for which objects are constructed without a pause while the loop is busy."""
SHARE = 0.5
"""Of the time after which a grow is late for its own callers: from then on it is for pools behind it, too, so that
their callers' time begins."""
ARRIVAL = 5.0
"""Seconds for which room on its way back is kept for the first pool that waits for it."""


def _ask_for_room(pools: list[Pool[Any]]) -> None:
    """Have pools called off ask again: as they are at the limit now, this asks others for room."""
    while pools:
        pools.pop(0).ask()


class Worker:
    """Grows pools, one at a time."""

    def __init__(self, arena: Arena) -> None:
        self.under_way: dict[Pool[Any], float] = {}
        """The grows under way, and when each began."""
        self.kicked: int = 0
        """Grows that have been set aside."""
        self.stopping: bool = False
        """The allocator is ending its tasks: a cancellation is no client's error."""
        self._arena = arena
        self._budget = arena.budget
        self._queue = arena.grows
        kick_after = arena.config.kick_after
        self._kick_after = math.inf if kick_after is None else kick_after
        self._looking = False  # one of the tasks goes through the queue
        self._idle = anyio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Suspend until no grow is under way."""
        await self._idle.wait()

    async def run(self, tasks: TaskGroup) -> None:
        """Grow pools until cancelled; each grow is a task of ``tasks``."""
        arena = self._arena
        while True:
            pool = await self._next()
            self.under_way[pool] = arena.clock()
            pool.grow_begins()
            if self._idle.is_set():
                self._idle = anyio.Event()
            ended = anyio.Event()
            tasks.start_soon(self._grow, pool, self._set_more_aside(pool), ended)
            arena.busy_growing += 1
            await self._end(pool, ended)
            arena.busy_growing -= 1
            if not ended.is_set():
                self.kicked += 1
                pool.growth.reports.set_aside(self._kick_after)

    async def _end(self, pool: Pool[Any], ended: anyio.Event) -> None:
        """Suspend until a grow has ended, or is to be set aside. Meanwhile it may become late for other pools."""
        if self._budget.limit is not None:
            await self._rest(pool, ended, min(pool.growth.patience.of[ORDINARY] * SHARE, self._kick_after))
            if ended.is_set():
                return
            self._budget.grow_is_late(pool.account)
        await self._rest(pool, ended, self._kick_after)

    async def _rest(self, pool: Pool[Any], ended: anyio.Event, seconds: float) -> None:
        """Suspend until a grow has ended, or has brought nothing for so many seconds."""
        clock, growth = self._arena.clock, pool.growth
        while not ended.is_set() and growth.moved + seconds > clock():
            with anyio.CancelScope(deadline=growth.moved + seconds):
                await ended.wait()

    async def _next(self) -> Pool[Any]:
        """Suspend until a queued pool may grow. Returns it, its room set aside."""
        queue = self._queue
        while True:
            changes = queue.changes
            if not self._looking:
                self._looking = True
                try:
                    pool = await self._look()
                finally:
                    self._looking = False
                if pool is not None:
                    return pool
            if queue.changes == changes:
                await queue.more()

    async def _look(self) -> Pool[Any] | None:
        """Look for the first queued pool that may grow now, and set its room aside; None if there is none.

        Where growth is late, or a slab leaves no room for others, very many may be queued in vain: other tasks
        have their turn after `AT_ONCE` of them.
        """
        overtaking, looked = False, 0
        blocked: list[Pool[Any]] = []
        off: list[Pool[Any]] = []
        budget, queue = self._budget, self._queue
        chosen: Pool[Any] | None = None
        try:
            while chosen is None and (pool := queue.look()) is not None:
                account = pool.account
                if pool.closed or budget.sealed or budget.full(account):
                    queue.take_out(pool)
                    pool.call_off()
                    off.append(pool)
                elif (not overtaking or budget.within_guarantee(account)) and budget.try_charge(account):
                    queue.take_out(pool)
                    chosen = pool
                else:
                    # Only slabs on their way back, or grows under way, are in the way. The pool stays queued and
                    # GROWING, as it is not at the limit. Room on its way back is for the first that waits for it.
                    blocked.append(pool)
                    fresh = self._arena.clock() - pool.growth.began < ARRIVAL  # else those releases may be stuck
                    overtaking = overtaking or (fresh and budget.arriving(account))
                looked += 1
                if looked % AT_ONCE == 0 and chosen is None:
                    _ask_for_room(off)
                    await anyio.lowlevel.checkpoint()
        finally:
            queue.put_back(blocked)
        _ask_for_room(off)
        if chosen is not None and looked >= AT_ONCE:
            queue.wake()  # another worker may have found this one looking
        return chosen

    def _set_more_aside(self, pool: Pool[Any]) -> int:
        """Set room aside for further slabs of the same grow, unless others wait. Returns the number of all.

        Beyond its guarantee, that is at most half of the room there is: should the call get stuck, others have the
        rest.
        """
        count, supply = 1, self._arena.slabs
        if not (supply.batches or supply.streams) or pool.config.ctor is not None or self._queue.places:
            return count
        wanted = pool.growth.slabs_wanted
        while count < wanted and self._budget.try_charge_more(pool.account, count):
            count += 1
        return count

    async def _grow(self, pool: Pool[Any], count: int, ended: anyio.Event) -> None:
        slabs: list[Slab[Any]] = []
        error: Exception | None = None
        try:
            slabs = await self._make_slabs(pool, count)
        except (MemoryError, SlabError) as exc:
            error = exc
        except BaseException as exc:
            if must_end(exc, stopping=self.stopping):
                raise
            # Client code must not end this task: it may, for example, await a future that was cancelled.
            log_failure(exc, "growth of cache %r was ended by %r", pool.config.name, exc)
            error = BackendError(f"{self._arena.slabs.backend!r}.acquire was ended by {exc!r}")
        finally:
            del self.under_way[pool]
            if not self.under_way:
                self._idle.set()
            for _ in slabs:
                self._budget.commit(pool.account)
            ended.set()
            self._queue.wake()
        if error is None:
            pool.grown(slabs)
            if pool.debug is not None:
                take_step(pool)
        elif pause := pool.grow_failed(error):
            await anyio.sleep(pause)
            pool.grow_again()

    async def _make_slabs(self, pool: Pool[Any], count: int) -> list[Slab[Any]]:
        arena, shape, growth = self._arena, pool.config.shape, pool.growth
        gone = partial(self._gone, pool)
        began, lag = arena.clock(), list[float]()
        LAG.set(lag)  # of this task alone
        if arena.slabs.streams and growth.demand.quick and pool.config.ctor is None:
            slabs, came = await Arrivals(arena, pool, count, gone).run()
        else:
            regions = await arena.slabs.acquire_many(
                count, growth.account.slab_size, shape.align, growth.gfp, gone, BATCH_SECONDS
            )
            slabs, came = [Slab(region, shape) for region in regions], len(regions)
        took = max(0.0, arena.clock() - began - sum(lag))
        growth.delivered(took, came)
        arena.grow_times.note(took / came)
        try:
            for slab in slabs:
                await self._construct(slab, pool)
        except BaseException as exc:
            clear_frames(exc)
            for slab in slabs:
                arena.slabs.release(slab.region, gone, slab.dismantle(pool.config.dtor))
            raise
        return slabs

    def _gone(self, pool: Pool[Any]) -> None:
        """Free the room of a failed grow, once the backend has nothing outstanding for it."""
        self._budget.cancel(pool.account)
        self._queue.wake()

    async def _construct(self, slab: Slab[Any], pool: Pool[Any]) -> None:
        """Build the objects, with a chance for other tasks to run after each.

        If those take long, build for `SLICE` seconds at a time, so that a slab need not wait for them once per
        object.
        """
        ctor = pool.config.ctor
        if ctor is None:
            return
        clock, until = self._arena.clock, -math.inf
        for _ in range(slab.objects):
            slot = slab.carve()
            try:
                construct(slot, ctor, slab.region)
            except BaseException as exc:
                keep_interrupt(exc)
                raise ConstructorError(f"cache {pool.config.name!r}: ctor raised {exc!r}") from exc
            slab.built += 1
            now = clock()
            if now >= until:
                await anyio.lowlevel.checkpoint()
                others = clock() - now
                until = now + others + (SLICE if others > SLICE else 0)
