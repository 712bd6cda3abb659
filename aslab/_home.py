"""What a buffer knows of its cache: the way back into the pool, and the cache's own counters.

Always true: a home never changes, and stays usable after its cache is closed: a buffer freed later still returns
to the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ._fastpath import Buffer, KeptView, Noted, Origin, Slot
from ._kmem import _frees as frees
from ._kmem._holders import Member
from ._kmem._pool import Pool

T = TypeVar("T")

HandOut: TypeAlias = Callable[[Slot[T], Noted | None], Buffer[T]]


class CacheHome(Origin[T]):
    """The `Home` of one cache's buffers. Caches that share a pool have a home each.

    It holds the functions of _frees.py directly, so that a free that finds waiters goes through one file fewer.
    """

    __slots__ = (
        "_counters",
        "_pool",
        "cache",
        "collected",
        "ctor",
        "guard",
        "hand_out",
        "name",
        "park",
        "settle",
        "take_back",
        "view_gone",
    )

    def __init__(self, cache: object, pool: Pool[T], member: Member, hand_out: HandOut[T]) -> None:
        self.name: str = member.name
        self.cache: Any = cache
        self.size = pool.config.shape.size
        config = pool.config
        callbacks = config.ctor is not None or config.reclaim is not None
        self.seen = callbacks or pool.arena.config.reaches_client
        self.movable = False
        self.lingering = None
        self.ctor: Callable[[memoryview], T] | None = pool.config.ctor
        self.magazine = pool.magazine
        self.guard: AbstractContextManager[Any] = pool.guard
        self.hand_out: HandOut[T] = hand_out
        self.settle: Callable[[], None] = partial(frees.settle, pool)
        self.take_back: Callable[[Slot[T]], None] = partial(frees.take_back, pool)
        self.collected: Callable[[Slot[T]], None] = partial(frees.collected, pool)
        self.park: Callable[[Slot[T], bool, Noted | None], None] = partial(frees.park, pool, member.counters)
        self.view_gone: Callable[[KeptView], None] = partial(frees.view_gone, pool)
        self._pool = pool
        self._counters = member.counters

    # What is rare, and not called by the garbage collector, is found by way of the pool: a bound function each
    # would be another object for the collector in every cache.

    def look_at_lingering(self) -> None:
        """Take back the slots that need not linger any more."""
        frees.look_at_lingering(self._pool)

    def count_return(self, emergency: bool, /) -> None:
        """Count the end of a managed buffer."""
        self._counters.count_return(emergency)

    def count_move(self) -> None:
        """Count an emergency object that was moved into a slab."""
        self._counters.count_move()
