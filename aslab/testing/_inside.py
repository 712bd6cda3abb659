"""The only access to the core's internals, for tests, benchmarks and the lab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._allocator import Allocator
from .._cache import Cache
from .._kmem._pool import Pool
from .._kmem._state import Mark


def pool_of(cache: Cache[Any]) -> Pool[Any]:
    """The pool of a cache, which merged caches share."""
    return cache._pool


def observe_marks(cache: Cache[Any], observer: Callable[[str, Mark, Mark], object]) -> None:
    """Call ``observer`` on each change of a cache's marks, with the event and the marks before and after."""
    pool_of(cache).marks.observer = observer


async def growth_ended(kmem: Allocator) -> None:
    """Wait until no slab is being made."""
    await kmem._engine.worker.idle()


async def given_back(kmem: Allocator) -> None:
    """Wait until every queued release to a backend is done."""
    await kmem._engine.supply.idle()
    await kmem._engine.emergency_supply.idle()
