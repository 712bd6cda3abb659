"""The figures that are exported: name, kind, unit, description and where each comes from, listed once.

Names are those of Prometheus, in base units; counters get ``_total`` by the exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from .._allocator import Allocator
from .._errors import ConfigError
from .._health import HealthState, judge
from .._histogram import Histogram
from .._stats import AllocatorStats, CacheStats

S = TypeVar("S")
Kind: TypeAlias = Literal["gauge", "counter", "histogram"]
Value: TypeAlias = float | Histogram | None
"""None is no sample: there is no such bound."""


@dataclass(frozen=True, slots=True)
class Figure(Generic[S]):
    """One figure, of a cache or of an allocator."""

    name: str
    kind: Kind
    doc: str
    of: Callable[[S], Value | Mapping[str, Value]]
    """The value, or several by the value of ``label``."""
    label: str = ""
    """The name of a further label, or "" if there is none."""

    def values(self, stats: S) -> Iterator[tuple[tuple[str, ...], float | Histogram]]:
        """Give the samples, each with the value of the further label, if there is one."""
        found = self.of(stats)
        each = {(word,): value for word, value in found.items()} if isinstance(found, Mapping) else {(): found}
        for words, value in each.items():
            if value is not None:
                yield words, value


OF_CACHES: tuple[Figure[CacheStats], ...] = (
    Figure(
        "aslab_objects",
        "gauge",
        "Objects: used by callers (emergency objects included), idle, set aside, or lingering in views.",
        lambda s: {
            "used": s.obj_held,
            "idle": s.obj_free,
            "reserved": s.obj_reserved,
            "lingering": s.obj_lingering,
        },
        "state",
    ),
    Figure("aslab_object_size_bytes", "gauge", "Bytes of one object.", lambda s: s.size),
    Figure("aslab_slabs", "gauge", "Slabs that exist.", lambda s: s.slab_total),
    Figure("aslab_slab_size_bytes", "gauge", "Bytes of one slab.", lambda s: s.slab_size),
    Figure("aslab_slabs_created", "counter", "Slabs made.", lambda s: s.slab_create),
    Figure("aslab_slabs_destroyed", "counter", "Slabs given back.", lambda s: s.slab_destroy),
    Figure("aslab_grow_failures", "counter", "Grows that failed to make a slab.", lambda s: s.slab_fail),
    Figure("aslab_growing_seconds", "gauge", "Age of the grow under way, 0 if none is.", lambda s: s.growing_for),
    Figure("aslab_growth_late", "gauge", "1 while growth is late (DEADLOCKED).", lambda s: float(s.growth_late)),
    Figure("aslab_growth_late_episodes", "counter", "Times that growth became late.", lambda s: s.obj_deadlock),
    Figure(
        "aslab_growth_late_seconds", "counter", "Seconds in which growth was late.", lambda s: s.growth_late_total
    ),
    Figure("aslab_growth_failing", "gauge", "1 if the last grow failed.", lambda s: float(s.growth_failing)),
    Figure("aslab_at_limit", "gauge", "1 if the cache may not grow now.", lambda s: float(s.at_limit)),
    Figure(
        "aslab_grow_timeout_seconds",
        "gauge",
        "How long a caller waits for growth before it tries an emergency object.",
        lambda s: s.grow_timeout,
    ),
    Figure("aslab_emergency_objects", "gauge", "Emergency objects in use.", lambda s: s.obj_emergency),
    Figure("aslab_emergency_bytes", "gauge", "Bytes of emergency objects.", lambda s: s.emergency_bytes),
    Figure("aslab_emergency_objects_made", "counter", "Emergency objects made.", lambda s: s.obj_emergency_made),
    Figure("aslab_hits", "counter", "Allocations served by the magazine.", lambda s: s.hits),
    Figure("aslab_misses", "counter", "Allocations that found the magazine empty.", lambda s: s.misses),
    Figure("aslab_waits", "counter", "Allocations that had to wait.", lambda s: s.waits),
    Figure("aslab_late_waits", "counter", "Waits for growth longer than the grow timeout.", lambda s: s.timeouts),
    Figure("aslab_gave_up", "counter", "Callers whose own timeout was over.", lambda s: s.gave_up),
    Figure("aslab_turned_away", "counter", "Callers that max_waiting turned away.", lambda s: s.turned_away),
    Figure("aslab_waiters", "gauge", "Callers waiting now.", lambda s: s.waiters),
    Figure(
        "aslab_oldest_wait_seconds",
        "gauge",
        "Age of the oldest waiting caller, 0 if none waits.",
        lambda s: s.oldest_wait,
    ),
    Figure("aslab_wait_seconds", "histogram", "How long callers waited in line.", lambda s: s.wait_time),
    Figure(
        "aslab_hold_seconds",
        "histogram",
        "How long buffers were held, of a sample of those that are free again.",
        lambda s: s.hold_time,
    ),
    Figure(
        "aslab_oldest_hold_seconds",
        "gauge",
        "For how long the oldest buffer that was noted has been held, 0 if there is none.",
        lambda s: s.oldest_hold,
    ),
)
"""With the labels ``allocator`` and ``cache``."""

OF_ALLOCATORS: tuple[Figure[AllocatorStats], ...] = (
    Figure("aslab_memory_bytes", "gauge", "Bytes at the backends.", lambda s: _bytes(s), "kind"),
    Figure(
        "aslab_memory_limit_bytes",
        "gauge",
        "The most bytes at the backends; absent where there is no bound.",
        lambda s: {"slabs": s.limit, "emergency": s.emergency_limit},
        "kind",
    ),
    Figure(
        "aslab_acquire_seconds",
        "histogram",
        "How long the backends took for each slab, and for each emergency object that a caller waited for.",
        lambda s: {"slabs": s.grow_time, "emergency": s.emergency_time},
        "kind",
    ),
    Figure("aslab_stuck_grows", "counter", "Stuck grows that were set aside.", lambda s: s.kicked),
    Figure("aslab_faults", "gauge", "Faults that are turned on, for a game day.", lambda s: len(s.faults)),
)
"""With the label ``allocator``."""

HEALTH = "aslab_health"
HEALTH_DOC = "1 for the state of the allocator, 0 for the others: ok, degraded or stuck."


def _bytes(stats: AllocatorStats) -> dict[str, Value]:
    return {"slabs": stats.slab_bytes, "emergency": stats.emergency_bytes}


def health_values(stats: AllocatorStats) -> dict[str, float]:
    """Return 1 for the present state and 0 for the others, by its name."""
    now = judge(stats).state
    return {state.value: float(state is now) for state in HealthState}


def by_name(allocators: Allocator | Mapping[str, Allocator]) -> dict[str, Allocator]:
    """Return allocators by the value of their label: that of a single one is ``main``.

    :raises ConfigError: if they are neither
    """
    given = {"main": allocators} if isinstance(allocators, Allocator) else allocators
    if not isinstance(given, Mapping) or not all(isinstance(one, Allocator) for one in given.values()):
        raise ConfigError("allocators", allocators, "it must be an Allocator, or a mapping of names to them")
    return dict(given)
