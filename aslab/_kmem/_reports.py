"""What a pool reports about its growth: log lines, events for whoever listens, and how long growth has been late.

Each line is logged once an episode, however many callers wait, and carries its facts as fields of the record too
(``aslab_event``, ``aslab_cache``, ``aslab_seconds``; of a holder ``aslab_task`` and ``aslab_place``), for loggers
that write JSON.

Always true, between calls: `late_since` is set exactly while the pool is DEADLOCKED.

Event loop's thread only; members may be read from any thread.
"""

from __future__ import annotations

import logging
import math

from .._events import CacheEvent, EventKind, Listeners
from .._holder import Holder
from ._clock import Clock

log = logging.getLogger("aslab")

QUIET = 10.0
"""Seconds without another caller at the limit, after which the next one is reported again."""


class Reports:
    """The reports of one pool."""

    def __init__(self, name: str, listeners: Listeners, clock: Clock) -> None:
        self._name = name
        self._listeners = listeners
        self._clock = clock
        self._limit_logged = False
        self._limit_at = -math.inf
        self.late_since: float | None = None
        """When growth became late, if it is."""
        self.late_total: float = 0.0
        """Seconds in which growth was late, up to the last time that it recovered."""
        self.failing: bool = False
        """The last grow failed."""

    def late(self) -> None:
        """Report that growth has become late."""
        self.late_since = self._clock()
        text = f"cache {self._name!r} is DEADLOCKED: a slab has been late for longer than its callers wait"
        self._tell(logging.WARNING, EventKind.LATE, text)

    def recovered(self) -> None:
        """Report that growth is late no longer."""
        assert self.late_since is not None, "it was late"
        lasted, self.late_since = self._clock() - self.late_since, None
        self.late_total += lasted
        text = f"cache {self._name!r} is no longer DEADLOCKED: the late grow has ended"
        self._tell(logging.INFO, EventKind.RECOVERED, text, lasted)

    def failed(self, error: Exception) -> None:
        """Report the first failure of a series."""
        if not self.failing:
            self.failing = True
            text = f"cache {self._name!r} cannot grow: {str(error) or repr(error)}"
            self._tell(logging.WARNING, EventKind.FAILED, text)

    def set_aside(self, seconds: float) -> None:
        """Report that a grow has been stuck for so long, and the worker goes on without it."""
        text = (
            f"growth of cache {self._name!r} has been stuck for {seconds:g} s; it is set aside, and other caches "
            "can grow"
        )
        self._tell(logging.WARNING, EventKind.SET_ASIDE, text, seconds)

    def at_limit(self) -> None:
        """Report that a caller waits at the limit: to the log once, to listeners once an episode."""
        if self._limit_logged and not self._listeners.readers:
            return
        before, self._limit_at = self._limit_at, self._clock()
        if not self._limit_logged or self._limit_at - before >= QUIET:
            text = f"cache {self._name!r} is at its limit: callers wait for others to free"
            level = logging.DEBUG if self._limit_logged else logging.INFO
            self._limit_logged = True
            self._tell(level, EventKind.AT_LIMIT, text)

    def held_long(self, holder: Holder) -> None:
        """Report that a buffer has been held for so long that it may have been forgotten."""
        self._tell(logging.WARNING, EventKind.HELD_LONG, f"not freed: {holder}", holder.seconds, holder)

    def _tell(
        self, level: int, kind: EventKind, text: str, seconds: float = 0.0, holder: Holder | None = None
    ) -> None:
        name = self._name if holder is None else holder.cache
        fields = {"aslab_event": kind.value, "aslab_cache": name, "aslab_seconds": seconds}
        if holder is not None:
            fields |= {"aslab_task": holder.task, "aslab_place": holder.place}
        log.log(level, text, extra=fields)
        if self._listeners.readers:
            event = CacheEvent(
                kind=kind, cache=name, time=self._clock(), seconds=seconds, text=text, holder=holder
            )
            self._listeners.tell(event)
