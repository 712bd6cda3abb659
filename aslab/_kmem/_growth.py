"""When a cache grows: the marks, the limits, and the pauses after a failure.

One grow at a time for each cache: the mark GROWING is set when a slab is asked for, not when the
worker gets to it, and later callers join the wait (SPL). When it ends, either way, GROWING and
DEADLOCKED go: SPL leaves DEADLOCKED behind a failed grow for good. A failed one is asked for again
after a pause that doubles, so that want of memory costs no processor time.

Event loop's thread only.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from .._config import CacheConfig
from .._errors import ConfigError, twin
from .._flags import GFP, KM, LEVEL, ORDINARY, URGENT, gfp_for
from .._stats import Tally
from ._budget import Account, Claim
from ._depot import Depot
from ._patience import Patience
from ._reserve import Reserve
from ._slab import Slab
from ._state import Mark, Marks
from ._waiters import Line

if TYPE_CHECKING:
    from ._worker import Worker

T = TypeVar("T")
log = logging.getLogger("aslab")

PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between tries after want of memory: doubled from the first to the most."""
_GROWING = Mark.GROWING.value
_BLOCKED = (Mark.GROWING | Mark.REAPING | Mark.DESTROY).value


class Filler:
    """A caller that waits until ``done``, for which ``objects`` have to be free."""

    def __init__(self, objects: int, tally: Tally, done: Callable[[], bool]) -> None:
        self.objects: int = objects
        self.tally: Tally = tally
        self.done: Callable[[], bool] = done
        self.event: anyio.Event = anyio.Event()
        self.error: Exception | None = None

    def wake(self) -> None:
        """Let it look again."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed, and the task with it
            self.event.set()


class Growth(Generic[T]):
    """The growing of one cache.

    ``on_begin`` is called when a slab is asked for, ``on_slab`` when it has come, ``on_error`` when none
    can be had for a reason that waiting does not mend; ``on_filling`` when `filling` changes.
    """

    def __init__(
        self,
        config: CacheConfig[T],
        marks: Marks,
        depot: Depot[T],
        line: Line[T],
        reserve: Reserve[T],
        worker: Worker,
        grow_timeout: float | None,
        *,
        on_begin: Callable[[], None],
        on_slab: Callable[[], None],
        on_error: Callable[[Exception], None],
        on_filling: Callable[[], None],
    ) -> None:
        self.config = config
        self.marks = marks
        self._depot = depot
        self._line = line
        self._reserve = reserve
        self._worker = worker
        self.patience: Patience = Patience(grow_timeout, config.shape.slab_size)
        """How long callers wait before growth is late."""
        self.account: Account = Account(config.shape.slab_size, config.guaranteed, self._claim, self.ask)
        self._on_begin = on_begin
        self._on_slab = on_slab
        self._on_error = on_error
        self._on_filling = on_filling
        self._fillers: dict[Filler, None] = {}  # in order
        self._pause = PAUSE_FIRST
        self._pausing = False
        self._limit_noted = False
        self._failure_noted = False
        self.missed: bool = False
        """Somebody who could not wait found nothing. Set from any thread."""
        self.repacking: int = 0
        """Free objects that emergency objects could move into."""
        self.began: float = 0.0
        """When a slab was asked for last."""
        self.unwell: bool = False
        """Slabs are late, or cannot be had: emergency objects are made, and made again."""
        self.due_from: float = 0.0
        """The same, but since tries fail, when the first of them was asked for: then on it may be late."""
        self.behind_others: bool = False
        """The worker was busy with others when a slab was asked for: that they take long counts."""
        self.arrived: bool = False
        """The backend has done its part; the slab is being made. Whatever that takes, growth is not late."""
        self.failures: int = 0
        self.deadlocks: int = 0
        worker.budget.open(self.account)

    @property
    def at_limit(self) -> bool:
        """Whether only a free can help: slabs may not become more, and none is on its way."""
        if self.marks.bits & _GROWING:
            return False
        return self._at_most or self.limit_reached or self._worker.budget.yields(self.account)

    @property
    def limit_reached(self) -> bool:
        """Whether no more slabs may be had by anybody who does not wait in line. Any thread."""
        budget = self._worker.budget
        return budget.sealed or self._at_most or budget.full(self.account)

    @property
    def sealed(self) -> bool:
        """Whether nothing grows any more."""
        return self._worker.budget.sealed

    @property
    def _at_most(self) -> bool:
        most = self.config.max_objects
        return most is not None and self._depot.slabs.slots_total + self.config.shape.objects > most

    @property
    def gfp(self) -> GFP:
        """What a grow may do now: never weaker than the most urgent waiter needs."""
        first = self._line.first
        return gfp_for(KM.SLEEP if first is None else first.flags, alone=not self.config.has_emergency)

    @property
    def level(self) -> int:
        """How urgent the first in line is."""
        first = self._line.first
        return ORDINARY if first is None else first.level

    @property
    def most(self) -> int | None:
        """The most objects there can ever be in slabs; None without a bound."""
        shape, limit = self.config.shape, self._worker.budget.unpromised
        bounds = []
        if self.config.max_objects is not None:
            bounds.append(self.config.max_objects // shape.objects)
        if limit is not None:
            bounds.append((limit + self.config.guaranteed) // shape.slab_size)
        return min(bounds) * shape.objects if bounds else None

    def check_possible(self, n: int, flags: KM) -> None:
        """Refuse to have somebody wait for more objects than there can ever be for such a caller. Any thread.

        :raises ConfigError: if so
        """
        shape, config, level = self.config.shape, self.config, LEVEL[flags]
        reserved = (level == ORDINARY) * config.reserve + (level >= URGENT) * (config.memalloc_reserve or 0)
        slabs = -(-(n + reserved) // shape.objects)
        most, limit = self.config.max_objects, self._worker.budget.unpromised
        but = f", less the reserve of {reserved}" if reserved else ""
        if most is not None and slabs * shape.objects > most:
            raise ConfigError("n", n, f"allowed are whole slabs within max_objects, {most}{but}")
        if limit is not None and slabs * shape.slab_size > limit + self.config.guaranteed:
            allowed = f"the limit, less others' guarantees, {limit + self.config.guaranteed} bytes"
            raise ConfigError("n", n, f"allowed are whole slabs within {allowed}{but}")

    def ask(self) -> bool:
        """Ask for a slab if one is wanted and may be had; whether it may. Asking twice changes nothing."""
        if self.marks.bits & _BLOCKED or self._pausing or not self._wanted():
            return False
        if self.at_limit:
            self._worker.make_room(self)
            return False
        self.missed = self.arrived = False
        self.began = self._worker.clock()
        if self._pause == PAUSE_FIRST:
            self.due_from = self.began
        self.marks.fire("grow")
        self._worker.put(self)
        self.note()
        self._on_begin()
        return True

    def note(self) -> None:
        """Who waits has changed, or whether a slab would help them."""
        self._worker.budget.note(self.account)
        self._worker.note(self)

    def begins(self) -> None:
        """The worker takes it up: from now on it may be late, unless it was others that it had to wait for."""
        if self._pause == PAUSE_FIRST and not self.behind_others:
            self.due_from = self._worker.clock()

    def late(self) -> None:
        """A waiter's time is up. The first one of an episode sets DEADLOCKED, if others would not wait longer."""
        if Mark.GROWING not in self.marks or Mark.DESTROY in self.marks:
            return
        self.unwell = True
        since = self._worker.clock() - self.due_from
        if Mark.DEADLOCKED not in self.marks and since >= self.patience.of(ORDINARY):
            self.marks.fire("late")
            self.deadlocks += 1
            log.warning(
                "cache %r is DEADLOCKED: a slab has been late for longer than its callers wait", self.config.name
            )

    def brought(self, slab: Slab[T]) -> None:
        """The grow ended with a slab."""
        self._pause = PAUSE_FIRST
        self._failure_noted = False
        self._depot.add(slab)
        self._ended()
        self._on_slab()

    def failed(self, error: Exception) -> float:
        """The grow ended without. Answers after what pause to call `resume`, for want of memory.

        Anything else waiting does not mend: the waiters are told.
        """
        self.failures += 1
        if not self._failure_noted:  # once for a row of failures
            self._failure_noted = True
            log.warning("cache %r cannot grow: %s", self.config.name, str(error) or repr(error))
        self._pausing = isinstance(error, MemoryError)
        self._ended()
        if self._pausing:
            self.unwell = Mark.DESTROY not in self.marks
            pause, self._pause = self._pause, min(2 * self._pause, PAUSE_MOST)
            return pause
        self._on_error(error)
        self.send_fillers_away(error)
        return 0.0

    def resume(self) -> None:
        """The pause after a failure is over."""
        self._pausing = False
        self.note()
        self.ask()

    def called_off(self) -> None:
        """The grow ended before it began: the limit was reached meanwhile."""
        self._ended()
        self._worker.budget.found_no_room(self.account)

    def note_limit(self) -> None:
        """A caller waits at the limit; the first one ever is worth a line in the log."""
        if not self._limit_noted:
            self._limit_noted = True
            log.info("cache %r is at its limit: callers wait for others to free", self.config.name)

    def _ended(self) -> None:
        self.arrived = self.unwell = False
        if Mark.DEADLOCKED in self.marks:
            log.info("cache %r is DEADLOCKED no more: the late grow has ended", self.config.name)
        self.marks.fire("grown")
        self.note()

    @property
    def filling(self) -> int:
        """Callers of `fill` that wait."""
        return len(self._fillers)

    async def fill(self, objects: int, tally: Tally) -> None:
        """Suspend until that many objects are free."""
        await self._until(Filler(objects, tally, lambda: self._depot.free >= objects))

    async def ready(self, tally: Tally) -> None:
        """Suspend until the reserve is full."""
        await self._until(Filler(0, tally, lambda: not self._reserve.short))

    async def _until(self, filler: Filler) -> None:
        while not filler.done():
            filler.event = anyio.Event()
            self._fillers[filler] = None
            self._on_filling()
            try:
                self.ask()
                await filler.event.wait()
            finally:
                del self._fillers[filler]
                self._on_filling()
            if filler.error is not None:
                raise twin(filler.error)

    def tell_fillers(self) -> None:
        """Wake those of them whose objects are there."""
        for filler in self._fillers:
            if filler.done():
                filler.wake()

    def send_fillers_away(self, error: Exception, tally: Tally | None = None) -> None:
        """Tell them, or those of one cache, what is wrong."""
        for filler in self._fillers:
            if tally is None or filler.tally is tally:
                filler.error = error
                filler.wake()

    def _wanted(self) -> bool:
        if self._line.first is not None or self._reserve.short:
            return True
        least = max([self.config.watermark, self.repacking, *(filler.objects for filler in self._fillers)])
        return self._depot.free < max(least, self.missed)

    def _claim(self) -> Claim | None:
        """Who waits for a slab here and may have one as far as the cache's own bound goes."""
        busy = self.marks.bits & _BLOCKED or self._pausing
        first = None if busy or self._at_most else self._line.first
        return first.rank if first is not None else None
