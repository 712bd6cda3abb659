"""A cache, as the pool behind it knows it: several may share one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .._stats import Counters


@dataclass(slots=True, eq=False)
class Member:
    """One cache of a pool."""

    name: str
    reclaim: Callable[[int], int] | None = None
    """Has the client free so many objects; returns how many it has freed."""
    counters: Counters = field(default_factory=Counters)
