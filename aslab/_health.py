"""Whether an allocator serves its callers, in one word and the reasons for it.

Judged from a snapshot of the counters alone, so that the same answer can be given in another process that has only
the snapshot. The measure is the age of the oldest waiting caller: whatever is slow, stuck or refused, it matters
as far as somebody waits for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ._checks import format_size
from ._stats import AllocatorStats, CacheStats


class HealthState(enum.StrEnum):
    """The one word."""

    OK = "ok"
    """Callers are served."""
    DEGRADED = "degraded"
    """They are served late, or by emergency objects, or some are turned away."""
    STUCK = "stuck"
    """Somebody has waited for so long that nothing seems to help."""


@dataclass(frozen=True, slots=True)
class Health:
    """The state of an allocator at one moment, and why it is not ok. Made by `Allocator.health`."""

    state: HealthState
    """The worst of all caches."""
    reasons: tuple[str, ...]
    """One line for each thing that is wrong, naming the cache; empty if the state is ok."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.state is HealthState.OK


SLOW, STUCK = 1.0, 10.0
"""Seconds of waiting from which on it is degraded or stuck, by default."""


def judge(stats: AllocatorStats, *, slow: float = SLOW, stuck: float = STUCK) -> Health:
    """Judge a snapshot.

    :param slow: seconds of waiting from which on it is degraded
    :param stuck: seconds of waiting from which on it is stuck
    """
    state, reasons = HealthState.OK, list[str]()
    for cache in stats.caches:
        if cache.growth_late:
            reasons.append(
                f"cache {cache.name!r}: growth has been late for {cache.growth_late_for:.1f} s, and "
                f"{_out(cache.obj_emergency)} out"
            )
        elif cache.growth_failing and (cache.waiters or (cache.obj_emergency and not cache.obj_free)):
            reasons.append(f"cache {cache.name!r}: the last grow failed, {cache.slab_fail} so far")
        if cache.waiters and cache.oldest_wait >= slow:
            reasons.append(
                f"cache {cache.name!r}: {_callers(cache.waiters)}, the oldest for {cache.oldest_wait:.1f} s"
                f"{_why(cache, stats)}"
            )
        if cache.max_waiting is not None and cache.waiters >= cache.max_waiting:
            reasons.append(f"cache {cache.name!r}: max_waiting {cache.max_waiting} is reached")
        if cache.waiters and cache.oldest_wait >= stuck:
            state = HealthState.STUCK
    if reasons and state is HealthState.OK:
        state = HealthState.DEGRADED
    return Health(state, tuple(reasons))


def _out(number: int) -> str:
    return "1 emergency object is" if number == 1 else f"{number} emergency objects are"


def _callers(number: int) -> str:
    return "1 caller waits" if number == 1 else f"{number} callers wait"


def _why(cache: CacheStats, stats: AllocatorStats) -> str:
    if cache.at_limit:
        held = f"{cache.obj_held} objects are held"
        limit = "" if stats.limit is None else f" of {format_size(stats.limit)}"
        return f", at the limit{limit}: {held}"
    if cache.refused or stats.refused:
        return ", and there is no room for more emergency objects"
    if cache.growing:
        return f", and a slab has been on its way for {cache.growing_for:.1f} s"
    return ""
