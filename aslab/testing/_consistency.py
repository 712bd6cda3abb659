"""The invariants of a cache in one place: each structure recounts itself the slow way, and all must add up."""

from __future__ import annotations

from typing import Any

from .._cache import Cache, pool_of
from .._fastpath import CLOSED, REPACK, SHORT
from .._kmem._snapshot import held
from .._kmem._state import reachable


def check_consistency(cache: Cache[Any]) -> None:
    """Recount everything in a cache, and compare with its counters. Never suspends.

    Event loop's thread only, with no other thread using the cache.

    :raises AssertionError: naming what does not add up
    """
    pool, stats = pool_of(cache), cache.stats()
    depot, magazine = pool.depot, pool.magazine
    for part in (depot, pool.waiters, pool.handover, pool.emergency, pool.admission):
        part.check()
    magazine.check(SHORT, pool.arena.budget.short and not pool.closed)
    magazine.check(CLOSED, pool.closed)
    magazine.check(CLOSED, pool.closed, detour=True)
    if pool.moving.able and not pool.moving.in_vain and any(slot.owner for slot in pool.emergency.objects()):
        magazine.check(REPACK, holds=True)

    held_now = stats.obj_held
    if pool.config.merge:
        held_now = sum(held(pool, member.counters) for member in pool.members)
    noted = sum(len(member.holders) for member in pool.members)
    if noted > held_now:
        raise AssertionError(f"cache {cache.name!r}: {noted} buffers noted as held, and {held_now} held")
    elsewhere = len(magazine) + len(pool.reserve) + stats.obj_handover
    elsewhere += len(depot.lingering) + len(pool.emergency.lingering)
    accounted = held_now + depot.slabs.slots_total - depot.slabs.slots_out + elsewhere
    if accounted != stats.obj_total:
        raise AssertionError(
            "held + free + cached + reserved + in hand-over + lingering: "
            f"counted {accounted}, kept {stats.obj_total}"
        )
    if stats.obj_held < 0:
        raise AssertionError(f"cache {cache.name!r}: {stats.obj_held} objects held")
    if pool.marks.state not in reachable():
        raise AssertionError(f"cache {cache.name!r}: marks {pool.marks} cannot be reached")
    if len(magazine) > max(0, magazine.capacity) and depot.lock.acquire(blocking=False):
        depot.lock.release()
        raise AssertionError(f"cache {cache.name!r}: magazine over its capacity")
