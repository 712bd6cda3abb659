"""Holder: who holds a buffer, for how long by now, and where it was allocated."""

from __future__ import annotations

from dataclasses import dataclass

from ._checks import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One buffer that is held at this moment, as far as it was noted. Made by `Allocator.holders`."""

    cache: str
    """The name of its cache."""
    size: int
    """Its bytes."""
    since: float
    """When it was allocated, in seconds by the event loop's clock."""
    seconds: float
    """For how long it has been held."""
    task: str
    """The name of the task that allocated it, or of the thread if no task did."""
    place: str
    """Where, as ``file:line in function``: the first line outside of aslab and of the event loop's code. Empty if
    the task runs nothing but the allocation, as with ``gather(cache.alloc())``."""
    stack: tuple[str, ...]
    """All lines from there outwards, where the whole stack was noted; else that one."""

    def __str__(self) -> str:
        where = f", allocated at {self.place}" if self.place else ""
        return f"{format_size(self.size)} of cache {self.cache!r} for {self.seconds:.1f} s by {self.task!r}{where}"
