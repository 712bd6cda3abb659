"""Callers that starve at the limit: a slab is taken from the caches that have the most.

At the limit, with all caches busy, no slab ever becomes empty by itself: what one cache's callers free goes to
its next caller. So once a caller has waited an interval, the emptiest slab of a cache over its guarantee is
condemned: taken off the lists, it keeps the objects that come back to it, and goes back with the last of them. (If
nothing but its cache's reserve lies in it, and fits into the others, it goes back at once.) The
cost is a new slab, hence the delay; and no cache loses its guarantee, or anything to callers that came later than
its own. A slab with an object that is held for long helps nobody, so after another interval it is restored, and
its cache left alone for a while, twice as long each time.

Always true: nothing is kept here from one look to the next, and no stretch without a turn for other tasks grows
with the number of pools.

Event loop's thread only.
"""

from __future__ import annotations

import heapq

from ._account import Account
from ._budget import Budget
from ._wakeup import take_turns


async def look_again(budget: Budget, before: float) -> None:
    """After the ageing task has looked at each pool, rescue callers at the limit that came by ``before``."""
    if budget.limit is None:
        return
    short = False
    for number, account in enumerate(tuple(budget.accounts)):
        if account.tenant.waiting_since is not None and budget.full(account):
            short = True
            break
        await take_turns(number)
    budget.set_short(short=short)
    for number, account in enumerate(tuple(budget.accounts)):
        account.tenant.restore(back_off=True)
        await take_turns(number)
    if not budget.sealed:
        await _rescue_starved(budget, before)


async def _rescue_starved(budget: Budget, before: float) -> None:
    """Condemn slabs for the most urgent and oldest first caller, if it came by ``before``."""
    hungry: Account | None = None
    rank = None
    for number, account in enumerate(tuple(budget.accounts)):
        if account.rank is not None and (rank is None or account.rank < rank) and budget.full(account):
            since = account.tenant.waiting_since
            if since is not None and since <= before:
                rank, hungry = account.rank, account
        await take_turns(number)
    if hungry is None or rank is None:
        return
    largest: list[tuple[int, int, Account]] = []
    for number, account in enumerate(tuple(budget.accounts)):
        if account is not hungry and account.beyond >= account.slab_size:
            heapq.heappush(largest, (-account.beyond, number, account))
        await take_turns(number)
    missing, number = budget.missing(hungry), 0
    while largest and missing > 0 and hungry.rank == rank:
        account = heapq.heappop(largest)[2]
        later = account.rank is None or account.rank > rank
        if later and account.beyond >= account.slab_size and account.tenant.condemn():
            missing -= account.slab_size
        await take_turns(number)
        number += 1
