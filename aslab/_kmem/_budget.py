"""How much slab memory all caches together hold, and may hold; who comes first; and nobody starves.

Always true, between calls:

    used, _returning, _promised and the like are the sums of what the accounts say
    used + _promised + what is set aside of the guarantees <= limit, as far as room was asked for by `try_charge`
    an account's rank is the claim that its pool has (`Pool.note_rank`), and the smallest of all is `first`

Each pool has an account. What it was guaranteed and does not hold is set aside: nobody else may have it. The
rest goes to the pool whose caller has waited longest: a pool whose callers came later does not grow before it, so
that one with large slabs is not starved by those whose small ones always fit.

At the limit, where all caches are busy, no slab ever becomes empty by itself: what one cache's callers free goes
to its next caller. So after an interval of waiting, the emptiest slab of a cache over its guarantee is condemned.
It is taken off the lists, what comes back to it stays there, and with the last object it goes. The cost is a slab
made anew, which is why it takes that long; and no cache loses what it was guaranteed, or anything to callers that
came later than its own. A slab with an object that is held for long would be of no use to anybody, so after
another interval it is used again, and the cache left alone for a while, twice as long each time.

Sums and the order of claims are kept as they change, so that no question costs more with more pools. Event loop's
thread only.
"""

from __future__ import annotations

import heapq
from typing import Any, Protocol

from .._fastpath import SHORT, Magazine
from ._wakeup import AT_ONCE, Wakeup, WorkQueue

Claim = tuple[int, int]
"""Urgency and ticket of the first caller in line; the smaller comes first."""


class Tenant(Protocol):
    """What the limits ask of a pool, which lies above them."""

    @property
    def magazine(self) -> Magazine[Any]:
        """Its magazine."""
        ...

    @property
    def waiting_since(self) -> float | None:
        """When its first caller in line came, if there is one."""
        ...

    def ask(self) -> bool:
        """Ask for a slab, if one is wanted; whether it is going to grow."""
        ...

    def spare(self, nbytes: int, rank: Claim | None) -> int:
        """Give back as much of what is idle, for callers of that rank. Returns the number of bytes."""
        ...

    def condemn(self) -> bool:
        """Choose a slab that goes as soon as it is empty, if there is one."""
        ...

    def restore(self, *, back_off: bool) -> None:
        """Use a condemned slab again, if there is one; with ``back_off``, condemn none for a while."""
        ...

    def room_for_emergency(self) -> None:
        """Fewer emergency objects are outstanding. Any thread."""
        ...

    def attend(self) -> None:
        """Look after everything: another thread, or a finaliser, has left something to do."""
        ...


class Account:
    """What one pool holds, in bytes. Changed by `Budget` alone.

    ``used`` is what its slabs hold until their backend has taken them back, ``returning`` the part of it that is
    on its way there, and ``promised`` what grows under way have been allowed.
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
        """The claim of its pool's first caller, if a slab would help that one."""
        self.used: int = 0
        self.returning: int = 0
        self.promised: int = 0
        self.not_held: int = guaranteed
        """Bytes of the guarantee that it does not hold, or gives back."""
        self.not_promised: int = guaranteed
        """Bytes of the guarantee that it neither holds nor has been promised."""

    @property
    def beyond(self) -> int:
        """Bytes that it holds beyond its guarantee."""
        return self.used - self.returning - self.guaranteed

    @property
    def within_guarantee(self) -> bool:
        """Whether one more slab is its own by right."""
        return self.used + self.promised + self.slab_size <= self.guaranteed


class Budget:
    """Bytes of slabs, over all pools.

    What is promised or on its way back blocks others, but is no limit reached, since it may be stuck.
    """

    def __init__(self, limit: int | None, wakeup: Wakeup) -> None:
        self.limit = limit
        self.sealed: bool = False
        """Nothing grows any more."""
        self.closed: bool = False
        """Nobody is asked to grow any more."""
        self.used: int = 0
        """Bytes of all slabs."""
        self.short: bool = False
        """A pool is at the limit, and others have nothing idle: they look at each free."""
        self.asking: bool = False
        """All who found no room are to ask again, soon: `ask_all` must be called."""
        self.reclaims: WorkQueue[int] = WorkQueue()
        """Bytes that clients are to be asked to free."""
        self._wakeup = wakeup
        self._returning = self._promised = self._guaranteed = 0
        self._not_held = self._not_promised = 0  # the sums of what the accounts say
        self._accounts: dict[Account, None] = {}  # those that are open
        self._claims: list[tuple[Claim, Account]] = []  # a heap; entries whose account has another rank are void
        self._unranked: dict[Account, None] = {}  # found no room; no claim of theirs is in their pool's way
        self._yielding = False  # somebody did not grow because another comes first
        self._may_spare: dict[Account, None] = {}  # those that may have idle slabs

    def open(self, account: Account) -> None:
        """A pool begins."""
        self._accounts[account] = None
        self._guaranteed += account.guaranteed
        self._not_held += account.not_held
        self._not_promised += account.not_promised
        account.tenant.magazine.set_watch(SHORT, on=self.short)

    def close(self, account: Account) -> None:
        """A pool is closed: nothing is set aside for it any more. What it holds counts until it is back."""
        self._accounts.pop(account, None)
        self._change(account, guaranteed=-account.guaranteed)
        self._unranked.pop(account, None)
        self._may_spare.pop(account, None)
        self.note(account, None)
        self.ask_all()

    def seal(self) -> None:
        """Nothing grows from here on, and nothing goes back."""
        self.sealed = True
        for account in tuple(self._accounts):
            account.tenant.restore(back_off=False)
            account.tenant.attend()

    @property
    def unpromised(self) -> int | None:
        """Bytes under the limit that are guaranteed to nobody; None without a limit."""
        return None if self.limit is None else self.limit - self._guaranteed

    # -- room

    def full(self, account: Account) -> bool:
        """Whether only a slab given back could make room for one of this pool."""
        return self.missing(account) > 0

    def missing(self, account: Account) -> int:
        """Bytes that others must give back for that, beyond what is on its way."""
        if self.limit is None:
            return 0
        held = self.used - self._returning
        aside = self._not_held - account.not_held
        return max(0, held + aside + account.slab_size - self.limit)

    def try_charge(self, account: Account) -> bool:
        """Set room aside for a grow; False if there is none at present. `commit` or `cancel` must follow."""
        if not self._fits(account, self.used):
            return False
        self._change(account, promised=account.slab_size)
        return True

    def arriving(self, account: Account) -> bool:
        """Whether there will be room as soon as what is on its way back has arrived."""
        return self._fits(account, self.used - self._returning)

    def _fits(self, account: Account, used: int) -> bool:
        aside = self._not_promised - account.not_promised
        return self.limit is None or used + self._promised + aside + account.slab_size <= self.limit

    def commit(self, account: Account) -> None:
        """The grow brought its slab."""
        self._change(account, promised=-account.slab_size, used=account.slab_size)

    def cancel(self, account: Account) -> None:
        """The grow brought none."""
        self._change(account, promised=-account.slab_size)

    def give_back(self, account: Account) -> None:
        """A slab is on its way to its backend."""
        self._change(account, returning=account.slab_size)

    def uncharge(self, account: Account) -> None:
        """It has arrived: others may grow."""
        self._change(account, returning=-account.slab_size, used=-account.slab_size)
        self.ask_all()

    def _change(
        self, account: Account, *, used: int = 0, returning: int = 0, promised: int = 0, guaranteed: int = 0
    ) -> None:
        # Nothing is called here, so that no finaliser comes in between.
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
        """Its first caller has changed, or whether a slab would help that one: None if not."""
        before = self.first() if self._yielding else None
        account.rank = rank
        if rank is not None:
            heapq.heappush(self._claims, (rank, account))
        if self._yielding and self.first() is not before:  # that others have let go first
            self._yielding = False
            self._ask_soon()
        if len(self._claims) > 2 * len(self._accounts) + 64:
            entries, self._claims = self._claims, []
            for entry in entries:
                if entry[1].rank == entry[0]:
                    heapq.heappush(self._claims, entry)

    def first(self) -> Account | None:
        """The pool whose first caller comes before all others', or None."""
        while self._claims:
            rank, account = self._claims[0]
            if account.rank == rank:
                return account
            entry = heapq.heappop(self._claims)
            if entry[1].rank == entry[0]:  # not the void one: a finaliser came in between
                heapq.heappush(self._claims, entry)
        return None

    def yields(self, account: Account) -> bool:
        """Whether the callers of another pool, which is at the limit, have waited longer."""
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
        """It has asked in vain; `ask_all` has it ask once more when there is room."""
        if account.rank is None or account.within_guarantee:
            self._unranked[account] = None

    def ask_all(self) -> None:
        """There may be room: those who found none ask again, in order; of very many the rest a little later."""
        self.asking = False
        if not self.closed and self._ask_again(AT_ONCE):
            self._ask_soon()

    def _ask_again(self, most: int) -> bool:
        """At most so many ask; whether these were too few."""
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
        for account in list(self._unranked)[:1]:  # nobody waits in line: others may leave idle what it wants
            account.tenant.ask()
        return False

    # -- at the limit

    def make_room(self, account: Account) -> None:
        """Have others give back what nobody uses.

        All are looked at once; from then on frees tell (`short`), so a pool that had nothing is not looked at
        again before it says so (`may_spare`), or an interval has passed.
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
        """Returns the number of bytes that are still missing."""
        for other in list(self._may_spare):
            if other is not account:
                missing -= other.tenant.spare(missing, account.rank)
                if missing <= 0:
                    break
                self._may_spare.pop(other, None)
        return missing

    def may_spare(self, account: Account) -> None:
        """One of its slabs may be idle: those at the limit ask for it."""
        self._may_spare[account] = None

    def all_may_spare(self) -> None:
        """An interval has passed: each pool may have idle slabs again."""
        self._may_spare = dict.fromkeys(self._accounts)

    def look_again(self, before: float) -> None:
        """The same, once each pool was looked at: is any at the limit still, and starving since before then?"""
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
        """Condemn slabs for the pool whose first caller has waited longest, if it came before then."""
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
