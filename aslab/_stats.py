"""Snapshots of the counters, and the text of /proc/spl/kmem/slab."""

from __future__ import annotations

from dataclasses import dataclass, field

from ._histogram import Histogram, Times


@dataclass(slots=True)
class Counters:
    """Counters of one cache, kept apart even where several caches share their slabs.

    Those from ``handed_out`` on count managed buffers. Compiled code does not count those of a movable cache: the
    counters are read only where caches share their slabs.
    """

    hits: int = 0
    misses: int = 0
    waiters: int = 0
    waits: int = 0
    timeouts: int = 0
    sealed: int = 0
    gave_up: int = 0
    turned_away: int = 0
    wait_times: Times = field(default_factory=Times)
    waited_long: bool = False
    """A caller had to wait for long for the object that it has just got, and is noted as it is handed out."""
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
    moment. Where caches share slabs, the counters of slabs and free objects are those of all of them together, and
    so is ``obj_alloc``; the other counters are those of this cache alone.
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
    """Slabs that exist now."""
    slab_alloc: int
    """Slabs with at least one object in use."""
    slab_max: int
    """The highest ``slab_alloc`` so far."""
    slab_fail: int
    """Grows that failed to make a slab."""
    slab_create: int
    """Slabs made so far."""
    slab_destroy: int
    """Slabs given back so far."""
    slab_regret: int
    """How often it grew again within one ageing period after giving slabs back under pressure."""
    obj_total: int
    """Objects in all slabs, plus emergency objects."""
    obj_alloc: int
    """Objects taken from their slabs, including those in the magazine, without emergency objects."""
    obj_max: int
    """The highest ``obj_alloc`` so far."""
    obj_deadlock: int
    """How often DEADLOCKED was set: once per episode, no matter how many callers waited."""
    obj_emergency: int
    """Emergency objects outstanding."""
    obj_emergency_max: int
    """The highest ``obj_emergency`` so far."""
    obj_emergency_made: int
    """Emergency objects made so far."""
    emergency_bytes: int
    """Bytes of its emergency objects, spare ones and those in the making included, until the backend has them."""
    obj_emergency_spare: int
    """Emergency objects that were freed while growth was late and are kept for the next caller."""
    obj_held: int
    """Objects held by callers, including emergency objects."""
    obj_cached: int
    """Free objects in the magazine."""
    obj_free: int
    """Free objects, in the slabs and in the magazine."""
    obj_reserved: int
    """Objects now set aside for PUSHPAGE and MEMALLOC callers."""
    obj_handover: int
    """Objects on their way to a waiter, or the target of a move in progress."""
    obj_lingering: int
    """Objects that were freed while a view object of them was still referenced. They are reused last, and their
    memory is not given back before the view is gone. Includes emergency objects, unless caches share slabs."""
    obj_reclaimed: int
    """Objects that the ``reclaim`` callback reported as freed."""
    waiters: int
    """Callers waiting now."""
    hits: int
    """Allocations that the magazine served."""
    misses: int
    """Allocations that found the magazine empty."""
    waits: int
    """Allocations that had to wait."""
    grow_timeout: float
    """Seconds that a SLEEP caller now waits for growth before it tries an emergency object."""
    timeouts: int
    """Waits that exceeded that, or the shorter time of a more urgent caller."""
    wait_time: Histogram
    """How long callers were in line, however that ended: each that found nothing free."""
    oldest_wait: float
    """Seconds that the oldest waiting caller has waited; 0 if nobody waits."""
    hold_time: Histogram
    """How long buffers were held that are free again, of the allocations that ``holders_sample`` picks."""
    oldest_hold: float
    """Seconds for which the oldest buffer that was noted (`Allocator.holders`) has been held; 0 if none is."""
    max_waiting: int | None
    """The most SLEEP callers that may wait; None is unbounded."""
    gave_up: int
    """Callers whose own ``timeout`` was over before an object came."""
    turned_away: int
    """Callers that got `TooManyWaiting`."""
    refused: int
    """Waiting callers for whom ``max_emergency`` leaves no room now."""
    at_limit: bool
    """It may not grow now, because of ``limit``, ``max_objects`` or `Allocator.seal`: only a free can help."""
    sealed: int
    """Allocations that would have caused growth if the allocator were not sealed."""
    move_yes: int
    """Objects moved."""
    move_no: int
    """NO answers of the move callback, including exceptions."""
    move_later: int
    """LATER answers; in a movable cache, moves given up because the buffer was pinned in the meantime."""
    move_dont_need: int
    """DONT_NEED answers: objects that the client gave up."""
    move_dont_know: int
    """DONT_KNOW answers."""
    growing: bool
    """A slab has been requested and is not there yet."""
    growing_for: float
    """Seconds since it was requested; 0 if none is."""
    growth_late: bool
    """Growth is late, SPL's DEADLOCKED: callers take emergency objects without waiting."""
    growth_late_for: float
    """Seconds since growth became late; 0 if it is not."""
    growth_late_total: float
    """Seconds in which growth was late so far, ``growth_late_for`` included."""
    growth_failing: bool
    """The last grow failed."""
    merged: tuple[str, ...]
    """The names of other caches that share its slabs."""

    @property
    def deadlocked(self) -> bool:
        """``growth_late`` by SPL's name."""
        return self.growth_late


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorStats:
    """Totals over all caches at one moment."""

    slab_bytes: int
    """Bytes of all slabs; a slab counts until its backend has released it."""
    limit: int | None
    """The most that ``slab_bytes`` may reach."""
    emergency_bytes: int
    """Bytes of all emergency objects, spare ones included, until their backend has released them."""
    emergency_bytes_max: int
    """The highest ``emergency_bytes`` so far."""
    emergency_limit: int | None
    """The most that ``emergency_bytes`` may reach."""
    refused: int
    """Waiting callers for whom ``emergency_limit`` leaves no room now."""
    grow_time: Histogram
    """How long the backend of slabs took for each."""
    emergency_time: Histogram
    """How long each emergency object took that was made for a waiting caller."""
    kicked: int
    """Stuck grows that were set aside."""
    sealed: bool
    """Growth is off for good, see `Allocator.seal`."""
    faults: tuple[str, ...]
    """The faults that are turned on by `Allocator.faults`, each in one line."""
    caches: tuple[CacheStats, ...]
    """Each cache, in the order of creation."""

    @property
    def obj_held(self) -> int:
        """Objects held by callers, over all caches."""
        return sum(cache.obj_held for cache in self.caches)

    @property
    def obj_emergency(self) -> int:
        """Emergency objects outstanding, over all caches."""
        return sum(cache.obj_emergency for cache in self.caches)

    @property
    def waiters(self) -> int:
        """Callers waiting, over all caches."""
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
