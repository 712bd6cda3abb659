"""How much slab memory all caches hold and may hold, which pool grows first, and how none starves.

Always true, between calls:

    1. used, _returning, _promised, _asked, _guaranteed, _not_held and _not_promised are the sums over the accounts
    2. used + _promised <= limit, and so with the guarantees not yet promised, as `try_charge` grants no more. But
       a guarantee may be given (`open`) while others use that room: until so much is back, no pool is granted
       anything beyond its own guarantee
    3. an account's rank is its pool's claim (`Pool.note_rank`), and `first` returns the account of smallest rank
    4. unless a grow is late, no more pools ask for slabs than there is room for, counting what is on its way back

Each pool has an account. The part of its guarantee that it does not hold is set aside for it alone. The rest goes
to the pool whose caller has waited longest: pools whose callers came later do not grow before it, so a pool with
large slabs is not starved by pools whose small slabs always fit.

When there is room for one slab, of 10,000 pools that wait the first one asks, and the others stay at the limit: a
slab costs the same however many wait. But the backend may be stuck. So once a grow is late, all of them ask: their
callers' time begins, and they get emergency objects when it is over.

Sums and the order of claims are kept up to date, so no query costs more with more pools. Event loop's thread only.
"""

from __future__ import annotations

import heapq
from itertools import islice

from .._fastpath import SHORT
from ._account import Account, Claim
from ._wakeup import AT_ONCE, Wakeup, WorkQueue

LOOKS = 256
"""Pools looked at for idle slabs before other tasks have their turn."""


class Budget:
    """Bytes of slabs, over all pools.

    Bytes promised or on their way back keep others from growing, but do not make the budget `full`: they may be
    stuck, and callers of a full pool get no emergency objects.
    """

    def __init__(self, limit: int | None, wakeup: Wakeup) -> None:
        self.limit = limit
        self.sealed: bool = False
        """Nothing grows any more."""
        self.closed: bool = False
        """`ask_all` asks no pool any more."""
        self.used: int = 0
        """Bytes of all slabs."""
        self.short: bool = False
        """A pool is at the limit and no other has an idle slab: frees look for one (SHORT)."""
        self.asking: bool = False
        """The loop must call `ask_all` soon, for the pools that found no room."""
        self.reclaims: WorkQueue[int] = WorkQueue()
        """Bytes for which to ask clients."""
        self.guarantees: int = 0
        """Counts the guarantees given: each may leave too little for callers that wait in other pools."""
        self._wakeup = wakeup
        self._returning = self._promised = self._asked = self._guaranteed = 0
        self._not_held = self._not_promised = 0  # sums over the accounts
        self.accounts: dict[Account, None] = {}
        """The open ones."""
        self._claims: list[tuple[Claim, Account]] = []  # a heap; an entry is void once its account's rank differs
        self._unranked: dict[int, dict[Account, None]] = {}  # found no room, and have no rank; by size of slab
        self._late: set[Account] = set()  # those whose grow is late
        self._yielding = False  # a pool did not grow because others come first
        self._may_spare: dict[Account, None] = {}  # pools that may have idle slabs
        self._looking = False  # some of those have been looked at; the loop goes on with the others soon

    def open(self, account: Account) -> None:
        """Open the account of a new pool, and set its guarantee aside."""
        self.accounts[account] = None
        self._guaranteed += account.guaranteed
        self._not_held += account.not_held
        self._not_promised += account.not_promised
        account.tenant.magazine.set_watch(SHORT, on=self.short)
        if account.guaranteed and self.limit is not None:
            self.guarantees += 1
            if self.first() is not None:
                self._ask_soon()

    def close(self, account: Account) -> None:
        """Close the account of a closed pool: its guarantee ends. Its slabs count until they are back."""
        self.accounts.pop(account, None)
        self._change(account, guaranteed=-account.guaranteed)
        self._forget(account)
        self._may_spare.pop(account, None)
        self.note(account, None)
        if not self.accounts:  # void entries would keep closed pools, and so what their callbacks refer to
            self._claims.clear()
        self.ask_all()

    def check(self) -> None:
        """Check what is always true between calls, as far as that is quick.

        :raises AssertionError: naming what does not hold
        """
        total = self.used + self._promised
        assert self.limit is None or total <= self.limit, f"{total} bytes used or promised, over the limit"

    @property
    def unpromised(self) -> int | None:
        """The bytes of the limit that no pool is guaranteed; None without a limit."""
        return None if self.limit is None else self.limit - self._guaranteed

    # -- room

    def full(self, account: Account) -> bool:
        """Whether only another slab given back could make room for one of this pool."""
        return self.missing(account) > 0

    def missing(self, account: Account) -> int:
        """The bytes that other pools must give back for that, beyond those on their way."""
        if self.limit is None:
            return 0
        held = self.used - self._returning
        aside = self._not_held - account.not_held
        return max(0, held + aside + account.slab_size - self.limit)

    def try_charge(self, account: Account) -> bool:
        """Set room aside for a grow; False if there is none now. On True, `commit` or `cancel` must follow."""
        if not self._fits(account, self.used):
            return False
        self._change(account, promised=account.slab_size, asked=-account.asked)
        return True

    def try_charge_more(self, account: Account, slabs: int) -> bool:
        """Set room aside for one slab more of a grow that has room for ``slabs``, if others lose little by it.

        Beyond its guarantee, others must have as much free room left as the grow then has.
        """
        so_many = self.used + (slabs + 1) * account.slab_size
        leaves_as_much = self.within_guarantee(account) or self._fits(account, so_many)
        return leaves_as_much and not self.yields(account) and self.try_charge(account)

    def within_guarantee(self, account: Account) -> bool:
        """Whether this pool's guarantee covers one more slab."""
        return account.used + account.promised + account.slab_size <= account.guaranteed

    def arriving(self, account: Account) -> bool:
        """Whether there is room for a slab once everything on its way back has arrived."""
        return self._fits(account, self.used - self._returning)

    def _fits(self, account: Account, used: int) -> bool:
        aside = self._not_promised - account.not_promised
        return self.limit is None or used + self._promised + aside + account.slab_size <= self.limit

    def commit(self, account: Account) -> None:
        """Turn the room set aside into a slab: the grow succeeded."""
        self._late.discard(account)
        self._change(account, promised=-account.slab_size, used=account.slab_size)

    def cancel(self, account: Account) -> None:
        """Give up the room set aside: the grow failed. Others may ask for it."""
        self._late.discard(account)
        self._change(account, promised=-account.slab_size)
        self._stop_yielding()

    def ask_for(self, account: Account) -> None:
        """Note that a pool has asked for a slab: until it is promised or called off, others have less room."""
        if not self.within_guarantee(account):  # that room is set aside for it anyway
            self._change(account, asked=account.slab_size)

    def call_off(self, account: Account) -> None:
        """Note that a pool that has asked for a slab gets none, as there is no room any more."""
        self._change(account, asked=-account.asked)
        self.found_no_room(account)
        self._stop_yielding()

    def grow_is_late(self, account: Account) -> None:
        """Note that this pool's grow is late: others need not let it go first until it ends."""
        self._late.add(account)
        self.ask_all()

    def give_back(self, account: Account) -> None:
        """Note that a slab is on its way to its backend."""
        self._change(account, returning=account.slab_size)

    def uncharge(self, account: Account) -> None:
        """Note that a slab on its way has arrived, and let others grow."""
        self._change(account, returning=-account.slab_size, used=-account.slab_size)
        self.ask_all()

    def _change(
        self,
        account: Account,
        *,
        used: int = 0,
        returning: int = 0,
        promised: int = 0,
        asked: int = 0,
        guaranteed: int = 0,
    ) -> None:
        # Nothing is called here, so no finaliser can run in between.
        account.used += used
        account.returning += returning
        account.promised += promised
        account.asked += asked
        account.guaranteed += guaranteed
        self.used += used
        self._returning += returning
        self._promised += promised
        self._asked += asked
        self._guaranteed += guaranteed
        not_held = account.guaranteed - account.used + account.returning
        not_held *= not_held > 0
        self._not_held += not_held - account.not_held
        account.not_held = not_held
        not_promised = account.guaranteed - account.used - account.promised
        not_promised *= not_promised > 0
        self._not_promised += not_promised - account.not_promised
        account.not_promised = not_promised

    # -- who comes first

    def note(self, account: Account, rank: Claim | None) -> None:
        """Set the rank of ``account``: the claim of its first caller, or None if a slab would help nobody."""
        before = self.first() if self._yielding else None
        account.rank = rank
        if rank is not None:
            heapq.heappush(self._claims, (rank, account))
        if self._yielding and self.first() is not before:  # others let that one go first
            self._stop_yielding()
        if len(self._claims) > 2 * len(self.accounts) + 64:
            entries, self._claims = self._claims, []
            for entry in entries:
                if entry[1].rank == entry[0]:
                    heapq.heappush(self._claims, entry)

    def first(self) -> Account | None:
        """Return the account with the smallest rank, or None."""
        while self._claims:
            rank, account = self._claims[0]
            if account.rank == rank:
                return account
            entry = heapq.heappop(self._claims)
            if entry[1].rank == entry[0]:  # not the void one, as a finaliser pushed another in between
                heapq.heappush(self._claims, entry)
        return None

    def yields(self, account: Account) -> bool:
        """Whether this pool must let others grow first.

        Their callers are more urgent or have waited longer, or they have asked for all the room there is.
        """
        if self.limit is None or self.within_guarantee(account):
            return False
        first = self.first()
        if (first is None or first is account) and (self._late or self._fits(account, self._wanted)):
            return False
        self._yielding = True
        return True

    @property
    def _wanted(self) -> int:
        return self.used - self._returning + self._asked

    def _stop_yielding(self) -> None:
        if self._yielding:
            self._yielding = False
            self._ask_soon()

    def _ask_soon(self) -> None:
        self.asking = True
        self._wakeup.wake()

    def found_no_room(self, account: Account) -> None:
        """Remember that this pool asked in vain, so that `ask_all` asks it again when there is room."""
        if account.rank is None:
            self._unranked.setdefault(account.slab_size, {})[account] = None

    def _forget(self, account: Account) -> None:
        alike = self._unranked.get(account.slab_size, {})
        alike.pop(account, None)
        if not alike:
            self._unranked.pop(account.slab_size, None)

    def ask_all(self) -> None:
        """Have pools that found no room ask again, in order; `AT_ONCE` of them now, the rest a little later."""
        self.asking = self._looking = False
        if not self.closed and self._ask_again(AT_ONCE):
            self._ask_soon()

    def _ask_again(self, most: int) -> bool:
        """Have at most ``most`` pools ask. Returns whether more are left."""
        while (first := self.first()) is not None:
            if not most:
                return True
            most -= 1
            if not first.tenant.ask():
                if self.limit is not None and self.used - self._returning + self._not_held < self.limit:
                    self._yielding = True  # those behind it have not been asked, and there is some room
                return False
        for alike in list(self._unranked.values()):  # no caller is in line
            while alike and not self.full(account := next(iter(alike))) and not self.yields(account):
                if not most:
                    return True
                most -= 1
                self._forget(account)
                account.tenant.ask()
        for alike in list(self._unranked.values())[:1]:  # others may have idle slabs to spare
            next(iter(alike)).tenant.ask()
        return False

    # -- at the limit

    def make_room(self, account: Account) -> None:
        """Have other pools give back idle slabs.

        All are looked at, `LOOKS` of them now and the rest a little later; from then on frees report (`short`),
        and a pool that had nothing is skipped until it reports an idle slab (`may_spare`), or an interval has
        passed.
        """
        self.found_no_room(account)
        if self._looking:
            return
        missing = self.missing(account)
        if missing > 0:
            missing, all_seen = self._spare(account, missing)
        if missing > 0 and all_seen and not self.short:
            self.all_may_spare()
            missing, all_seen = self._spare(account, missing)
        if missing > 0:
            self.set_short(short=True)
            if all_seen:
                self.reclaims.put(missing)
            else:
                self._looking = True
                self._ask_soon()

    def _spare(self, account: Account, missing: int) -> tuple[int, bool]:
        """Have pools spare ``missing`` bytes. Returns the number still missing, and whether all were looked at."""
        for number, other in enumerate(list(islice(self._may_spare, LOOKS + 1))):
            if number == LOOKS:
                return missing, False
            if other is not account:
                missing -= other.tenant.spare(missing, account.rank)
                if missing <= 0:
                    break
                self._may_spare.pop(other, None)
        return missing, True

    def may_spare(self, account: Account) -> None:
        """Note that one of this pool's slabs may be idle, for pools at the limit."""
        self._may_spare[account] = None

    def all_may_spare(self) -> None:
        """Note that each pool may have idle slabs again."""
        self._may_spare = dict.fromkeys(self.accounts)

    def set_short(self, *, short: bool) -> None:
        """Have frees report idle slabs, or no longer."""
        if self.short != short:
            self.short = short
            for account in self.accounts:
                if short:  # written out, as there may be very many
                    account.tenant.magazine.watch_for(SHORT)
                else:
                    account.tenant.magazine.stop_watching(SHORT)
