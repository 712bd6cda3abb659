"""How much slab memory all caches together hold, and may hold, and who comes first.

Each pool has an account. What it was guaranteed and does not hold is set aside: nobody else may have it. The
rest goes to whoever has waited longest: a pool whose callers came later does not grow before, so that one with
large slabs is not starved by those whose small ones always fit.
"""

from __future__ import annotations

from collections.abc import Callable

Claim = tuple[int, int]
"""Urgency and ticket of the first caller in line; the smaller comes first."""


class Account:
    """What one pool holds, in bytes.

    ``used`` is what its slabs hold until their backend has taken them back, ``returning`` the part of it that is
    on its way there, and ``promised`` what grows under way have been allowed.

    :param claim: who of the pool waits for a slab, if anybody does
    """

    __slots__ = ("claim", "closed", "guaranteed", "promised", "returning", "slab_size", "used")

    def __init__(self, slab_size: int, guaranteed: int, claim: Callable[[], Claim | None]) -> None:
        self.slab_size: int = slab_size
        self.guaranteed: int = guaranteed
        self.claim: Callable[[], Claim | None] = claim
        self.used: int = 0
        self.returning: int = 0
        self.promised: int = 0
        self.closed: bool = False

    @property
    def beyond(self) -> int:
        """Bytes that it holds beyond what it was guaranteed."""
        return self.used - self.returning - self.guaranteed

    @property
    def within_guarantee(self) -> bool:
        """Whether one more slab is its own by right."""
        return self.used + self.promised + self.slab_size <= self.guaranteed


class Budget:
    """Bytes of slabs. Event loop's thread only.

    What is promised or on its way back blocks others, but is no limit reached, since it may be stuck.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.sealed: bool = False
        """Nothing grows any more."""
        self.yielding: bool = False
        """Somebody did not grow because another comes first. Cleared by who makes them all ask again."""
        self._accounts: list[Account] = []

    def open(self, account: Account) -> None:
        """A pool begins."""
        self._accounts.append(account)

    def close(self, account: Account) -> None:
        """A pool is closed: nothing is set aside for it any more. What it holds counts until it is back."""
        account.guaranteed = 0
        account.closed = True
        self._forget(account)

    @property
    def used(self) -> int:
        """Bytes of all slabs."""
        return sum(account.used for account in self._accounts)

    @property
    def unpromised(self) -> int | None:
        """Bytes under the limit that are guaranteed to nobody; None without a limit."""
        if self.limit is None:
            return None
        return self.limit - sum(account.guaranteed for account in self._accounts)

    def full(self, account: Account) -> bool:
        """Whether only a slab given back could make room for one of this pool."""
        return self.missing(account) > 0

    def missing(self, account: Account) -> int:
        """Bytes that others must give back for that, beyond what is on its way."""
        if self.limit is None:
            return 0
        held = sum(one.used - one.returning for one in self._accounts)
        aside = sum(
            max(0, one.guaranteed - one.used + one.returning) for one in self._accounts if one is not account
        )
        return max(0, held + aside + account.slab_size - self.limit)

    def yields(self, account: Account) -> bool:
        """Whether the callers of another pool, which is at the limit, have waited longer."""
        if self.limit is None or account.within_guarantee:
            return False
        mine = account.claim()
        for one in self._accounts:
            theirs = None if one is account else one.claim()
            if theirs is not None and (mine is None or theirs < mine):
                self.yielding = True
                return True
        return False

    def promise(self, account: Account) -> bool:
        """Set room aside for a grow; False if there is none at present."""
        if not self._fits(account, sum(one.used for one in self._accounts)):
            return False
        account.promised += account.slab_size
        return True

    def arriving(self, account: Account) -> bool:
        """Whether there will be room as soon as what is on its way back has arrived."""
        return self._fits(account, sum(one.used - one.returning for one in self._accounts))

    def _fits(self, account: Account, used: int) -> bool:
        if self.limit is None:
            return True
        promised = sum(one.promised for one in self._accounts)
        others = (one for one in self._accounts if one is not account)
        aside = sum(max(0, one.guaranteed - one.used - one.promised) for one in others)
        return used + promised + aside + account.slab_size <= self.limit

    def keep(self, account: Account) -> None:
        """The grow brought its slab."""
        account.promised -= account.slab_size
        account.used += account.slab_size

    def break_promise(self, account: Account) -> None:
        """The grow brought none."""
        account.promised -= account.slab_size
        self._forget(account)

    def give_back(self, account: Account) -> None:
        """A slab is on its way to its backend."""
        account.returning += account.slab_size

    def back(self, account: Account) -> None:
        """It has arrived."""
        account.returning -= account.slab_size
        account.used -= account.slab_size
        self._forget(account)

    def _forget(self, account: Account) -> None:
        if account.closed and not account.used and not account.promised:
            self._accounts.remove(account)
