"""When a cache grows: the marks, the limits, and the pauses after a failure.

One grow at a time for each cache: the mark GROWING is set when a slab is asked for, not when the
worker gets to it, and later callers join the wait (SPL). When it ends, either way, GROWING and
DEADLOCKED go: SPL leaves DEADLOCKED behind a failed grow for good. A failed one is asked for again
after a pause that doubles, so that want of memory costs no processor time.

Event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from ._config import CacheConfig
from ._depot import Depot
from ._flags import GFP, KM, gfp_for
from ._line import Line
from ._slab import Slab
from ._state import Mark, Marks

if TYPE_CHECKING:
    from ._worker import Worker

T = TypeVar("T")

PAUSE_FIRST, PAUSE_MOST = 0.01, 1.0
"""Seconds between tries after want of memory: doubled from the first to the most."""


class Growth(Generic[T]):
    """The growing of one cache. ``on_slab`` is called after a grow that brought objects."""

    def __init__(
        self,
        config: CacheConfig[T],
        marks: Marks,
        depot: Depot[T],
        line: Line[T],
        worker: Worker,
        on_slab: Callable[[], None],
    ) -> None:
        self.config = config
        self.marks = marks
        self._depot = depot
        self._line = line
        self._worker = worker
        self._on_slab = on_slab
        self._fillers: dict[anyio.Event, int] = {}
        self._error: Exception | None = None
        self._pause = PAUSE_FIRST
        self._pausing = False
        self.missed: bool = False
        """Somebody who could not wait found nothing. Set from any thread."""
        self.failures: int = 0
        self.deadlocks: int = 0

    @property
    def at_limit(self) -> bool:
        """Whether only a free can help: slabs may not become more, and none is on its way."""
        most = self.config.max_objects
        shape = self.config.shape
        if Mark.GROWING in self.marks:
            return False
        if most is not None and self._depot.slabs.slots_total + shape.objects > most:
            return True
        return self._worker.budget.full(shape.slab_size)

    @property
    def gfp(self) -> GFP:
        """What a grow may do now: never weaker than the most urgent waiter needs."""
        first = self._line.first()
        return gfp_for(first.flags if first is not None else KM.SLEEP)

    def ask(self) -> None:
        """Ask for a slab if one is wanted and may be had. Asking twice changes nothing."""
        blocked = Mark.GROWING | Mark.REAPING | Mark.DESTROY
        if self.marks.state & blocked or self._pausing or not self._wanted() or self.at_limit:
            return
        self.missed = False
        self.marks.fire("grow")
        self._worker.put(self)
        for waiter in self._line:
            if not waiter.timed:  # it waited for a free alone; now it waits for growth, with a timeout
                waiter.wake()

    def late(self) -> None:
        """A waiter's time is up. The first one of an episode sets DEADLOCKED."""
        if Mark.GROWING in self.marks and Mark.DEADLOCKED not in self.marks:
            self.marks.fire("late")
            self.deadlocks += 1

    def brought(self, slab: Slab[T]) -> None:
        """The grow ended with a slab."""
        self._pause = PAUSE_FIRST
        self._depot.add(slab)
        self.marks.fire("grown")
        self._on_slab()
        self.ask()
        self._tell_fillers()

    def failed(self, error: Exception) -> float:
        """The grow ended without. Answers after what pause to call `resume`, for want of memory.

        Anything else waiting does not mend: the waiters are told.
        """
        self.failures += 1
        self.marks.fire("grown")
        if isinstance(error, MemoryError):
            self._pausing = True
            pause, self._pause = self._pause, min(2 * self._pause, PAUSE_MOST)
            return pause
        self._error = error
        for waiter in self._line:
            waiter.error = error
            waiter.wake()
        self._tell_fillers()
        return 0.0

    def resume(self) -> None:
        """The pause after a failure is over."""
        self._pausing = False
        self.ask()

    def called_off(self) -> None:
        """The grow ended before it began: the limit was reached meanwhile."""
        self.marks.fire("grown")

    async def fill(self, objects: int) -> None:
        """Suspend until that many objects are free."""
        while self._depot.free < objects:
            event = anyio.Event()
            self._error = None
            self._fillers[event] = objects
            try:
                self.ask()
                await event.wait()
            finally:
                del self._fillers[event]
            if self._error is not None:
                raise self._error

    def close(self, error: Exception) -> None:
        """The cache is closed: who fills it is told."""
        self._error = error
        self._tell_fillers()

    def _wanted(self) -> bool:
        least = max([self.config.watermark, *self._fillers.values()])
        return len(self._line) > 0 or self._depot.free < max(least, self.missed)

    def _tell_fillers(self) -> None:
        for event in self._fillers:
            event.set()
