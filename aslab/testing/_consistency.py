"""The invariants of a cache, in one place: every list and counter, recounted the slow way."""

from __future__ import annotations

from typing import Any

from .._cache import Cache
from .._kmem._state import reachable
from ._inside import pool_of


def check_consistency(cache: Cache[Any]) -> None:
    """Recount everything in a cache. Event loop's thread only, with no other thread using the cache.

    :raises AssertionError: with what does not add up
    """
    pool, stats = pool_of(cache), cache.stats()
    depot = pool.depot
    slabs = depot.slabs
    every = [*slabs.partial, *slabs.complete, *([slabs.condemned] if slabs.condemned else [])]
    slots = {slot for slab in every for slot in slab.slots}
    free = [slot for slab in every for slot in (*slab.freed, *slab.slots[slab.used :])]
    unmade = sum(slab.objects - len(slab.slots) for slab in every)
    cached = [*pool.magazine, *pool.reserve]

    _same("slots in all slabs", len(slots) + unmade, slabs.slots_total)
    _same("slots out of their slabs", len(slots) - len(free), slabs.slots_out)
    _same("slots that say they are out", sum(1 for slot in slots if slot.out), slabs.slots_out)
    _same("slabs with a slot out", sum(1 for slab in every if slab.in_use), slabs.slabs_used)
    _same("slabs made less given back", slabs.created - slabs.destroyed, len(every))
    _same("free slots, each once", len(set(free) | set(cached)) + unmade, len(free) + len(cached) + unmade)
    _same("complete slabs without a free slot", sum(1 for slab in slabs.complete if slab.free), 0)
    _same("partial slabs with a free slot", sum(1 for slab in slabs.partial if not slab.free), 0)
    _same("free slots of no slab", len((set(free) | set(cached)) - slots), 0)
    held = sum(pool.held(one) for one in pool.caches) if pool.config.merge else stats.obj_held
    lingering = len(depot.lingering) + len(pool.emergency.lingering)
    accounted = held + len(free) + unmade + len(cached) + stats.obj_handover + lingering
    _same("held + free + cached + reserved + in hand-over + lingering", accounted, stats.obj_total)
    _same("free slots that may be written to", sum(1 for slot in free + cached if slot.kept and slot.haunted()), 0)
    if stats.obj_held < 0:
        raise AssertionError(f"cache {cache.name!r}: {stats.obj_held} objects held")
    if pool.marks.state not in reachable():
        raise AssertionError(f"cache {cache.name!r}: marks {pool.marks} cannot come about")
    if stats.obj_cached > max(0, pool.magazine.capacity) and depot.lock.acquire(blocking=False):
        depot.lock.release()
        raise AssertionError(f"cache {cache.name!r}: magazine over its capacity")


def _same(what: str, counted: int, kept: int) -> None:
    if counted != kept:
        raise AssertionError(f"{what}: counted {counted}, kept {kept}")
