"""The single serialized worker that makes slabs.

Caches put themselves into its queue; it takes one after the other, by how urgent their first callers are, so that
one call at a time is made for slab memory: in the kernel they would only meet at the lock of the address space
(SPL moved growth to one work queue in 2012, for this and for the deadlock).

One stuck call would then hold up every cache. So each runs in a task of its own, and after
``kick_after`` the worker leaves it behind and takes the next; the cache it was for keeps its marks
until it ends. (SPL came to have four threads, and a hand that gives a stuck task another.)
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from .._clients import keep_interrupt, log_failure, must_end
from .._errors import BackendError, ConstructorError, SlabError, clear_frames
from ..backends._threads import LAG
from ._budget import Account, Budget
from ._clock import Clock
from ._growth import Growth
from ._slab import Slab, construct
from ._state import Mark
from ._supply import Supply
from ._wakeup import AT_ONCE

log = logging.getLogger("aslab")

SLICE = 0.002
"""Seconds of a loop that is busy for which objects are constructed at a stretch."""
ARRIVAL = 5.0
"""Seconds for which room that is on its way back is kept for the first who waits for it."""


class Worker:
    """Grows caches, one at a time."""

    def __init__(
        self,
        supply: Supply,
        budget: Budget,
        clock: Clock,
        kick_after: float | None,
        make_room: Callable[[Growth[Any]], None],
    ) -> None:
        self.budget = budget
        self.clock = clock
        self.under_way: dict[Growth[Any], float] = {}
        """The grows under way, and since when."""
        self.kicked: int = 0
        self.stopping: bool = False
        self.make_room: Callable[[Growth[Any]], None] = make_room
        """Asks the other caches for what they do not need."""
        self._supply = supply
        self._kick_after = math.inf if kick_after is None else kick_after
        self._queue: list[tuple[int, int, Growth[Any]]] = []  # a heap; entries that are no place are void
        self._places: dict[Growth[Any], tuple[int, int]] = {}
        self._numbers = itertools.count()
        self._at_work = 0  # grows that are not set aside
        self._more = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Suspend until no grow is under way."""
        await self._idle.wait()

    def put(self, growth: Growth[Any]) -> None:
        """Queue a cache that has just been marked GROWING: behind those whose callers are more urgent."""
        growth.behind_others = bool(self._at_work or self._places)
        self._enqueue(growth, next(self._numbers))
        self._more.set()

    def note(self, growth: Growth[Any]) -> None:
        """Who waits there has changed: if it is queued, it may be more urgent now, or less."""
        place = self._places.get(growth)
        if place is not None and place[0] != growth.level:
            self._enqueue(growth, place[1])

    def _enqueue(self, growth: Growth[Any], number: int) -> None:
        place = self._places[growth] = (growth.level, number)
        heapq.heappush(self._queue, (*place, growth))

    def look_again(self) -> None:
        """Room was made under the limit."""
        self._more.set()

    async def run(self, tasks: TaskGroup) -> None:
        """Work until cancelled; each grow is a task of that group."""
        while True:
            growth, looked_at_all = self._next()
            if not looked_at_all:
                await anyio.lowlevel.checkpoint()
            elif growth is None:
                if self._more.is_set():
                    self._more = anyio.Event()
                await self._more.wait()
            if growth is None:
                continue
            self.under_way[growth] = self.clock()
            growth.begins()
            if self._idle.is_set():
                self._idle = anyio.Event()
            ended = anyio.Event()
            tasks.start_soon(self._grow, growth, ended)
            self._at_work += 1
            with anyio.move_on_after(self._kick_after):
                await ended.wait()
            self._at_work -= 1
            if not ended.is_set():
                self.kicked += 1
                log.warning(
                    "growth of cache %r is stuck since %g s; it is set aside, others go on",
                    growth.config.name,
                    self._kick_after,
                )

    def _next(self) -> tuple[Growth[Any] | None, bool]:
        """The first in the queue that may grow now, with its room promised; and whether that is all for now.

        As a slab comes, very many may find no room any more: a few of them at a time are told.
        """
        overtaking, left = False, AT_ONCE
        blocked: list[tuple[int, int, Growth[Any]]] = []
        chosen: Growth[Any] | None = None
        off: list[Growth[Any]] = []
        while self._queue and chosen is None and left:
            entry = heapq.heappop(self._queue)
            growth, budget = entry[2], self.budget
            if self._places.get(growth) != entry[:2]:
                continue
            if Mark.DESTROY in growth.marks or budget.sealed or budget.full(growth.account):
                del self._places[growth]
                growth.called_off()
                off.append(growth)
                left -= 1
            elif (not overtaking or growth.account.within_guarantee) and budget.promise(growth.account):
                del self._places[growth]
                chosen = growth
            else:
                # What is on its way back, or stuck grows, are in the way. It stays, GROWING: nobody must take
                # that for the limit. Room that is on its way is for the first who waits for it.
                blocked.append(entry)
                fresh = self.clock() - growth.began < ARRIVAL  # else what is on its way may be stuck
                overtaking = overtaking or (fresh and budget.arriving(growth.account))
        for entry in blocked:
            heapq.heappush(self._queue, entry)
        for growth in off:
            growth.ask()  # at the limit now: it has others asked for room
        return chosen, left > 0

    async def _grow(self, growth: Growth[Any], ended: anyio.Event) -> None:
        slab: Slab[Any] | None = None
        try:
            slab = await self._make_slab(growth)
        except (MemoryError, SlabError) as exc:
            error: Exception = exc
        except BaseException as exc:
            if must_end(exc, stopping=self.stopping):
                raise
            # A client's code, which must not end this task; a cancelled future that it awaits, for one.
            log_failure(exc, "growth of cache %r was ended by %r", growth.config.name, exc)
            error = BackendError(f"{self._supply.backend!r}.acquire was ended by {exc!r}")
        finally:
            del self.under_way[growth]
            if not self.under_way:
                self._idle.set()
            if slab is not None:
                self.budget.keep(growth.account)
            ended.set()
            self._more.set()
        if slab is not None:
            growth.brought(slab)
        elif pause := growth.failed(error):
            await anyio.sleep(pause)
            growth.resume()

    async def _make_slab(self, growth: Growth[Any]) -> Slab[Any]:
        shape = growth.config.shape
        gone = partial(self._gone, growth.account)
        began, lag = self.clock(), list[float]()
        LAG.set(lag)  # of this task alone
        region = await self._supply.acquire(shape.slab_size, shape.align, growth.gfp, gone)
        growth.patience.note(max(0.0, self.clock() - began - sum(lag)))
        growth.arrived = True
        slab: Slab[Any] = Slab(region, shape)
        try:
            await self._construct(slab, growth)
        except BaseException as exc:
            clear_frames(exc)
            self._supply.release(slab.region, gone, slab.dismantle(growth.config.dtor))
            raise
        return slab

    def _gone(self, account: Account) -> None:
        """The backend has nothing any more of a grow that failed: its room may be promised again."""
        self.budget.break_promise(account)
        self._more.set()

    async def _construct(self, slab: Slab[Any], growth: Growth[Any]) -> None:
        """Build the objects, with a chance for other tasks between any two.

        Where these take long, some objects at a time: a slab must not wait for all others once an object.
        """
        ctor = growth.config.ctor
        if ctor is None:
            return
        until = -math.inf
        for _ in range(slab.objects):
            slot = slab.carve()
            try:
                construct(slot, ctor, slab.region)
            except BaseException as exc:
                keep_interrupt(exc)
                raise ConstructorError(f"cache {growth.config.name!r}: ctor raised {exc!r}") from exc
            slab.built += 1
            now = self.clock()
            if now >= until:
                await anyio.lowlevel.checkpoint()
                others = self.clock() - now
                until = now + others + (SLICE if others > SLICE else 0)
