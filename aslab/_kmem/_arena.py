"""What all pools of an allocator share: memory in and out, its limits, and the queues of its tasks.

Always true: nothing here holds a task. A pool that wants something done puts it into a queue; the task that does
it stands above both (_tasks.py). And all but `call_soon` and `Supply.release` belongs to the event loop's thread.

    pools ──► grows    slabs that are wanted              ──► Worker
              moves    objects to move                    ──► the mover
              budget   bytes that clients should free     ──► Reaper
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
from ._budget import Budget, Tenant
from ._clock import Clock, clock_of_this_loop, events_of_this_loop
from ._emergency import Permits
from ._supply import Supply
from ._wakeup import UrgentWork, Wakeup, WorkQueue, take_turns

AGEING_STEPS = 3
"""The ageing task looks so many times in ``expire`` (SPL: every 5 s, for 15 s)."""
LOOK_EVERY = 5.0
"""Seconds between looks at what was lost or waits, where nothing expires."""


class Arena:
    """The state behind one `Allocator`. Made by a task of the loop that is to run it."""

    def __init__(self, config: AllocatorConfig) -> None:
        self.config = config
        self.clock: Clock = clock_of_this_loop()
        self.make_event: Callable[[], anyio.Event] = events_of_this_loop()
        self.wakeup: Wakeup = Wakeup()
        self.slabs: Supply = Supply(config.slabs, self.wakeup)
        self.singles: Supply = Supply(config.emergency, self.wakeup)
        """Emergency objects."""
        self.budget: Budget = Budget(config.limit, self.wakeup)
        self.permits: Permits = Permits(config.emergency_limit, config.limit)
        self.grows: UrgentWork[Any] = UrgentWork()
        """Pools that are GROWING, whose slab nobody has begun to make."""
        self.busy_growing: int = 0
        """Grows under way, less those that are set aside."""
        self.moves: WorkQueue[Any] = WorkQueue()
        """Pools with objects to move."""
        self.moving: anyio.Lock = anyio.Lock()
        """Moves are one after another."""
        self.tickets: Iterator[int] = itertools.count()
        """For all that wait: the lower has waited longer."""
        self.interval: float = (config.expire or LOOK_EVERY * AGEING_STEPS) / AGEING_STEPS
        """Seconds between two looks of the ageing task."""
        self.closed: bool = False
        self.stopped: bool = False
        """No task runs any more."""
        self.errands: dict[Any, None] = {}
        """What threads wait for (_errands.py)."""
        self.tasks: TaskGroup | None = None
        """Where `start` starts tasks; none before the allocator runs."""
        self.thread: int = threading.get_ident()
        """That of the event loop."""
        self._left: dict[Tenant, None] = {}  # pools that other threads have left something to do
        self._calls: deque[Callable[[], object]] = deque()  # that they have left for the loop

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a task that lives as long as the allocator at most."""
        if self.tasks is not None:
            self.tasks.start_soon(function)

    @property
    def on_its_thread(self) -> bool:
        """Whether this is the event loop's thread. Any thread."""
        return threading.get_ident() == self.thread

    def check_thread(self) -> None:
        """Refuse a caller that could never be woken.

        :raises RuntimeError: on another thread than that of the allocator's event loop
        """
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                "this allocator belongs to the event loop of another thread; from here call alloc_nowait(), "
                "alloc_blocking() or free()"
            )

    def attend(self, tenant: Tenant, call: Callable[[], object]) -> None:
        """Call on the event loop's thread: now if this is it; else the pool looks after everything, soon."""
        if threading.get_ident() == self.thread:
            call()
        else:
            self.attend_soon(tenant)

    def attend_soon(self, tenant: Tenant) -> None:
        """Have a pool look after everything, a little later. Any thread, at any moment."""
        self._left[tenant] = None
        self.wakeup.wake()

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call on the event loop's thread, a little later. Any thread."""
        self._calls.append(call)
        self.wakeup.wake()

    async def run_wakeups(self) -> None:
        """Do what other threads and finalisers have left to the event loop, until cancelled."""
        while True:
            await self.wakeup.wait()
            self.slabs.attend()
            self.singles.attend()
            while self._calls:
                self._calls.popleft()()
            for number, tenant in enumerate(list(self._left)):
                del self._left[tenant]
                tenant.attend()
                await take_turns(number)
            if self.budget.asking:
                self.budget.ask_all()
