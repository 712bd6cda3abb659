"""Engine: what all caches of an allocator share, and the tasks that serve them.

    bell     what other threads and finalisers leave to the event loop
    supply   regions from backends, and back
    budget   the limit
    worker   growth
    ageing   what nobody uses goes back
    relief   what can be spared goes back when memory is short
    moves    objects move to where whole slabs come free

All tasks live in the task group of `open_allocator`; there is no global state. They are shielded from
the cancellation of its block: when a service is cancelled, its memory still has to go back. `stop`
ends them.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from ._cache import Cache
from ._clients import log_failure, must_end
from ._config import AllocatorConfig, CacheConfig
from ._errors import CacheClosedError
from ._kmem._budget import Account, Budget
from ._kmem._clock import Clock, clock_of_this_loop, events_of_this_loop
from ._kmem._errands import Errand
from ._kmem._growth import Growth
from ._kmem._move import Moves
from ._kmem._permits import Permits
from ._kmem._pool import Pool
from ._kmem._reclaim import AGEING_STEPS
from ._kmem._starved import feed_the_starved
from ._kmem._supply import Supply
from ._kmem._wakeup import AT_ONCE, Bell, take_turns
from ._kmem._worker import Worker
from ._reaper import Relief
from .backends._protocol import Region

if TYPE_CHECKING:
    from .pressure import Source

T = TypeVar("T")

LOOK_EVERY = 5.0
"""Seconds between looks at what was lost or waits, where nothing expires."""
CLOSING_GRACE = 0.5
"""Seconds that closing gives to grows and releases under way."""
HOUSEKEEPING: ContextVar[bool] = ContextVar("aslab_housekeeping", default=False)
"""Set in tasks that only look after others: a simulation in which no other has a timer left is stuck."""


class Engine:
    """The machinery behind one `Allocator`. Made by a task of the loop that is to run it."""

    def __init__(self, config: AllocatorConfig) -> None:
        self.config = config
        self.clock: Clock = clock_of_this_loop()
        self.make_event: Callable[[], anyio.Event] = events_of_this_loop()
        self.bell: Bell = Bell()
        self.supply: Supply = Supply(config.slabs, self.bell)
        self.emergency_supply: Supply = Supply(config.emergency, self.bell)
        self.budget: Budget = Budget(config.limit)
        self.permits: Permits = Permits(config.emergency_limit, config.limit)
        self.worker: Worker = Worker(self.supply, self.budget, self.clock, config.kick_after, self._make_room)
        self.caches: dict[str, Cache[Any]] = {}
        self.pools: list[Pool[Any]] = []
        self._retired: list[Pool[Any]] = []  # closed, with slabs still
        self._rung: dict[Pool[Any], None] = {}  # those that the bell was rung for
        self._asking = False  # or for who found no room
        self._may_spare: dict[Pool[Any], None] = {}  # those that may have idle slabs
        self.tickets: Iterator[int] = itertools.count()
        """For all who wait: the lower has waited longer."""
        self.short: bool = False
        """A cache is at the limit for want of slabs that others may leave idle: they look at each free."""
        self.interval: float = (config.expire or LOOK_EVERY * AGEING_STEPS) / AGEING_STEPS
        """Seconds between two looks of the ageing task."""
        self.relief: Relief = Relief(self)
        self.moves: Moves = Moves()
        self.moving: anyio.Lock = anyio.Lock()
        """Moves are one after another."""
        self.tick: int = 0
        """Counts the looks of the ageing task."""
        self.closed: bool = False
        self._thread = threading.get_ident()
        self._calls: deque[Callable[[], object]] = deque()  # that threads have left for the loop
        self._errands: dict[Errand[Any], None] = {}
        self._stopped = False
        self._scope = anyio.CancelScope(shield=True)
        self._tasks: TaskGroup | None = None

    async def run(self) -> None:
        """Run all tasks until `stop`."""
        with self._scope, self.bell, self._end_of_errands():
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._run_bell)
                tasks.start_soon(self.supply.run)
                tasks.start_soon(self.emergency_supply.run)
                for _ in range(self.config.growth_workers):
                    tasks.start_soon(self.worker.run, tasks)
                tasks.start_soon(self._run_ageing)
                tasks.start_soon(self._run_relief)
                tasks.start_soon(self.moves.run)
                for source in self.config.pressure:
                    tasks.start_soon(self._run_source, source)

    def stop(self) -> None:
        """End all tasks; what is stuck in a thread is left behind."""
        self.worker.stopping = True
        self._scope.cancel()

    def release_late(self) -> None:
        """Leave to a thread what is still to be released, where `close` was cut off before."""
        for supply in (self.supply, self.emergency_supply):
            if not supply.closed:
                supply.close()

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a task that lives as long as the allocator at most; event loop's thread only."""
        if self._tasks is not None:
            self._tasks.start_soon(function)

    def make_cache(self, config: CacheConfig[Any]) -> Cache[Any]:
        """A cache with a pool of its own, or with that of others like it if it may share."""
        pool = None
        if config.merge:
            pool = next((pool for pool in self.pools if pool.config.shares_with(config)), None)
        if pool is None:
            pool = Pool(self, config)
            self.pools.append(pool)
        cache = self.caches[config.name] = Cache(pool, config)
        return cache

    def attend(self, pool: Pool[Any], call: Callable[[], object]) -> None:
        """Call on the event loop's thread: now if this is it; else the bell makes the pool look."""
        if threading.get_ident() == self._thread:
            call()
        else:
            self.ring(pool)

    def ring(self, pool: Pool[Any]) -> None:
        """Have a pool look after everything, a little later. Any thread, at any moment."""
        self._rung[pool] = None
        self.bell.ring()

    @property
    def on_its_thread(self) -> bool:
        """Whether this is the event loop's thread."""
        return threading.get_ident() == self._thread

    def check_thread(self) -> None:
        """Refuse a caller who could never be woken.

        :raises RuntimeError: on another thread than that of the allocator's event loop
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                "this allocator belongs to the event loop of another thread; allowed here are alloc_nowait(), "
                "alloc_blocking() and free()"
            )

    def run_errand(self, errand: Errand[T], timeout: float | None) -> T:
        """Block this thread until the event loop has brought something.

        :raises RuntimeError: on the event loop's thread
        """
        if threading.get_ident() == self._thread:
            raise RuntimeError("alloc_blocking() would block the event loop; here it is: await alloc()")
        self._errands[errand] = None
        try:
            self._call_soon(partial(self.start, errand.run))
            if self._stopped:
                errand.fail(CacheClosedError("the allocator is closed"))
            return errand.wait(timeout)
        except BaseException:
            self._call_soon(errand.cancel)
            raise
        finally:
            del self._errands[errand]

    def _call_soon(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        self.bell.ring()

    @contextmanager
    def _end_of_errands(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stopped = True
            for errand in tuple(self._errands):
                errand.fail(CacheClosedError("the allocator is closed"))

    def release_slab(self, region: Region, before: Iterable[object], done: Callable[[], object]) -> None:
        """Queue a slab's region for release; ``done`` is called on the event loop's thread. Any thread."""
        self.supply.release(region, done, before)

    def room_made(self, account: Account) -> None:
        """A slab is back at the backend: others may grow."""
        self.budget.back(account)
        self.ask_all()
        self.worker.look_again()

    def ask_all(self) -> None:
        """Have those ask for a slab again who found no room, in order; of very many the rest a little later."""
        if not self.closed and self.budget.ask_again(AT_ONCE):
            self._ask_soon()

    def look_again(self) -> None:
        """The order of those who wait has changed. If anybody let others go first, have them all ask, soon."""
        if self.budget.yielding:
            self.budget.yielding = False
            self._ask_soon()

    def _ask_soon(self) -> None:
        self._asking = True
        self.bell.ring()

    def retire(self, pool: Pool[Any]) -> None:
        """A pool is closed. It is looked after until its last slab is back."""
        self.pools.remove(pool)
        self._retired.append(pool)
        self.ask_all()  # what was set aside for it is anybody's now

    def _make_room(self, growth: Growth[Any]) -> None:
        """Have others give back what nobody uses.

        All are looked at once; from then on frees tell (`short`), so whoever had nothing is not looked at again
        before it says so (`may_spare`), or an interval has passed.
        """
        self.budget.found_no_room(growth.account)
        missing = self.budget.missing(growth.account)
        if missing > 0:
            missing = self._spare(growth, missing)
        if missing > 0 and not self.short:
            self._may_spare = dict.fromkeys(self.pools)
            missing = self._spare(growth, missing)
        if missing > 0:
            self._set_short(short=True)
            self.relief.limit_reached(missing)

    def _spare(self, growth: Growth[Any], missing: int) -> int:
        """Answers how many bytes are missing still."""
        for pool in list(self._may_spare):
            if pool.growth is not growth:
                missing -= pool.reclaim.spare(missing, growth.account.rank)
                if missing <= 0:
                    break
                del self._may_spare[pool]
        return missing

    def may_spare(self, pool: Pool[Any]) -> None:
        """One of its slabs may be idle."""
        self._may_spare[pool] = None

    def _set_short(self, *, short: bool) -> None:
        if self.short != short:
            self.short = short
            for pool in self.pools:
                pool.note_waiting()

    def _all_pools(self) -> tuple[Pool[Any], ...]:
        self._retired = [pool for pool in self._retired if len(pool.depot.slabs)]
        return (*self.pools, *self._retired)

    async def close(self) -> list[str]:
        """Close the caches, and give what is under way a moment to end. Answers what there is to warn of."""
        self.closed = True
        found = []
        for number, cache in enumerate(tuple(self.caches.values())):
            if cache._closing is None and (warning := cache._shut()):
                found.append(warning)
            await take_turns(number)
        for number, pool in enumerate(self._all_pools()):  # what other threads have left to the bell
            pool.attend()
            await take_turns(number)
        with anyio.move_on_after(CLOSING_GRACE):
            await self.worker.idle()
            await self.supply.idle()
            await self.emergency_supply.idle()
        for growth, since in self.worker.under_way.items():
            found.append(
                f"the allocator was closed with a grow of cache {growth.config.name!r} stuck since "
                f"{self.clock() - since:.1f} s: abandoned, its region is released if it ever comes"
            )
        late = self.supply.close() + self.emergency_supply.close()
        if late:
            found.append(f"the allocator was closed with {late} regions still to be released: a thread goes on")
        return found

    async def _run_bell(self) -> None:
        while True:
            await self.bell.wait()
            self.supply.attend()
            self.emergency_supply.attend()
            while self._calls:
                self._calls.popleft()()
            for number, pool in enumerate(list(self._rung)):
                del self._rung[pool]
                pool.attend()
                await take_turns(number)
            if self._asking:
                self._asking = False
                self.ask_all()

    async def _run_ageing(self) -> None:
        HOUSEKEEPING.set(True)
        while True:
            await anyio.sleep(self.interval)
            self.tick += 1
            self._may_spare = dict.fromkeys(self.pools)
            for number, pool in enumerate(self._all_pools()):
                await pool.parking.look_at_all()
                pool.age(expires=self.config.expire is not None)
                await take_turns(number)
            self._set_short(short=any(self.budget.full(pool.growth.account) for pool in self.pools if pool.line))
            feed_the_starved(self.pools, self.budget, self.interval)

    async def _run_relief(self) -> None:
        HOUSEKEEPING.set(True)  # it looks again an interval later
        await self.relief.run()

    async def _run_source(self, source: Source) -> None:
        HOUSEKEEPING.set(True)
        try:
            await source.run(self.relief.press)
        except BaseException as exc:
            if must_end(exc, stopping=self.worker.stopping):
                raise
            log_failure(exc, "%r failed; the allocator goes on without it", source)
