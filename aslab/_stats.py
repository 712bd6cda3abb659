"""Snapshots of the counters, and the text of /proc/spl/kmem/slab."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What is counted for each cache by itself, also where several share their slabs.

    The last five only for managed buffers, whose every coming and going is seen.
    """

    hits: int = 0
    misses: int = 0
    waiters: int = 0
    waits: int = 0
    timeouts: int = 0
    sealed: int = 0
    handed_out: int = 0
    returned: int = 0
    emergency: int = 0
    emergency_max: int = 0
    reclaimed: int = 0

    def count_return(self, emergency: bool) -> None:
        """A managed buffer has ended."""
        self.returned += 1
        self.emergency -= emergency

    def count_move(self) -> None:
        """An emergency object was moved into a slab."""
        self.emergency -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """The counters of one cache at one moment. The slab and object names have SPL's meaning.

    ``obj_alloc == obj_held - obj_emergency + obj_cached + obj_reserved + obj_handover + obj_lingering`` at every
    moment. Where caches share slabs, what is said of slabs and of free objects holds for all of them together, the
    other counters for this cache alone, and ``obj_alloc`` has what all of them hold.
    """

    name: str
    """The cache's name."""
    flags: int
    """Its marks and flags, with SPL's bit numbers."""
    size: int
    """Bytes of one object."""
    slab_size: int
    """Bytes of one slab, in whole pages."""
    slab_total: int
    """Slabs there are."""
    slab_alloc: int
    """Slabs with at least one object out."""
    slab_max: int
    """The most ``slab_alloc`` has been."""
    slab_fail: int
    """Grows that ended without a slab."""
    slab_create: int
    """Slabs ever made."""
    slab_destroy: int
    """Slabs ever given back."""
    slab_regret: int
    """Times that it grew again within its ageing time after it gave slabs back under pressure."""
    obj_total: int
    """Objects in all slabs, plus emergency objects."""
    obj_alloc: int
    """Objects out of their slabs, those in the magazine included, emergency objects not."""
    obj_max: int
    """The most ``obj_alloc`` has been."""
    obj_deadlock: int
    """Times that DEADLOCKED was set: one for each episode, however many callers waited."""
    obj_emergency: int
    """Emergency objects outstanding."""
    obj_emergency_max: int
    """The most of them there have been."""
    obj_emergency_spare: int
    """Emergency objects that were freed while growth is late, and are kept for the next caller."""
    obj_held: int
    """Objects that callers hold, emergency objects included."""
    obj_cached: int
    """Free objects in the magazine."""
    obj_reserved: int
    """Objects set aside for PUSHPAGE and MEMALLOC callers now."""
    obj_handover: int
    """Objects on their way to waiters, or which something moves into just now."""
    obj_lingering: int
    """Objects that were freed while others kept a view object of theirs: used last, and not given back before that
    is gone. Emergency objects included, unless caches share slabs."""
    obj_reclaimed: int
    """Objects that its ``reclaim`` callback says it has freed."""
    waiters: int
    """Callers that wait in line now."""
    hits: int
    """Allocations that the magazine served."""
    misses: int
    """Allocations that found it empty."""
    waits: int
    """Allocations that had to wait."""
    grow_timeout: float
    """Seconds that a SLEEP caller waits for growth now, before it takes an emergency object."""
    timeouts: int
    """Waits that outlasted that, or what a more urgent caller has."""
    sealed: int
    """Allocations that would have had it grow, had the allocator not been sealed."""
    move_yes: int
    """Objects moved."""
    move_no: int
    """Answers NO of the move callback, exceptions included."""
    move_later: int
    """Answers LATER; in a movable cache, moves in vain since the buffer was pinned meanwhile."""
    move_dont_need: int
    """Answers DONT_NEED: objects that the client gave up."""
    move_dont_know: int
    """Answers DONT_KNOW."""
    growing: bool
    """A slab has been asked for and has not come yet."""
    deadlocked: bool
    """It is late: callers take emergency objects without waiting."""
    merged: tuple[str, ...]
    """Other caches that share its slabs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorStats:
    """Totals over all caches at one moment."""

    slab_bytes: int
    """Bytes of all slabs, until their backend has them back."""
    limit: int | None
    """The most ``slab_bytes`` may become."""
    emergency_bytes: int
    """Bytes of all emergency objects, those that are kept included, until their backend has them back."""
    emergency_bytes_max: int
    """The most ``emergency_bytes`` has been."""
    emergency_limit: int | None
    """The most it may become."""
    kicked: int
    """Grows that were set aside because they were stuck."""
    sealed: bool
    """Nothing grows any more."""
    caches: tuple[CacheStats, ...]
    """Each cache, in the order of creation."""

    @property
    def obj_held(self) -> int:
        """Objects that callers hold, over all caches."""
        return sum(cache.obj_held for cache in self.caches)

    @property
    def obj_emergency(self) -> int:
        """Emergency objects outstanding, over all caches."""
        return sum(cache.obj_emergency for cache in self.caches)

    @property
    def waiters(self) -> int:
        """Callers that wait, over all caches."""
        return sum(cache.waiters for cache in self.caches)


HEADER = (
    "--------------------- cache -------------------------------------------------------  "
    "----- slab ------  ---- object -----  --- emergency ---\n"
    "name                                    flags      size     alloc slabsize  objsize  "
    "total alloc   max  total alloc   max  dlock alloc   max\n"
)


def row(stats: CacheStats) -> str:
    """One line of the table, in SPL's widths."""
    return (
        f"{stats.name:<36}  0x{stats.flags:05x} {stats.slab_size * stats.slab_total:9d} "
        f"{stats.size * stats.obj_alloc:9d} {stats.slab_size:8d} {stats.size:8d}  "
        f"{stats.slab_total:5d} {stats.slab_alloc:5d} {stats.slab_max:5d}  "
        f"{stats.obj_total:5d} {stats.obj_alloc:5d} {stats.obj_max:5d}  "
        f"{stats.obj_deadlock:5d} {stats.obj_emergency:5d} {stats.obj_emergency_max:5d}\n"
    )
