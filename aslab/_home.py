"""What a buffer is given of its cache: the way back into the pool, and the counters of the cache itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._config import CacheConfig
from ._fastpath import KeptView, Magazine, Slot
from ._stats import Tally

if TYPE_CHECKING:
    from ._kmem._pool import Pool

T = TypeVar("T")


class CacheHome(Generic[T]):
    """The `Home` of the buffers of one cache; a cache that shares its slabs shares the pool behind it alone.

    It holds the pool's methods themselves, so that a free which finds waiters passes no file more.
    """

    __slots__ = (
        "cache",
        "collected",
        "count_move",
        "count_return",
        "ctor",
        "guard",
        "look_at_lingering",
        "magazine",
        "name",
        "park",
        "settle",
        "size",
        "take_back",
        "view_gone",
    )

    def __init__(self, cache: object, pool: Pool[T], config: CacheConfig[T], tally: Tally) -> None:
        self.cache: Any = cache
        self.name: str = config.name
        self.size: int = config.shape.size
        self.ctor: Callable[[memoryview], T] | None = config.ctor
        self.magazine: Magazine[T] = pool.magazine
        self.guard: AbstractContextManager[Any] = pool.guard
        self.settle: Callable[[], None] = pool.settle
        self.take_back: Callable[[Slot[T]], None] = pool.take_back_managed
        self.collected: Callable[[Slot[T]], None] = pool.come_back
        self.park: Callable[[Slot[T], bool], None] = partial(pool.parking.park, tally)
        self.view_gone: Callable[[KeptView], None] = pool.parking.view_gone
        self.look_at_lingering: Callable[[], None] = pool.parking.look_at_lingering
        self.count_return: Callable[[bool], None] = tally.count_return
        self.count_move: Callable[[], None] = tally.count_move
