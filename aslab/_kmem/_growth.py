"""When a pool grows: is a slab wanted, may it be had, is it late, and what after a failure.

Always true, between calls:

    GROWING is set from when a slab is asked for, not from when the worker gets to it, until the grow has ended
    DEADLOCKED is set while GROWING alone: both go when the grow ends, either way
    `unwell` only while a slab is late, or after a failed grow until the next ends

One grow at a time for each pool, and later callers join the wait (SPL). SPL leaves DEADLOCKED behind a failed grow
for good; here it goes. A failed grow is asked for again after a pause that doubles, so that no processor time is
spent while memory is short.

Decides, and starts nothing: `Pool.ask` acts on it. Event loop's thread only, but for what says otherwise.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Generic, TypeVar

from .._config import CacheConfig
from .._errors import ConfigError
from .._flags import GFP, KM, LEVEL, ORDINARY, URGENT, gfp_for
from ._arena import Arena
from ._budget import Account, Claim, Tenant
from ._depot import Depot
from ._reserve import Reserve
from ._slab import Slab
from ._state import Mark, Marks
from ._waiters import Waiters

T = TypeVar("T")
log = logging.getLogger("aslab")

PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between tries while memory is short: doubled from the first to the most."""
LEAST, MOST = 0.01, 1.0
"""Seconds."""
AT_FIRST = 0.1
"""Seconds: SPL's HZ/10."""
SLOW = 256 * 2**20
"""Bytes a second that any memory is believed to come at."""
TIMES = 4
"""What usually takes so much less is late."""
GROWS = 8
"""As many are remembered."""
_GROWING = Mark.GROWING.value
_DEADLOCKED = Mark.DEADLOCKED.value
_DESTROY = Mark.DESTROY.value
_BLOCKED = (Mark.GROWING | Mark.REAPING | Mark.DESTROY).value


class Patience:
    """How long a caller waits for growth before it takes an emergency object: a number, or learned from the grows.

    What a grow usually takes is the median of the last few: one that was stuck teaches nothing, a backend that has
    become slow is believed after a handful. Four times that is late. A caller whose progress frees memory waits
    half as long. Nothing is late before a timer tick of 2012 (HZ=100), and everything after a second. Before the
    first grow has ended, SPL's HZ/10 stands in, or what slow memory takes for so many bytes.

    :param fixed: the same for all; None where it is learned
    """

    def __init__(self, fixed: float | None, slab_size: int) -> None:
        self._fixed = fixed
        self._at_first = slab_size / SLOW
        self._took: deque[float] = deque(maxlen=GROWS)
        self.of: tuple[float, ...] = ()
        """By level, what such a caller has now."""
        self._look()

    def note(self, seconds: float) -> None:
        """A grow has brought its slab; it took the backend so long."""
        self._took.append(seconds)
        self._look()

    def _look(self) -> None:
        took, fixed = sorted(self._took), self._fixed
        if fixed is not None:
            ordinary = urgent = fixed
        elif not took or (len(took) == 1 and took[0] > MOST):  # a first one that was stuck teaches nothing, either
            ordinary, urgent = max(self._at_first, AT_FIRST), self._at_first
        else:
            ordinary = TIMES * took[(len(took) - 1) // 2]
            urgent = ordinary / 2
        if fixed is None:
            ordinary, urgent = (min(max(late, LEAST), MOST) for late in (ordinary, urgent))
        self.of = (urgent, urgent, ordinary)  # as the levels: FINISHES, URGENT, ORDINARY


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
        self._waiters = waiters
        self._depot = depot
        self._reserve = reserve
        self.marks: Marks = Marks()
        """The marks of the pool."""
        self.account: Account = Account(config.shape.slab_size, config.guaranteed, tenant)
        self.patience: Patience = Patience(arena.config.grow_timeout, config.shape.slab_size)
        """How long callers wait before growth is late."""
        self._gfp = {flags: gfp_for(flags, alone=not config.has_emergency) for flags in KM}
        self._pause = PAUSE_FIRST
        self._pausing = False
        self._limit_noted = False
        self._failure_noted = False
        self.missed: bool = False
        """A non-blocking allocation found nothing. Set from any thread."""
        self.repacking: int = 0
        """Free objects that emergency objects could move into."""
        self.began: float = 0.0
        """When a slab was asked for last."""
        self.unwell: bool = False
        """Slabs are late, or cannot be had: emergency objects are made, and kept for the next caller."""
        self.due_from: float = 0.0
        """When the worker took it up; of a row of failures, the first. From then on it may be late."""
        self.behind_others: bool = False
        """The worker was busy with others when a slab was asked for: that they take long counts."""
        self.arrived: bool = False
        """The backend has done its part; the slab is being made. Whatever that takes, growth is not late."""
        self.judging: bool = False
        """A waiter lets the event loop catch up, to see whether growth is late."""
        self.found_late: float = -math.inf
        """`due_from` of the growth that was found late last."""
        self.failures: int = 0
        self.deadlocks: int = 0

    # -- may it grow, and should it?

    @property
    def wanted(self) -> bool:
        """Whether a slab should be asked for now, as far as limits go."""
        if self.marks.bits & _BLOCKED or self._pausing:
            return False
        if self._waiters.first is not None or (self._reserve.objects and self._reserve.short):
            return True
        least = max(self._config.watermark, self.repacking, self.missed)
        for filler in self._waiters.fillers:
            least = max(least, filler.need)
        return self._depot.free < least

    @property
    def at_limit(self) -> bool:
        """Whether only a free can help: slabs may not become more, and none is on its way."""
        if self.marks.bits & _GROWING:
            return False
        return self._at_most or self.limit_reached or self._budget.yields(self.account)

    @property
    def limit_reached(self) -> bool:
        """Whether no more slabs may be had by anybody who does not wait in line. Any thread."""
        budget = self._budget
        return budget.sealed or self._at_most or (budget.limit is not None and budget.full(self.account))

    @property
    def _at_most(self) -> bool:
        most = self._config.max_objects
        return most is not None and self._depot.slabs.slots_total + self._config.shape.objects > most

    @property
    def sealed(self) -> bool:
        """Whether nothing grows any more."""
        return self._budget.sealed

    @property
    def gfp(self) -> GFP:
        """What a grow may do now: never weaker than the most urgent waiter needs."""
        first = self._waiters.first
        return self._gfp[KM.SLEEP if first is None else first.flags]

    @property
    def claim(self) -> Claim | None:
        """The rank of the first in line, if it may have a slab as far as the cache's own bound goes."""
        first = self._waiters.first
        if first is None or self.marks.bits & _BLOCKED or self._pausing or self._at_most:
            return None
        return first.rank

    @property
    def most(self) -> int | None:
        """The most objects there can ever be in slabs; None without a bound."""
        shape, limit = self._config.shape, self._budget.unpromised
        bounds = []
        if self._config.max_objects is not None:
            bounds.append(self._config.max_objects // shape.objects)
        if limit is not None:
            bounds.append((limit + self._config.guaranteed) // shape.slab_size)
        return min(bounds) * shape.objects if bounds else None

    def check_possible(self, n: int, flags: KM) -> None:
        """Refuse to have a caller wait for more objects than there can ever be for it. Any thread.

        :raises ConfigError: if so
        """
        if self._config.max_objects is None and self._budget.limit is None:
            return
        shape, config, level = self._config.shape, self._config, LEVEL[flags]
        reserved = (level == ORDINARY) * config.reserve + (level >= URGENT) * (config.memalloc_reserve or 0)
        slabs = -(-(n + reserved) // shape.objects)
        most, limit = config.max_objects, self._budget.unpromised
        but = f", less the reserve of {reserved}" if reserved else ""
        if most is not None and slabs * shape.objects > most:
            raise ConfigError("n", n, f"it must fit into max_objects, {most}, in whole slabs{but}")
        if limit is not None and slabs * shape.slab_size > limit + config.guaranteed:
            room = f"the limit less other guarantees, {limit + config.guaranteed} bytes"
            raise ConfigError("n", n, f"it must fit into {room}, in whole slabs{but}")

    def note_limit(self) -> None:
        """A caller waits at the limit; the first one ever is worth a line in the log."""
        if not self._limit_noted:
            self._limit_noted = True
            log.info("cache %r is at its limit: callers wait for others to free", self._config.name)

    # -- one grow

    def begin(self) -> None:
        """A slab is asked for."""
        self.missed = self.arrived = False
        self.began = self._clock()
        if self._pause == PAUSE_FIRST:
            self.due_from = self.began
        self.marks.fire("grow")

    def taken_up(self) -> None:
        """The worker begins: from now on it may be late, unless it was others that it had to wait for."""
        if self._pause == PAUSE_FIRST and not self.behind_others:
            self.due_from = self._clock()

    def late(self) -> None:
        """A waiter's time is up. The first one of an episode sets DEADLOCKED, if others would not wait longer."""
        bits = self.marks.bits
        if not bits & _GROWING or bits & _DESTROY:
            return
        self.unwell = True
        if not bits & _DEADLOCKED and self._clock() - self.due_from >= self.patience.of[ORDINARY]:
            self.marks.fire("late")
            self.deadlocks += 1
            log.warning(
                "cache %r is DEADLOCKED: a slab has been late for longer than its callers wait", self._config.name
            )

    def brought(self, slab: Slab[T]) -> None:
        """The grow ended with a slab."""
        self._pause = PAUSE_FIRST
        self._failure_noted = False
        self._depot.add(slab)
        self.ended()

    def failed(self, error: Exception) -> float:
        """The grow ended without one. Returns the pause after which to `resume`, if memory was short, else 0.

        Waiting does not mend anything else: the waiters are to be told.
        """
        self.failures += 1
        if not self._failure_noted:  # once for a row of failures
            self._failure_noted = True
            log.warning("cache %r cannot grow: %s", self._config.name, str(error) or repr(error))
        self._pausing = isinstance(error, MemoryError)
        self.ended()
        if not self._pausing:
            return 0.0
        self.unwell = not self.marks.bits & _DESTROY
        pause, self._pause = self._pause, min(2 * self._pause, PAUSE_MOST)
        return pause

    def resume(self) -> None:
        """The pause after a failure is over."""
        self._pausing = False

    def ended(self) -> None:
        """The grow has ended, perhaps before it began."""
        self.arrived = self.unwell = False
        if self.marks.bits & _DEADLOCKED:
            log.info("cache %r is no longer DEADLOCKED: the late grow has ended", self._config.name)
        self.marks.fire("grown")
