"""How much slab memory all caches together hold, and may hold."""

from __future__ import annotations


class Budget:
    """Bytes of slabs. Event loop's thread only.

    ``used`` is what slabs hold until their backend has taken them back, ``returning`` the part of it that
    is on its way there, and ``promised`` what grows under way have been allowed. The latter two block
    others, but are no limit reached, since what is under way may be stuck.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used: int = 0
        self.returning: int = 0
        self.promised: int = 0

    def full(self, nbytes: int) -> bool:
        """Whether only a slab given back could make room."""
        return self.limit is not None and self.used - self.returning + nbytes > self.limit

    def promise(self, nbytes: int) -> bool:
        """Set room aside for a grow; False if there is none at present."""
        if self.limit is not None and self.used + self.promised + nbytes > self.limit:
            return False
        self.promised += nbytes
        return True

    def keep(self, nbytes: int) -> None:
        """The grow brought its slab."""
        self.promised -= nbytes
        self.used += nbytes

    def give_back(self, nbytes: int) -> None:
        """A slab is on its way to its backend."""
        self.returning += nbytes

    def back(self, nbytes: int) -> None:
        """It has arrived."""
        self.returning -= nbytes
        self.used -= nbytes
