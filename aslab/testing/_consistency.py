"""The invariants of a cache, for tests."""

from __future__ import annotations

from typing import Any

from .._cache import Cache, pool_of
from .._kmem._invariants import check


def check_consistency(cache: Cache[Any]) -> None:
    """Recount everything in a cache, and compare with its counters. Never suspends.

    Event loop's thread only, with no other thread using the cache.

    :raises AssertionError: naming what does not add up
    """
    held = cache.stats().obj_held
    if held < 0:
        raise AssertionError(f"cache {cache.name!r}: {held} objects held")
    check(pool_of(cache))
