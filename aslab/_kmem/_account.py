"""What one pool holds of the budget, and what the budget asks of a pool.

Always true: only `Budget` changes an account, so that its sums over all accounts hold.
"""

from __future__ import annotations

from typing import Any, Protocol

from .._fastpath import Magazine

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
        """Choose a slab to give back, at once or as soon as it is empty. Returns whether there was one."""
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
    ``promised`` the room set aside for grows under way, and ``asked`` the room wanted for those not begun yet.
    """

    __slots__ = (
        "asked",
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
        self.asked: int = 0
        self.not_held: int = guaranteed
        """Bytes of the guarantee that it does not hold, or is giving back."""
        self.not_promised: int = guaranteed
        """Bytes of the guarantee that it neither holds nor has been promised."""

    def check(self, kept: int, *, growing: bool, at_rest: bool) -> None:
        """Check what is always true between calls.

        :param kept: bytes of its pool's slabs that are not on their way back
        :param growing: whether its pool is
        :param at_rest: nothing is on its way back to the backend
        :raises AssertionError: naming what does not hold
        """
        held = self.used - self.returning
        assert held == kept, f"bytes of slabs: counted {kept}, kept {held}"
        assert self.promised >= 0, f"{self.promised} bytes promised"
        assert growing or not self.asked, f"{self.asked} bytes asked for, and no grow is to come"
        assert growing or not at_rest or not self.promised, (
            f"{self.promised} bytes promised, and no grow under way"
        )

    @property
    def beyond(self) -> int:
        """Bytes that it keeps beyond its guarantee; negative if below it."""
        return self.used - self.returning - self.guaranteed
