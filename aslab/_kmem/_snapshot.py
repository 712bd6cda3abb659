"""A cache at one moment: its counters, and the few words that error messages say about it.

Always true: nothing here changes anything. Any thread; while others are busy, the counters may not add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .._checks import format_size
from .._errors import TooManyWaiting
from .._flags import ORDINARY
from .._stats import CacheStats, Counters
from ._holders import Member, who_holds
from ._line import LEVELS
from ._pool import Pool
from ._state import Mark
from ._waiters import Waiter

KVMEM = 1 << 7
"""SPL's flag bit for a cache with virtually contiguous slabs, as all of aslab's are."""


def held(pool: Pool[Any], counters: Counters) -> int:
    """Return the number of objects that a cache's callers hold: those that are nowhere else."""
    if pool.config.merge:
        return counters.handed_out - counters.returned
    elsewhere = len(pool.magazine) + in_handover(pool) + len(pool.reserve)
    return pool.depot.slabs.slots_out - elsewhere + len(pool.emergency) - _lingering(pool)


def in_handover(pool: Pool[Any]) -> int:
    """Return the number of objects on their way to waiters, or about to be moved into."""
    return pool.handover.given + pool.emergency.in_hand + pool.moving.in_hand


def _lingering(pool: Pool[Any]) -> int:
    return len(pool.depot.lingering) + len(pool.emergency.lingering)


def _oldest(line: Iterable[Waiter[Any]], counters: Counters) -> float | None:
    return next((waiter.since for waiter in line if waiter.counters is counters), None)


def cache_stats(pool: Pool[Any], member: Member) -> CacheStats:
    """Return the counters as one of the pool's caches sees them."""
    slabs, shared, counters = pool.depot.slabs, pool.config.merge, member.counters
    emergency, reports = len(pool.emergency), pool.growth.reports
    growing, since = Mark.GROWING in pool.marks, reports.late_since
    firsts = (_oldest(pool.waiters.of_level(level), counters) for level in LEVELS)
    oldest = min((since for since in firsts if since is not None), default=None)
    now = pool.arena.clock() if growing or oldest is not None or since is not None else 0.0
    late_for = 0.0 if since is None else max(0.0, now - since)
    return CacheStats(
        name=member.name,
        flags=pool.marks.bits | pool.config.flags.value | KVMEM,
        size=pool.config.shape.size,
        slab_size=pool.config.shape.slab_size,
        slab_total=len(slabs),
        slab_alloc=slabs.slabs_used,
        slab_max=slabs.slabs_used_max,
        slab_fail=pool.growth.failures,
        slab_create=slabs.created,
        slab_destroy=slabs.destroyed,
        slab_regret=pool.working_set.regrets,
        obj_total=slabs.slots_total + emergency,
        obj_alloc=slabs.slots_out,
        obj_max=slabs.slots_out_max,
        obj_deadlock=pool.growth.deadlocks,
        obj_emergency=counters.emergency if shared else emergency,
        obj_emergency_spare=len(pool.emergency.spares),
        obj_emergency_made=pool.emergency.made,
        emergency_bytes=pool.emergency.nbytes,
        obj_emergency_max=counters.emergency_max if shared else pool.emergency.highest,
        obj_held=held(pool, counters),
        obj_cached=len(pool.magazine),
        obj_free=slabs.free + len(pool.magazine),
        obj_reserved=len(pool.reserve),
        obj_handover=in_handover(pool),
        obj_lingering=len(pool.depot.lingering) if shared else _lingering(pool),
        obj_reclaimed=counters.reclaimed,
        waiters=counters.waiters,
        hits=counters.hits + pool.magazine.hits,
        misses=counters.misses,
        waits=counters.waits,
        grow_timeout=pool.growth.patience.of[ORDINARY],
        timeouts=counters.timeouts,
        sealed=counters.sealed,
        wait_time=counters.wait_times.snapshot(),
        oldest_wait=0.0 if oldest is None else max(0.0, now - oldest),
        hold_time=member.holders.times.snapshot(),
        oldest_hold=member.holders.oldest,
        max_waiting=pool.config.max_waiting,
        gave_up=counters.gave_up,
        turned_away=counters.turned_away,
        refused=len(pool.emergency.refused),
        at_limit=not growing and pool.growth.limit_reached,
        **{f"move_{answer.value}": count for answer, count in pool.moving.answers.items()},
        growing=growing,
        growing_for=max(0.0, now - pool.growth.began) if growing else 0.0,
        growth_late=since is not None,
        growth_late_for=late_for,
        growth_late_total=reports.late_total + late_for,
        growth_failing=reports.failing,
        merged=tuple(one.name for one in pool.members if one is not member),
    )


def situation(pool: Pool[Any], name: str, counters: Counters) -> str:
    """Describe a cache, and why it may have no free object, in a few words for error messages."""
    words = [f"{held(pool, counters)} held", f"{len(pool.waiters)} waiting"]
    if pool.config.max_objects is not None:
        words.append(f"max_objects {pool.config.max_objects}")
    limit = pool.arena.config.limit
    if limit is not None:
        words.append(f"{format_size(pool.arena.budget.used)} of slabs under a limit of {format_size(limit)}")
    return f"cache {name!r} ({', '.join(words)})"


def one_too_many(pool: Pool[Any], counters: Counters, most: int) -> TooManyWaiting:
    """Count a caller that ``max_waiting`` turns away, and return the error for it."""
    counters.turned_away += 1
    name = next((one.name for one in pool.members if one.counters is counters), pool.config.name)
    return TooManyWaiting(f"{situation(pool, name, counters)}: no object is free, and max_waiting is {most}")


def too_late(pool: Pool[Any], member: Member, timeout: float | None) -> TimeoutError:
    """Count a caller whose ``timeout`` is over, and return the error for it."""
    member.counters.gave_up += 1
    first = f"{situation(pool, member.name, member.counters)}: no object came within {timeout:g} s"
    return TimeoutError("\n".join([first, *_who(pool)]))


def _who(pool: Pool[Any]) -> list[str]:
    """The oldest holders of what a pool's callers wait for, a line each; none if they wait for growth alone."""
    holders, theirs = [member.holders for member in pool.members], False
    if not any(holders) and pool.growth.limit_reached and not pool.growth.at_most:
        holders, theirs = list(pool.arena.holders), True  # the limit is in the hands of other caches
    if noted := sum(map(len, holders)):
        return [f"held longest, of {noted} noted:", *who_holds(holders)]
    if not theirs and not any(held(pool, member.counters) for member in pool.members):
        return []
    return [f"who holds them was not noted: holders_sample is {pool.config.holders_sample}, and 1 notes each"]
