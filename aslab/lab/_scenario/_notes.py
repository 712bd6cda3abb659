"""What is recorded during a run: the event log, the figures, and what will be drawn.

Tasks, backends and caches report here, and know nothing of the run they belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from ... import Cache
from ..._kmem._state import Mark
from ...emulation import PhysicalMemory
from .._simulation._log import Event
from .._simulation._run import Lab
from ._load import bounds, bounds_in_real_time
from ._metrics import Watch, Watches
from ._recording import Kind, Moment, Recording, Span
from ._schema import Scenario

PROGRESS_EVERY = 4096  # events
_DRAWN: dict[Mark, Kind] = {
    Mark.GROWING: "GROWING",
    Mark.DEADLOCKED: "DEADLOCKED",
    Mark.REAPING: "REAPING",
}


class Notes:
    """The records of one run.

    :param memory: the machine's, for its free pages
    :param recording: collects what will be drawn, if anything is
    :param progress: called from time to time with the fraction done
    """

    def __init__(
        self,
        scenario: Scenario,
        lab: Lab,
        memory: PhysicalMemory,
        recording: Recording | None,
        progress: Callable[[float], object] | None,
        *,
        real_time: bool,
    ) -> None:
        self.lab = lab
        self.recording = recording
        self.caches: dict[str, Cache[Any]] = {}
        """The caches of the run, once they exist."""
        self._duration = scenario.duration
        self._memory = memory
        self._progress = progress
        watches = [
            Watch(one.what, at_most=most, at_least=least, tasks=one.tasks, cache=one.cache)
            for one in scenario.expect
            for most, least in [bounds_in_real_time(one, scenario.slack) if real_time else bounds(one)]
        ]
        self.watches: Watches = Watches(watches)
        self.feed: Callable[..., None] = self.watches.feed
        """Add a value to a figure."""
        self._levels = dict.fromkeys(scenario.caches, 0)
        self._created = dict.fromkeys(scenario.caches, 0)
        self._marked_since: dict[tuple[str, Mark], float] = {}
        self._events = 0
        self.event: Callable[..., Event] = lab.log.write if progress is None else self._event
        """Write an event to the log: who, what, and any detail."""

    def _event(self, who: str, what: str, detail: str = "") -> Event:
        event = self.lab.log.write(who, what, detail)
        self._events += 1
        if self._progress is not None and self._events % PROGRESS_EVERY == 0:
            self._progress(min(1.0, event.time / self._duration))
        return event

    def emergency(self, change: int, event: Event, tasks: str, cache: str) -> None:
        """A caller got an emergency object, or freed one."""
        self._levels[cache] += change
        if change > 0:
            self.feed("emergency_made", change, event, tasks, cache)
            self.feed("emergency_max", self._levels[cache], event, cache=cache)
            self.feed("emergency_max", sum(self._levels.values()), event)

    def waited(self, who: str, begin: float, end: float, cache: str) -> None:
        """A caller had to wait."""
        if self.recording is not None:
            self.recording.waits.append(end - begin)
            self.span(who, "waiting", begin, end, cache)

    def span(self, who: str, kind: Kind, begin: float, end: float, detail: str) -> None:
        """A task held something, or waited."""
        if self.recording is not None:
            self.recording.tasks.append(Span(who, kind, begin, end, detail))
            self._count(end)

    def backend(self, name: str, what: str, detail: str, began: float) -> None:
        """A backend received a request, or finished one."""
        event = self.event(name, what, detail)
        self.feed("lowest_free", self._memory.lowest_free, event)
        if name == "emergency" and what in ("failed", "refused"):
            self.feed("emergency_failures", 1, event)
        kinds: dict[str, Kind] = {"gave": "growing", "failed": "failed", "cancelled": "stuck"}
        if self.recording is not None and what in kinds:
            begin = event.time - (anyio.current_time() - began)
            self.recording.worker.append(Span(name, kinds[what], begin, event.time, detail))
            self._count(event.time)

    def marked(self, name: str, what: str, before: Mark, after: Mark) -> None:
        """The marks of a cache have changed."""
        event = self.event(name, what)
        if what == "late":
            self.feed("deadlocks", 1, event, cache=name)
        elif what == "grown":
            created = self.caches[name].stats().slab_create
            grew, self._created[name] = created > self._created[name], created
            self.feed("slabs_made" if grew else "grow_failures", 1, event, cache=name)
        for mark in _DRAWN:
            if mark in after and mark not in before:
                self._marked_since[name, mark] = event.time
            elif mark in before and mark not in after and self.recording is not None:
                kind: Kind = _DRAWN[mark]
                since = self._marked_since.get((name, mark), 0.0)  # the reserve grows while the cache is created
                self.recording.caches.append(Span(name, kind, since, event.time))

    def moment(self, event: Event) -> None:
        if self.recording is not None:
            self.recording.moments.append(Moment(event.who, event.time, f"{event.what} {event.detail}".strip()))

    def _count(self, now: float) -> None:
        """Record the counters, for the curves."""
        assert self.recording is not None
        stats = [cache.stats() for cache in self.caches.values()]
        emergency = sum(one.obj_emergency for one in stats)
        held = sum(one.obj_held for one in stats) - emergency
        total = sum(one.obj_total for one in stats) - emergency
        values = {
            "held": held,
            "emergency": emergency,
            "free in slabs": total - held - sum(one.obj_handover for one in stats),
            "free pages": self._memory.free_pages,
        }
        for name, value in values.items():
            points = self.recording.counters.setdefault(name, [])
            if not points or points[-1][1] != value:
                points.append((now, value))
