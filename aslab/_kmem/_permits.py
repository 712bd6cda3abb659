"""How many bytes of emergency objects there may be, over all caches of an allocator.

Always true: ``outstanding`` <= `Permits.limit`, and it is the sum of what all pools have charged; so the allocator
never has more than ``limit`` + ``emergency_limit`` bytes outstanding at its backends.

They make progress certain while growth is late, so they never count against ``limit``; but a service could fill
its memory with them meanwhile, so they have a bound of their own. Charged is what the backend has outstanding:
from before it is asked until it has the object back, spares included. The last quarter is for PUSHPAGE and
MEMALLOC callers, whose progress frees memory for the others; and once there was a MEMALLOC caller, the last object
is for such callers alone, so that somebody can always finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import EllipsisType
from typing import Any

from .._flags import FINISHES, ORDINARY
from ._waiters import WaitQueue

SHARE = 4
"""Of ``limit``, emergency objects may have one part in so many; and of that, urgent callers keep one."""


class Permits:
    """Bytes of emergency objects: permitted before they are asked for, returned once they are back.

    :param limit: bytes; None is no bound, ``...`` a quarter of ``slab_limit``, if there is one
    :param slab_limit: the allocator's ``limit``
    """

    def __init__(self, limit: int | EllipsisType | None, slab_limit: int | None) -> None:
        self._limit = limit
        self._slab_limit = slab_limit
        self._largest = 0
        self._lock = threading.Lock()
        self.finishing: bool = False
        """There was a MEMALLOC caller."""
        self.outstanding: int = 0
        self.highest: int = 0
        """The most ``outstanding`` has been."""
        self.refused: WaitQueue[Any] = WaitQueue()
        """Waiters of all caches that found no room; event loop's thread only."""
        self.spares: dict[Callable[[], object], None] = {}
        """How to have each cache that keeps objects for its next caller give them back."""

    def open(self, size: int) -> None:
        """A cache may make emergency objects of so many bytes: the default allows at least one."""
        self._largest = max(self._largest, size)

    @property
    def limit(self) -> int | None:
        """The most bytes; None is no bound."""
        if not isinstance(self._limit, EllipsisType):
            return self._limit
        return None if self._slab_limit is None else max(self._slab_limit // SHARE, self._largest)

    def most(self, level: int) -> int | None:
        """The most bytes after an object for such a caller. One object is for anybody."""
        limit = self.limit
        if limit is None or level == FINISHES:
            return limit
        kept = max(self._largest * self.finishing, limit // SHARE * (level == ORDINARY))
        return max(limit - kept, min(self._largest, limit))

    def room(self, nbytes: int, level: int) -> bool:
        """Whether so many more bytes would be within bounds now. Any thread."""
        most = self.most(level)
        return most is None or self.outstanding + nbytes <= most

    def try_charge(self, nbytes: int, level: int) -> bool:
        """Charge so many bytes, if there is room. Any thread, but no finaliser."""
        with self._lock:
            if not self.room(nbytes, level):
                return False
            self.outstanding += nbytes
            self.highest = max(self.highest, self.outstanding)
            return True

    def uncharge(self, nbytes: int) -> None:
        """So many bytes are back, or were never had. Any thread, but no finaliser."""
        with self._lock:
            self.outstanding -= nbytes

    def clear_spares(self) -> None:
        """Somebody found no room: what is kept for callers that may come goes back. Event loop's thread."""
        for give_back in tuple(self.spares):
            give_back()

    def grant(self) -> None:
        """There may be room again: permit those who were refused, in order. Event loop's thread."""
        while (waiter := self.refused.first) is not None:
            if waiter.refused_by is not None and waiter.refused_by.hopeless(waiter):
                waiter.wake()
            elif waiter.refused_by is not None and not waiter.refused_by.grant(waiter):
                if not waiter.refused_by.bound_here(waiter):
                    break
                waiter.wake()  # it is the bound of its cache now: let it wait for that
            self.refused.leave(waiter)
