"""Nobody starves at the limit: who has waited there for too long gets a slab from who has more than its due.

Where all caches are busy no slab ever becomes empty by itself: what one cache's callers free goes to its next
caller. So after an interval of waiting, another cache's emptiest slab is condemned. It is taken off the lists,
what comes back to it stays there, and when the last object is back it goes. The cost is a slab made anew, which
is why it takes that long; and no cache loses what it was guaranteed, or anything to callers that came later than
its own. Where an object is held for long the slab would be of no use to anybody, so after another interval it is
used again, and the cache left alone for a while, twice as long each time.

Event loop's thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from ._budget import Budget
    from ._pool import Pool


def feed_the_starved(pools: Sequence[Pool[Any]], budget: Budget, patience: float) -> None:
    """One look, for the pool whose first caller has waited longest, if for longer than ``patience`` seconds."""
    for pool in pools:
        if pool.condemned:
            pool.pardon(in_vain=True)
    if budget.sealed:
        return
    before = anyio.current_time() - patience
    starved = [
        pool
        for pool in pools
        if pool.growth.account.rank is not None
        and budget.full(pool.growth.account)
        and (first := pool.line.first) is not None
        and first.since <= before
    ]
    if not starved:
        return
    hungry = min(starved, key=_claim)
    missing = budget.missing(hungry.growth.account)
    for pool in sorted(pools, key=lambda pool: -pool.growth.account.beyond):
        account = pool.growth.account
        if missing <= 0:
            break
        later = account.rank is None or _claim(pool) > _claim(hungry)
        if pool is not hungry and later and account.beyond >= account.slab_size and pool.condemn():
            missing -= account.slab_size


def _claim(pool: Pool[Any]) -> tuple[int, int]:
    rank = pool.growth.account.rank
    assert rank is not None
    return rank
