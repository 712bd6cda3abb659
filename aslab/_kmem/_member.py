"""A cache, as the pool behind it sees it. Several caches may share one pool.

Always true: an open cache is one of its pool's `members`. A member's counters count its own callers only; hits on
the fast path, which shared pools do not use, are counted in the magazine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .._stats import Counters
from ._holders import Holders


@dataclass(slots=True, eq=False)
class Member:
    """One cache of a pool."""

    name: str
    holders: Holders
    """Who holds its buffers."""
    reclaim: Callable[[int], int] | None = None
    """The client's callback: asked to free that many objects, it returns how many it has freed."""
    counters: Counters = field(default_factory=Counters)
