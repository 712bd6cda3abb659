"""How much slab memory all caches together hold, and may hold, and who comes first.

Each pool has an account. What it was guaranteed and does not hold is set aside: nobody else may have it. The
rest goes to whoever has waited longest: a pool whose callers came later does not grow before, so that one with
large slabs is not starved by those whose small ones always fit.

Sums and the order of those who wait are kept as they change, so that no question costs more with more pools.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Claim = tuple[int, int]
"""Urgency and ticket of the first caller in line; the smaller comes first."""


class Account:
    """What one pool holds, in bytes.

    ``used`` is what its slabs hold until their backend has taken them back, ``returning`` the part of it that is
    on its way there, and ``promised`` what grows under way have been allowed. Changed by `Budget` alone.

    :param claim: who of the pool waits for a slab, if anybody does; `Budget.note` looks
    :param ask: has the pool ask for a slab if it wants one; answers whether it is going to grow
    """

    __slots__ = (
        "ask",
        "claim",
        "guaranteed",
        "not_held",
        "not_promised",
        "promised",
        "rank",
        "returning",
        "slab_size",
        "used",
    )

    def __init__(
        self,
        slab_size: int,
        guaranteed: int,
        claim: Callable[[], Claim | None],
        ask: Callable[[], bool] = lambda: False,
    ) -> None:
        self.slab_size: int = slab_size
        self.guaranteed: int = guaranteed
        self.claim: Callable[[], Claim | None] = claim
        self.ask: Callable[[], bool] = ask
        self.rank: Claim | None = None
        """The claim, as it was noted last."""
        self.used: int = 0
        self.returning: int = 0
        self.promised: int = 0
        self.not_held: int = guaranteed
        """Bytes of the guarantee that it does not hold, or gives back."""
        self.not_promised: int = guaranteed
        """Bytes of the guarantee that it neither holds nor has been promised."""

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
        self.used: int = 0
        """Bytes of all slabs."""
        self._returning = self._promised = self._guaranteed = 0
        self._not_held = self._not_promised = 0  # the sums of what the accounts say
        self._open = 0
        self._claims: list[tuple[Claim, Account]] = []  # a heap; entries whose account has another rank are void
        self._unranked: dict[Account, None] = {}  # found no room; no claim of theirs is in their pool's way

    def open(self, account: Account) -> None:
        """A pool begins."""
        self._open += 1
        self._guaranteed += account.guaranteed
        self._not_held += account.not_held
        self._not_promised += account.not_promised
        self.note(account)

    def close(self, account: Account) -> None:
        """A pool is closed: nothing is set aside for it any more. What it holds counts until it is back."""
        self._open -= 1
        self._change(account, guaranteed=-account.guaranteed)
        self._unranked.pop(account, None)
        self.note(account)

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

    def promise(self, account: Account) -> bool:
        """Set room aside for a grow; False if there is none at present."""
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

    def keep(self, account: Account) -> None:
        """The grow brought its slab."""
        self._change(account, promised=-account.slab_size, used=account.slab_size)

    def break_promise(self, account: Account) -> None:
        """The grow brought none."""
        self._change(account, promised=-account.slab_size)

    def give_back(self, account: Account) -> None:
        """A slab is on its way to its backend."""
        self._change(account, returning=account.slab_size)

    def back(self, account: Account) -> None:
        """It has arrived."""
        self._change(account, returning=-account.slab_size, used=-account.slab_size)

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

    def note(self, account: Account) -> None:
        """Who waits there, or whether a slab would help, may have changed."""
        while (rank := account.claim()) != account.rank:  # again, as a finaliser may have come in between
            account.rank = rank
            if rank is not None:
                heapq.heappush(self._claims, (rank, account))
        if len(self._claims) > 2 * self._open + 64:
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
        self.yielding = True
        return True

    def found_no_room(self, account: Account) -> None:
        """It has asked in vain; `ask_again` has it ask once more when there is room."""
        if account.rank is None or account.within_guarantee:
            self._unranked[account] = None

    def ask_again(self, most: int) -> bool:
        """There may be room: have those ask who found none, in order. Answers whether ``most`` were too few."""
        for account in list(self._unranked):
            if not self.full(account) and not self.yields(account):
                if not most:
                    return True
                most -= 1
                del self._unranked[account]
                account.ask()
        while (first := self.first()) is not None:
            if not most:
                return True
            most -= 1
            if not first.ask():
                return False
        for account in list(self._unranked)[:1]:  # nobody waits in line: others may leave idle what it wants
            account.ask()
        return False
