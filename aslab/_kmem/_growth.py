"""When a pool grows, and how far: are slabs wanted, and allowed; are they late; what follows a failure.

Always true, between calls:

    1. GROWING is set from the moment a slab is asked for, not from when the worker begins, until the grow ends
    2. DEADLOCKED is set only while GROWING is; the end of the grow clears both, whether it failed or not
    3. `unwell` is set only while a slab is late, or from a failed grow until the next one ends

Each pool has one grow at a time, and later callers join the wait (SPL). SPL leaves DEADLOCKED set forever after a
failed grow; here it is cleared. A failed grow is retried after a pause that doubles each time, so that no
processor time is wasted while memory is short.

This module decides and starts nothing: `Pool.ask` acts on its decisions. Event loop's thread only, unless a member
says otherwise.
"""

from __future__ import annotations

import math
import sys
from typing import Generic, TypeVar

from .._config import CacheConfig
from .._errors import ConfigError
from .._flags import GFP, KM, LEVEL, ORDINARY, URGENT, gfp_for
from ._account import Account, Claim, Tenant
from ._arena import Arena
from ._clock import Clock
from ._depot import Depot
from ._line import Waiters
from ._reports import Reports
from ._reserve import Reserve
from ._slab import Slab
from ._state import Mark, Marks
from ._waiters import Patience, Waiter

T = TypeVar("T")

PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between tries while memory is short: doubled each time, from the first to the most."""
MOST, MOST_BYTES = 4, 32 * 2**20
"""Slabs ahead, and bytes of them."""
BATCH, BATCH_SECONDS = 16, 0.004
"""The most slabs in one grow, and the seconds after which none is begun."""
SOON = 4
"""Callers that find it empty within this many times the duration of the last grow find it empty soon."""
INSTANT, SLOW = 20e-6, 10e-3
"""Seconds: no slab is taken ahead if the last one took less, or more."""
QUICK = 2**30
"""Bytes per second with which a large slab is not slow, however long it takes."""
CALM = 15.0
"""Seconds after slabs were given back in which none is taken ahead."""
_GFP = {has: {flags: gfp_for(flags, alone=not has) for flags in KM} for has in (False, True)}
_GROWING = Mark.GROWING.value
_DEADLOCKED = Mark.DEADLOCKED.value
_DESTROY = Mark.DESTROY.value
_BLOCKED = (Mark.GROWING | Mark.REAPING | Mark.DESTROY).value


class Demand:
    """How many slabs a pool grows: one, but more while its callers empty it about as fast as it can grow.

    Callers that find a pool empty soon after slabs have come would wait for each slab. So the pool then goes on
    growing until one slab is free, the next time two, up to `MOST`: a task that fills its objects with I/O finds
    the next ones ready. And one grow may bring several slabs by one call of the backend, unless that was slow the
    last time: as many as it can begin within `BATCH_SECONDS`, by which the first of them comes later, less than
    makes a grow late. A call that gets stuck keeps what it has, as if it had got stuck that much earlier.

    Memory that is slow is short: nothing is then taken ahead of need. Nor is it where memory comes at once, or for
    a while after slabs were given back.
    """

    def __init__(self, slab_size: int, clock: Clock) -> None:
        self._clock = clock
        self._most = min(MOST, MOST_BYTES // slab_size)
        self._slow = max(SLOW, slab_size / QUICK)
        self._slabs = 0
        self._took, self._came = 0.0, 1
        self._until = -math.inf
        self._not_before = -math.inf

    @property
    def quick(self) -> bool:
        """Whether the backend was not slow when last asked."""
        return 0 < self._took < self._slow

    @property
    def slabs_ahead(self) -> int:
        """How many slabs should be free."""
        return self._slabs if self._slabs and self._clock() < self._until else 0

    def found_empty(self, now: float) -> None:
        """Note that callers have found no object, and a slab is asked for."""
        again = self._not_before <= now < self._until
        self._slabs = min(max(1, 2 * self._slabs), self._most) if again else 0

    def delivered(self, seconds: float, slabs: int) -> None:
        """Note how many slabs a grow brings, and how long the backend took for each."""
        self._took, self._came = seconds, slabs

    def grown(self) -> None:
        """Note that they can be used from now on."""
        soon = SOON * self._took * self._came
        self._until = self._clock() + soon if INSTANT < self._took < self._slow else -math.inf

    def subsides(self) -> None:
        """Note that slabs cannot be had, or are given back."""
        self._slabs, self._not_before = 0, self._clock() + CALM
        self._took = 0.0


class Growth(Generic[T]):
    """The growing of one pool.

    :param tenant: the pool itself, for its account
    """

    def __init__(
        self,
        config: CacheConfig[T],
        arena: Arena,
        tenant: Tenant,
        waiters: Waiters[T],
        depot: Depot[T],
        reserve: Reserve[T],
    ) -> None:
        self._config = config
        self._budget = arena.budget
        self._clock = arena.clock
        self._gfp = _GFP[config.has_emergency]
        self._waiters = waiters
        self._depot = depot
        self._reserve = reserve
        self.marks: Marks = Marks()
        """The marks of the pool."""
        self.account: Account = Account(config.shape.slab_size, config.guaranteed, tenant)
        self.patience: Patience = Patience(arena.config.grow_timeout, config.shape.slab_size)
        """How long callers wait before growth is late."""
        self.demand: Demand = Demand(config.shape.slab_size, arena.clock)
        """How far ahead of its callers it grows."""
        self._pause = PAUSE_FIRST
        self._pausing = False
        self._guarantees = self._budget.guarantees  # when it last looked for callers that wait in vain
        self.reports: Reports = Reports(config.name, arena.listeners, arena.clock)
        self.missed: bool = False
        """A non-blocking allocation found nothing. Set from any thread."""
        self.repacking: int = 0
        """Free objects that the mover wants, for emergency objects to move into."""
        self.began: float = 0.0
        """When a slab was last asked for."""
        self.unwell: bool = False
        """Slabs are late or cannot be made: emergency objects are made, and kept for the next caller."""
        self.due_from: float = 0.0
        """When the current grow's time began to run; in a series of failures, when that of the first did."""
        self.moved: float = 0.0
        """When the worker began the current grow, or its last slab came."""
        self.behind_others: bool = False
        """The worker was busy when a slab was asked for: its time runs from then, waiting for others included."""
        self.arrived: bool = False
        """The backend has delivered, and the slab is being built. However long that takes, growth is not late."""
        self.judging: bool = False
        """A waiter is letting the event loop catch up, to see whether growth is late."""
        self.found_late: float = -math.inf
        """`due_from` of the last grow found to be late."""
        self.failures: int = 0
        """Grows that failed."""
        self.deadlocks: int = 0
        """Times that DEADLOCKED was set."""

    # -- may it grow, and should it?

    @property
    def wanted(self) -> bool:
        """Whether to ask for a slab now, leaving the limits aside."""
        if self.marks.bits & _BLOCKED or self._pausing:
            return False
        if self._waiters.first is not None or (self._reserve.objects and self._reserve.short):
            return True
        least = max(self._config.watermark, self.repacking, self.missed)
        for filler in self._waiters.fillers:
            least = max(least, filler.need)
        return self._depot.free < (least or self._ahead)

    @property
    def slabs_wanted(self) -> int:
        """How many slabs one grow may bring: as many as are of use now, within ``max_objects``."""
        if not self.demand.quick:
            return 1
        need = len(self._waiters)
        for filler in self._waiters.fillers:
            need = max(need, filler.need)
        slabs = -(-(need - self._depot.free) // self._config.shape.objects) + self.demand.slabs_ahead
        return min(slabs, BATCH, self.slabs_allowed)

    @property
    def slabs_allowed(self) -> int:
        """How many more slabs ``max_objects`` allows; very many without it."""
        most = self._config.max_objects
        if most is None:
            return sys.maxsize
        return (most - self._depot.slabs.slots_total) // self._config.shape.objects

    @property
    def _ahead(self) -> int:
        slabs = self.demand.slabs_ahead
        return 0 if not slabs or self.limit_reached else slabs * self._config.shape.objects

    @property
    def at_limit(self) -> bool:
        """Whether only a free can help: no slab is on its way, and none may be added."""
        if self.marks.bits & _GROWING:
            return False
        return self.at_most or self.limit_reached or self._budget.yields(self.account)

    @property
    def limit_reached(self) -> bool:
        """Whether the pool cannot grow at all, whoever comes first. Any thread."""
        budget = self._budget
        return budget.sealed or self.at_most or (budget.limit is not None and budget.full(self.account))

    @property
    def at_most(self) -> bool:
        """Whether ``max_objects`` allows no other slab. Any thread."""
        most = self._config.max_objects
        return most is not None and self._depot.slabs.slots_total + self._config.shape.objects > most

    @property
    def gfp(self) -> GFP:
        """What a grow may do now: never less than the most urgent waiter needs."""
        first = self._waiters.first
        return self._gfp[KM.SLEEP if first is None else first.flags]

    @property
    def claim(self) -> Claim | None:
        """The rank of the first in line if the pool itself could grow for it, whatever the limit; else None."""
        first = self._waiters.first
        if first is None or self.marks.bits & _BLOCKED or self._pausing or self.at_most:
            return None
        return first.rank

    @property
    def most(self) -> int | None:
        """The most objects that slabs can ever hold; None without a bound."""
        shape, limit = self._config.shape, self._budget.unpromised
        bounds = []
        if self._config.max_objects is not None:
            bounds.append(self._config.max_objects // shape.objects)
        if limit is not None:
            bounds.append((limit + self._config.guaranteed) // shape.slab_size)
        return min(bounds) * shape.objects if bounds else None

    def check_possible(self, n: int, flags: KM) -> None:
        """Refuse a caller that asks for more objects than it can ever get. Any thread.

        :raises ConfigError: if ``max_objects`` or ``limit`` can never allow ``n`` objects for ``flags``
        """
        if (error := self._hopeless(n, flags)) is not None:
            raise error

    def _hopeless(self, n: int, flags: KM) -> ConfigError | None:
        config, shape = self._config, self._config.shape
        most, limit = config.max_objects, None if self._budget.limit is None else self._budget.unpromised
        if most is None and limit is None:
            return None
        reserved = self._reserved(flags)
        slabs = -(-(n + reserved) // shape.objects)
        but = f", less the reserve of {reserved}" if reserved else ""
        if most is not None and slabs * shape.objects > most:
            return ConfigError("n", n, f"it must fit into max_objects, {most}, in whole slabs{but}")
        if limit is not None and slabs * shape.slab_size > limit + config.guaranteed:
            room = f"the limit less other guarantees, {limit + config.guaranteed} bytes"
            return ConfigError("n", n, f"it must fit into {room}, in whole slabs{but}")
        return None

    def refuse_hopeless(self) -> None:
        """Fail callers that wait in vain, as other pools have since been guaranteed what theirs needs for them.

        Those for whom its slabs suffice go on waiting; should these go, they are looked at again.
        """
        guarantees = self._budget.guarantees
        if self._guarantees == guarantees:
            return
        before, self._guarantees = self._guarantees, guarantees
        kept = (self.account.used - self.account.returning + self.account.promised) // self.account.slab_size
        errors: dict[tuple[int, KM], ConfigError | None] = {}

        def refuse(waiter: Waiter[T]) -> bool:
            need, flags = waiter.need, waiter.flags
            if (need, flags) not in errors:
                errors[need, flags] = self._hopeless(need, flags)
            error = errors[need, flags]
            if error is None:
                return False
            if need + self._reserved(flags) <= kept * self._config.shape.objects:
                self._guarantees = before
                return False
            waiter.fail(ConfigError(error.field, error.given, error.allowed))
            return True

        for filler in tuple(self._waiters.fillers):
            refuse(filler)
        self._waiters.walk(refuse, "hopeless")

    def _reserved(self, flags: KM) -> int:
        level = LEVEL[flags]
        kept = self._config.memalloc_reserve or 0
        return (level == ORDINARY) * self._config.reserve + (level >= URGENT) * kept

    # -- one grow

    def begin(self) -> None:
        """Note that a slab is asked for."""
        self.began = self._clock()
        if self.missed or self._waiters.first is not None:
            self.demand.found_empty(self.began)
        self.missed = self.arrived = False
        if self._pause == PAUSE_FIRST:
            self.due_from = self.began
        self.marks.fire("grow")

    def delivered(self, seconds: float, slabs: int) -> None:
        """Note that the backend has delivered ``slabs``, in so many seconds. They are being built from now on."""
        self.patience.note(seconds / slabs)
        self.demand.delivered(seconds / slabs, slabs)
        self.arrived = True

    def taken_up(self) -> None:
        """Note that the worker begins. Its time runs from now, or since `begin` if it was `behind_others`."""
        self.moved = self._clock()
        if self._pause == PAUSE_FIRST and not self.behind_others:
            self.due_from = self._clock()

    def late(self) -> None:
        """Note that the grow is late for a waiter. Sets DEADLOCKED once it is late for SLEEP callers too."""
        bits = self.marks.bits
        if not bits & _GROWING or bits & _DESTROY:
            return
        self.unwell = True
        if not bits & _DEADLOCKED and self._clock() - self.due_from >= self.patience.of[ORDINARY]:
            self.marks.fire("late")
            self.deadlocks += 1
            self.reports.late()

    def came(self, slab: Slab[T]) -> None:
        """Take in a slab of a grow that goes on with the next, whose time runs from now."""
        self.moved = self.due_from = self._clock()
        self._depot.add(slab)
        self.demand.grown()

    def brought(self, slabs: list[Slab[T]]) -> None:
        """Take in the slabs that the grow has brought, but for those that came before."""
        self._pause = PAUSE_FIRST
        self.reports.failing = False
        for slab in slabs:
            self._depot.add(slab)
        self.demand.grown()
        self.ended()

    def failed(self, error: Exception) -> float:
        """Note that the grow failed. Returns the seconds after which to `resume` if memory was short, else 0.

        Any other error is not cured by waiting: the caller passes it to the waiters.
        """
        self.failures += 1
        self.demand.subsides()
        self.reports.failed(error)
        self._pausing = isinstance(error, MemoryError)
        self.ended()
        if not self._pausing:
            return 0.0
        self.unwell = not self.marks.bits & _DESTROY
        pause, self._pause = self._pause, min(2 * self._pause, PAUSE_MOST)
        return pause

    def resume(self) -> None:
        """End the pause after a failed grow."""
        self._pausing = False

    def ended(self) -> None:
        """Note that the grow has ended, perhaps before the worker began it."""
        self.arrived = self.unwell = False
        if self.marks.bits & _DEADLOCKED:
            self.reports.recovered()
        self.marks.fire("grown")
