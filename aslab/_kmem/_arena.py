"""What all pools of an allocator share: memory in and out, its limits, and the queues of its tasks.

Always true:

    1. nothing here refers to a task: a pool puts work into a queue, and the task that does it stands above both
       (_tasks.py)
    2. only the event loop's thread changes this state, unless a member says otherwise
    3. what another thread leaves for the loop is in place before it wakes the loop

    pools ──► grows    slabs that are wanted              ──► Worker
              moves    objects to move                    ──► the mover
              budget   bytes that clients are to free     ──► Reaper
              slabs, singles   regions on their way back  ──► two releasers
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
from anyio.abc import TaskGroup

from .._config import AllocatorConfig
from .._events import Listeners
from .._histogram import Times
from .._stats import Counters
from ._account import Tenant
from ._budget import Budget
from ._clock import Clock, clock_of_this_loop, futures_of_this_loop
from ._emergency import Permits
from ._holders import Holders
from ._supply import Supply
from ._wakeup import Alarms, UrgentWork, Wakeup, WorkQueue, take_turns

AGEING_STEPS = 3
"""Times the ageing task runs within ``expire`` (SPL: every 5 s, for 15 s)."""
LOOK_EVERY = 5.0
"""Seconds between runs of the ageing task where nothing expires."""


class Arena:
    """The state behind one `Allocator`. Made in a task of the event loop that runs it."""

    def __init__(self, config: AllocatorConfig) -> None:
        self.config = config
        self.clock: Clock = clock_of_this_loop()
        self.alarms: Alarms = Alarms(self.clock, futures_of_this_loop())
        """Wakes sleeping callers at their times."""
        self.wakeup: Wakeup = Wakeup()
        self.slabs: Supply = Supply(config.slabs, self.wakeup)
        self.singles: Supply = Supply(config.emergency, self.wakeup)
        """Regions of emergency objects."""
        self.budget: Budget = Budget(config.limit, self.wakeup)
        self.permits: Permits = Permits(config.emergency_limit, config.limit)
        self.grows: UrgentWork[Any] = UrgentWork()
        """Pools that are GROWING, and whose slab no worker has begun to make."""
        self.busy_growing: int = 0
        """Grows that a worker is waiting for: those under way, less those set aside."""
        self.moves: WorkQueue[Any] = WorkQueue()
        """Pools with objects to move."""
        self.moving: anyio.Lock = anyio.Lock()
        """Held while objects of one pool move: no two pools move at the same time."""
        self.tickets: Iterator[int] = itertools.count()
        """One for each waiter: the lower number came first."""
        self.interval: float = (config.expire or LOOK_EVERY * AGEING_STEPS) / AGEING_STEPS
        """Seconds between two runs of the ageing task."""
        self.counters: Counters = Counters()
        """For waits on behalf of no cache."""
        self.grow_times: Times = Times()
        """How long the backend took for each slab."""
        self.emergency_times: Times = Times()
        """How long each emergency object took that was made for a waiter."""
        self.listeners: Listeners = Listeners()
        """Who hears of events."""
        self.holders: dict[Holders, None] = {}
        """Who holds what, of each open cache."""
        self.closed: bool = False
        self.stopped: bool = False
        """All tasks have ended."""
        self.errands: dict[Any, None] = {}
        """Allocations that other threads wait for (_errands.py). Any thread."""
        self.tasks: TaskGroup | None = None
        """Where `start` starts tasks; None before the allocator runs."""
        self.thread: int = threading.get_ident()
        """The event loop's thread."""
        self._left: dict[Tenant, None] = {}  # pools for the loop to attend to
        self._calls: deque[Callable[[], object]] = deque()  # calls for the loop to make

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a task that ends with the allocator, if not before."""
        if self.tasks is not None:
            self.tasks.start_soon(function)

    @property
    def on_its_thread(self) -> bool:
        """Whether this is the event loop's thread. Any thread."""
        return threading.get_ident() == self.thread

    def check_thread(self) -> None:
        """Refuse a caller on another thread, whose task could never be woken.

        :raises RuntimeError: on any thread but that of the allocator's event loop
        """
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                "this allocator belongs to the event loop of another thread; from here call alloc_nowait(), "
                "alloc_blocking() or free()"
            )

    def attend(self, tenant: Tenant, call: Callable[[], object]) -> None:
        """Run ``call`` now on the event loop's thread; elsewhere, have the pool attend soon. Any thread."""
        if threading.get_ident() == self.thread:
            call()
        else:
            self.attend_soon(tenant)

    def attend_soon(self, tenant: Tenant) -> None:
        """Have the loop call ``tenant.attend`` a little later. Any thread, finalisers included."""
        self._left[tenant] = None
        self.wakeup.wake()

    def left(self, tenant: Tenant) -> bool:
        """Whether the loop has yet to call ``tenant.attend``."""
        return tenant in self._left

    def seal(self) -> None:
        """Freeze slab memory: from here on nothing grows, and nothing is given back."""
        self.budget.sealed = True
        for account in tuple(self.budget.accounts):
            account.tenant.restore(back_off=False)
            self.attend_soon(account.tenant)

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have the loop run ``call`` on its thread, a little later. Any thread."""
        self._calls.append(call)
        self.wakeup.wake()

    async def run_wakeups(self) -> None:
        """Do what other threads and finalisers leave to the event loop, until cancelled."""
        while True:
            await self.wakeup.wait()
            self.slabs.attend()
            self.singles.attend()
            for number in range(len(self._calls)):
                self._calls.popleft()()
                await take_turns(number)
            for number, tenant in enumerate(list(self._left)):
                del self._left[tenant]
                tenant.attend()
                await take_turns(number)
            if self.budget.asking:
                self.budget.ask_all()
