"""How much slab memory all caches hold and may hold, which pool grows first, and how none starves.

Always true, between calls:

    1. used, _returning, _promised, _guaranteed, _not_held and _not_promised are the sums over the accounts
    2. used + _promised + the guarantees not yet promised <= limit, as `try_charge` grants no more
    3. an account's rank is its pool's claim (`Pool.note_rank`), and `first` returns the account of smallest rank

Each pool has an account. The part of its guarantee that it does not hold is set aside for it alone. The rest goes
to the pool whose caller has waited longest: pools whose callers came later do not grow before it, so a pool with
large slabs is not starved by pools whose small slabs always fit.

At the limit, with all caches busy, no slab ever becomes empty by itself: what one cache's callers free goes to
its next caller. So once a caller has waited an interval, the emptiest slab of a cache over its guarantee is
condemned: taken off the lists, it keeps the objects that come back to it, and goes back with the last of them. The
cost is a new slab, hence the delay; and no cache loses its guarantee, or anything to callers that came later than
its own. A slab with an object that is held for long helps nobody, so after another interval it is restored, and
its cache left alone for a while, twice as long each time.

Sums and the order of claims are kept up to date, so no query costs more with more pools. Event loop's thread only.
"""

from __future__ import annotations

import heapq
from typing import Any, Protocol

from .._fastpath import SHORT, Magazine
from ._wakeup import AT_ONCE, Wakeup, WorkQueue

Claim = tuple[int, int]
"""Urgency and ticket of the first caller in line; smaller comes first."""


class Tenant(Protocol):
    """What the budget asks of a pool, which lies above it."""

    @property
    def magazine(self) -> Magazine[Any]:
        """Its magazine."""
        ...

    @property
    def waiting_since(self) -> float | None:
        """When its first caller in line came; None if nobody waits."""
        ...

    def ask(self) -> bool:
        """Ask for a slab, if one is wanted. Returns whether the pool is going to grow."""
        ...

    def spare(self, nbytes: int, rank: Claim | None) -> int:
        """Give back idle slabs of at least ``nbytes``, or all, for a caller of ``rank``. Returns their bytes."""
        ...

    def condemn(self) -> bool:
        """Choose a slab to give back as soon as it is empty. Returns whether there was one to choose."""
        ...

    def restore(self, *, back_off: bool) -> None:
        """Return the condemned slab to use, if there is one; with ``back_off``, condemn none for a while."""
        ...

    def room_for_emergency(self) -> None:
        """Note that fewer emergency objects are outstanding. Any thread."""
        ...

    def attend(self) -> None:
        """Do whatever another thread or a finaliser has left to do."""
        ...


class Account:
    """What one pool holds, in bytes. Only `Budget` changes it.

    ``used`` counts its slabs until their backend has them back, ``returning`` the part of that on its way back,
    and ``promised`` the room set aside for grows under way.
    """

    __slots__ = (
        "guaranteed",
        "not_held",
        "not_promised",
        "promised",
        "rank",
        "returning",
        "slab_size",
        "tenant",
        "used",
    )

    def __init__(self, slab_size: int, guaranteed: int, tenant: Tenant) -> None:
        self.slab_size: int = slab_size
        self.guaranteed: int = guaranteed
        self.tenant: Tenant = tenant
        self.rank: Claim | None = None
        """The claim of its pool's first caller, if a slab would help that caller; else None."""
        self.used: int = 0
        self.returning: int = 0
        self.promised: int = 0
        self.not_held: int = guaranteed
        """Bytes of the guarantee that it does not hold, or is giving back."""
        self.not_promised: int = guaranteed
        """Bytes of the guarantee that it neither holds nor has been promised."""

    @property
    def beyond(self) -> int:
        """Bytes that it keeps beyond its guarantee; negative if below it."""
        return self.used - self.returning - self.guaranteed

    @property
    def within_guarantee(self) -> bool:
        """Whether its guarantee covers one more slab."""
        return self.used + self.promised + self.slab_size <= self.guaranteed


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
        self._wakeup = wakeup
        self._returning = self._promised = self._guaranteed = 0
        self._not_held = self._not_promised = 0  # sums over the accounts
        self._accounts: dict[Account, None] = {}  # the open ones
        self._claims: list[tuple[Claim, Account]] = []  # a heap; an entry is void once its account's rank differs
        self._unranked: dict[Account, None] = {}  # found no room, and have no rank or are within their guarantee
        self._yielding = False  # a pool did not grow because another comes first
        self._may_spare: dict[Account, None] = {}  # pools that may have idle slabs

    def open(self, account: Account) -> None:
        """Open the account of a new pool, and set its guarantee aside."""
        self._accounts[account] = None
        self._guaranteed += account.guaranteed
        self._not_held += account.not_held
        self._not_promised += account.not_promised
        account.tenant.magazine.set_watch(SHORT, on=self.short)

    def close(self, account: Account) -> None:
        """Close the account of a closed pool: its guarantee ends. Its slabs count until they are back."""
        self._accounts.pop(account, None)
        self._change(account, guaranteed=-account.guaranteed)
        self._unranked.pop(account, None)
        self._may_spare.pop(account, None)
        self.note(account, None)
        self.ask_all()

    def seal(self) -> None:
        """Freeze slab memory: from here on nothing grows, and nothing is given back."""
        self.sealed = True
        for account in tuple(self._accounts):
            account.tenant.restore(back_off=False)
            account.tenant.attend()

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
        self._change(account, promised=account.slab_size)
        return True

    def arriving(self, account: Account) -> bool:
        """Whether there is room for a slab once everything on its way back has arrived."""
        return self._fits(account, self.used - self._returning)

    def _fits(self, account: Account, used: int) -> bool:
        aside = self._not_promised - account.not_promised
        return self.limit is None or used + self._promised + aside + account.slab_size <= self.limit

    def commit(self, account: Account) -> None:
        """Turn the room set aside into a slab: the grow succeeded."""
        self._change(account, promised=-account.slab_size, used=account.slab_size)

    def cancel(self, account: Account) -> None:
        """Give up the room set aside: the grow failed."""
        self._change(account, promised=-account.slab_size)

    def give_back(self, account: Account) -> None:
        """Note that a slab is on its way to its backend."""
        self._change(account, returning=account.slab_size)

    def uncharge(self, account: Account) -> None:
        """Note that a slab on its way has arrived, and let others grow."""
        self._change(account, returning=-account.slab_size, used=-account.slab_size)
        self.ask_all()

    def _change(
        self, account: Account, *, used: int = 0, returning: int = 0, promised: int = 0, guaranteed: int = 0
    ) -> None:
        # Nothing is called here, so no finaliser can run in between.
        account.used += used
        account.returning += returning
        account.promised += promised
        account.guaranteed += guaranteed
        self.used += used
        self._returning += returning
        self._promised += promised
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
            self._yielding = False
            self._ask_soon()
        if len(self._claims) > 2 * len(self._accounts) + 64:
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
        """Whether this pool must let another grow first, whose callers are more urgent or have waited longer."""
        if self.limit is None or account.within_guarantee:
            return False
        first = self.first()
        if first is None or first is account:
            return False
        self._yielding = True
        return True

    def _ask_soon(self) -> None:
        self.asking = True
        self._wakeup.wake()

    def found_no_room(self, account: Account) -> None:
        """Remember that this pool asked in vain, so that `ask_all` asks it again when there is room."""
        if account.rank is None or account.within_guarantee:
            self._unranked[account] = None

    def ask_all(self) -> None:
        """Have pools that found no room ask again, in order; `AT_ONCE` of them now, the rest a little later."""
        self.asking = False
        if not self.closed and self._ask_again(AT_ONCE):
            self._ask_soon()

    def _ask_again(self, most: int) -> bool:
        """Have at most ``most`` pools ask. Returns whether more are left."""
        for account in list(self._unranked):
            if not self.full(account) and not self.yields(account):
                if not most:
                    return True
                most -= 1
                del self._unranked[account]
                account.tenant.ask()
        while (first := self.first()) is not None:
            if not most:
                return True
            most -= 1
            if not first.tenant.ask():
                if self.limit is not None and self.used - self._returning + self._not_held < self.limit:
                    self._yielding = True  # those behind it have not been asked, and there is some room
                return False
        for account in list(self._unranked)[:1]:  # no caller is in line: others may have idle slabs to spare
            account.tenant.ask()
        return False

    # -- at the limit

    def make_room(self, account: Account) -> None:
        """Have other pools give back idle slabs.

        All are looked at once; from then on frees report (`short`), and a pool that had nothing is skipped until
        it reports an idle slab (`may_spare`), or an interval has passed.
        """
        self.found_no_room(account)
        missing = self.missing(account)
        if missing > 0:
            missing = self._spare(account, missing)
        if missing > 0 and not self.short:
            self._may_spare = dict.fromkeys(self._accounts)
            missing = self._spare(account, missing)
        if missing > 0:
            self._set_short(short=True)
            self.reclaims.put(missing)

    def _spare(self, account: Account, missing: int) -> int:
        """Have pools spare ``missing`` bytes. Returns the number still missing."""
        for other in list(self._may_spare):
            if other is not account:
                missing -= other.tenant.spare(missing, account.rank)
                if missing <= 0:
                    break
                self._may_spare.pop(other, None)
        return missing

    def may_spare(self, account: Account) -> None:
        """Note that one of this pool's slabs may be idle, for pools at the limit."""
        self._may_spare[account] = None

    def all_may_spare(self) -> None:
        """Note that each pool may have idle slabs again, as an interval has passed."""
        self._may_spare = dict.fromkeys(self._accounts)

    def look_again(self, before: float) -> None:
        """After the ageing task has looked at each pool, rescue callers at the limit that came by ``before``."""
        waiting = [account for account in self._accounts if account.tenant.waiting_since is not None]
        self._set_short(short=any(self.full(account) for account in waiting))
        for account in tuple(self._accounts):
            account.tenant.restore(back_off=True)
        if not self.sealed:
            self._rescue_starved(before)

    def _set_short(self, *, short: bool) -> None:
        if self.short != short:
            self.short = short
            for account in self._accounts:
                account.tenant.magazine.set_watch(SHORT, on=short)

    def _rescue_starved(self, before: float) -> None:
        """Condemn slabs for the most urgent and oldest first caller, if it came by ``before``."""
        starved = [
            (account.rank, account)
            for account in self._accounts
            if account.rank is not None
            and self.full(account)
            and (since := account.tenant.waiting_since) is not None
            and since <= before
        ]
        if not starved:
            return
        rank, hungry = min(starved, key=lambda claim: claim[0])
        missing = self.missing(hungry)
        for account in sorted(self._accounts, key=lambda account: -account.beyond):
            if missing <= 0:
                break
            later = account.rank is None or account.rank > rank
            over = account.beyond >= account.slab_size
            if account is not hungry and later and over and account.tenant.condemn():
                missing -= account.slab_size
