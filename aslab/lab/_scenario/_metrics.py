"""The figures that a scenario can set bounds for, and how each is watched during a run.

The first event that breaks an upper bound is recorded: that is where to look. Whether a figure has reached
its lower bound is only known at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .._simulation._log import Event
from ._result import Verdict

How = Literal["highest", "lowest", "sum", "last"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind of figure."""

    how: How
    """How values are combined: the highest, the lowest, their sum, or the last."""
    about: str
    time: bool = False
    """Whether it is in seconds rather than a count."""
    by: tuple[str, ...] = ()
    """What it can be restricted to: ``tasks``, ``cache``."""
    level: bool = False
    """Whether the overall value is fed separately, with no cache, because those of the caches do not add up."""

    def format(self, value: float) -> str:
        """The value as text: ``150 ms``, or a count."""
        return format_seconds(value) if self.time else f"{value:.10g}"


_BOTH, _CACHE = ("tasks", "cache"), ("cache",)
METRICS: dict[str, Metric] = {
    "longest_wait": Metric("highest", "longest time a caller waited, including callers that gave up", True, _BOTH),
    "longest_gap": Metric("highest", "longest time a task neither got nor freed an object", True, _BOTH),
    "allocations": Metric("sum", "objects that callers got", by=_BOTH),
    "refused": Metric("sum", "NOSLEEP requests that got no object", by=_BOTH),
    "timed_out": Metric("sum", "callers whose own timeout expired", by=_BOTH),
    "unfinished": Metric("sum", "tasks that had not finished their rounds at the end", by=_BOTH),
    "emergency_made": Metric("sum", "emergency objects that callers got", by=_BOTH),
    "emergency_max": Metric("highest", "emergency objects outstanding at once", by=_CACHE, level=True),
    "emergency_left": Metric("sum", "emergency objects outstanding at the end of the workload", by=_CACHE),
    "deadlocks": Metric("sum", "times a cache was marked DEADLOCKED", by=_CACHE),
    "deadlocked_left": Metric("sum", "caches still marked DEADLOCKED at the end of the workload", by=_CACHE),
    "slabs_made": Metric("sum", "slabs made by growth", by=_CACHE),
    "slabs_left": Metric("sum", "slabs at the end of the workload", by=_CACHE),
    "slab_regrets": Metric("sum", "times a cache grew soon after it returned slabs", by=_CACHE),
    "objects_moved": Metric("sum", "objects that were moved", by=_CACHE),
    "grow_failures": Metric("sum", "grows that produced no slab", by=_CACHE),
    "emergency_failures": Metric("sum", "failed requests for an emergency object"),
    "kicked": Metric("last", "stuck grows that were set aside"),
    "lowest_free": Metric("lowest", "lowest number of free pages"),
    "lock_wait": Metric("highest", "longest time a call waited for an address space lock", True),
    "lock_wait_total": Metric("last", "total time calls waited for address space locks", True),
    "stuck": Metric("last", "tasks at the end of the workload that nothing would ever wake"),
    "memory_lost": Metric("last", "regions and pages not returned in the end"),
    "wrong_books": Metric("sum", "caches whose lists and counters disagreed in the end", by=_CACHE),
}


class Watch:
    """One expectation, and whether it is met."""

    def __init__(
        self,
        what: str,
        *,
        at_most: float | None,
        at_least: float | None,
        tasks: str | None = None,
        cache: str | None = None,
    ) -> None:
        self.what = what
        self.tasks = tasks
        self.cache = cache
        self._metric = METRICS[what]
        self._how = self._metric.how
        self.everything: bool = tasks is None and cache is None and not self._metric.level
        """Whether it applies to all tasks and caches."""
        self._unbounded = at_most is None and at_least is None
        self._at_most = at_most
        self._at_least = at_least
        self._value: float | None = None if self._metric.how == "lowest" else 0.0
        self._broken_by: str | None = None

    def wants(self, tasks: str, cache: str) -> bool:
        """Whether it applies to these tasks and this cache."""
        if self._metric.level:
            return (self.cache or "") == cache
        return (self.tasks is None or self.tasks == tasks) and (self.cache is None or self.cache == cache)

    def feed(self, value: float, event: Event) -> None:
        """Add a value, and the event that brought it."""
        how, old = self._how, self._value
        if self._unbounded and old is not None and value <= old and how == "highest":
            return
        if how == "sum":
            new = value if old is None else old + value
        elif old is None or how == "last":
            new = value
        else:
            new = max(old, value) if how == "highest" else min(old, value)
        self._value = new
        if self._broken_by is None and not self._unbounded:
            above = how != "lowest" and self._at_most is not None and new > self._at_most
            below = how == "lowest" and self._at_least is not None and new < self._at_least
            if above or below:
                self._broken_by = f"at {event.time:.6f} s by {' '.join(event[1:]).strip()!r}"

    @property
    def value(self) -> float:
        """The figure so far."""
        return self._value or 0.0

    def verdict(self) -> Verdict:
        """The verdict at the end."""
        value = self.value
        too_little = self._at_least is not None and value < self._at_least
        too_much = self._at_most is not None and value > self._at_most
        if self._broken_by is None and (too_little or too_much):
            self._broken_by = "at the end: it was never reached"
        words = [self.what]
        if self._at_least is not None:
            words.append(f"at least {self._metric.format(self._at_least)}")
        if self._at_most is not None:
            words.append(f"at most {self._metric.format(self._at_most)}")
        words += [f"of {kind} {name}" for kind, name in (("tasks", self.tasks), ("cache", self.cache)) if name]
        return Verdict(" ".join(words), self._metric.format(value), self._broken_by)


def format_seconds(value: float) -> str:
    """``1.5 s``, ``150 ms``, ``40 µs``."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= factor:
            return f"{value / factor:.6g} {unit}"
    return f"{value * 1e6:.6g} µs" if value else "0 s"


def in_words(figures: dict[str, float]) -> dict[str, str]:
    """The nonzero figures as text."""
    return {name: METRICS[name].format(value) for name, value in figures.items() if value}


class Watches:
    """All expectations of a run, and an unbounded watch for each figure."""

    def __init__(self, expectations: list[Watch]) -> None:
        self._expectations = expectations
        self._figures = {what: Watch(what, at_most=None, at_least=None) for what in METRICS}
        self._by_metric = {what: [watch] for what, watch in self._figures.items()}
        for watch in expectations:
            self._by_metric[watch.what].append(watch)

    def feed(self, what: str, value: float, event: Event, tasks: str = "", cache: str = "") -> None:
        """Pass a value on to each watch of that figure that applies to these tasks and this cache."""
        for watch in self._by_metric[what]:
            if watch.everything or watch.wants(tasks, cache):
                watch.feed(value, event)

    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdicts at the end, in the order of the file."""
        return tuple(watch.verdict() for watch in self._expectations)

    def figures(self) -> dict[str, float]:
        """Each figure over all tasks and caches."""
        return {what: watch.value for what, watch in self._figures.items()}
