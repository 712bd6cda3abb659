"""A cache at one moment: its counters, and the few words that messages have of it.

Any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._checks import format_size
from ._flags import ORDINARY
from ._kmem._state import Mark
from ._stats import CacheStats

if TYPE_CHECKING:
    from ._cache import Cache
    from ._kmem._pool import Pool

KVMEM = 1 << 7
"""SPL's flag bit for a cache whose slabs are virtually contiguous; all of aslab's are."""


def cache_stats(pool: Pool[Any], cache: Cache[Any]) -> CacheStats:
    """The counters as one of its caches sees them."""
    slabs, tally, shared = pool.depot.slabs, cache._tally, pool.config.merge
    emergency = len(pool.emergency)
    return CacheStats(
        name=cache.name,
        flags=pool.marks.state.value | pool.config.flags.value | KVMEM,
        size=pool.config.shape.size,
        slab_size=pool.config.shape.slab_size,
        slab_total=len(slabs),
        slab_alloc=slabs.slabs_used,
        slab_max=slabs.slabs_used_max,
        slab_fail=pool.growth.failures,
        slab_create=slabs.created,
        slab_destroy=slabs.destroyed,
        slab_regret=pool.reclaim.demand.regrets,
        obj_total=slabs.slots_total + emergency,
        obj_alloc=slabs.slots_out,
        obj_max=slabs.slots_out_max,
        obj_deadlock=pool.growth.deadlocks,
        obj_emergency=tally.emergency if shared else emergency,
        obj_emergency_spare=pool.emergency.spare,
        obj_emergency_max=tally.emergency_max if shared else pool.emergency.highest,
        obj_held=pool.held(cache),
        obj_cached=len(pool.magazine),
        obj_reserved=len(pool.reserve),
        obj_handover=pool.room.in_handover + pool.mover.in_hand,
        obj_lingering=len(pool.depot.lingering) if shared else pool.lingering,
        obj_reclaimed=tally.reclaimed,
        waiters=tally.waiters,
        hits=cache._hits,
        misses=cache._misses,
        waits=tally.waits,
        grow_timeout=pool.growth.patience.of(ORDINARY),
        timeouts=tally.timeouts,
        sealed=tally.sealed,
        **{f"move_{answer.value}": count for answer, count in pool.mover.answers.items()},
        growing=Mark.GROWING in pool.marks,
        deadlocked=Mark.DEADLOCKED in pool.marks,
        merged=tuple(one.name for one in pool.caches if one is not cache),
    )


def situation(pool: Pool[Any], cache: Cache[Any]) -> str:
    """A cache, and why it may have nothing to give, in a few words for messages. Any thread."""
    words = [f"{pool.held(cache)} held", f"{len(pool.line)} waiting"]
    if pool.config.max_objects is not None:
        words.append(f"max_objects {pool.config.max_objects}")
    if pool.engine.config.limit is not None:
        words.append(
            f"{format_size(pool.engine.budget.used)} of slabs under a limit of "
            f"{format_size(pool.engine.config.limit)}"
        )
    return f"cache {cache.name!r} ({', '.join(words)})"
