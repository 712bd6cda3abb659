"""The options of an allocator and of a cache: the one list of names, types, defaults, checks and descriptions."""

# ruff: noqa: RUF009 - `option` returns a field of a dataclass, as `field` does
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Generic, TypedDict, TypeVar

from ._checks import boolean, optional, optional_function, seconds, whole_number
from ._errors import ConfigError
from ._fastpath import LARGEST, SMALLEST
from ._flags import CacheFlags
from ._keywords import option
from ._letters import letters
from .backends._libc import PAGE_SIZE
from .backends._protocol import Backend
from .pressure import Source

T = TypeVar("T")

SHORTEST = 0.01
"""The shortest period of background work, in seconds: anything shorter would keep the loop busy with looking."""


def _backend(field: str, given: object) -> None:
    if isinstance(given, type) or not isinstance(given, Backend):
        raise ConfigError(field, given, "it must be a backend, with acquire, acquire_nowait and release")


def _sources(field: str, given: object) -> None:
    if not isinstance(given, Iterable):
        raise ConfigError(field, given, "it must be a sequence of sources, such as [aslab.pressure.Psi()]")


def _emergency_limit(field: str, given: object) -> None:
    if given is not ...:
        optional(whole_number, least=0)(field, given)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorOptions:
    """The keywords of `open_allocator`, as they are given."""

    slabs: Backend | None = option(
        None, optional(_backend), "where slabs come from; None is `aslab.backends.Mmap`"
    )
    emergency: Backend | None = option(
        None, optional(_backend), "where single emergency objects come from; None is `aslab.backends.Heap`"
    )
    grow_timeout: float | None = option(
        None,
        optional(seconds, zero=True),
        "seconds that a caller waits for growth before it tries an emergency object (SPL: HZ/10). With None each "
        "cache learns it from how long its growth takes: 10 ms to 1 s, and half of that for PUSHPAGE and "
        "MEMALLOC. `CacheStats.grow_timeout` has the present value.",
    )
    limit: int | None = option(
        None,
        optional(whole_number, least=1),
        "the most bytes of slabs, over all caches; at the limit callers wait for a free",
    )
    emergency_limit: int | EllipsisType | None = option(
        ...,
        _emergency_limit,
        "the most bytes of emergency objects, over all caches. The last quarter is for PUSHPAGE and MEMALLOC; "
        "once a MEMALLOC caller has been seen, the last object is for MEMALLOC alone. By default a quarter of "
        "``limit``, but at least the largest object of any cache; without ``limit``, unbounded. None is "
        "unbounded, 0 is no emergency objects. Backends never have more than ``limit`` + ``emergency_limit`` "
        "outstanding.",
    )
    expire: float | None = option(
        15.0,
        optional(seconds, least=SHORTEST),
        "seconds after which idle magazines are drained and idle empty slabs are given back, at least 0.01; None "
        "is never",
    )
    growth_workers: int = option(
        1, partial(whole_number, least=1), "how many workers make slabs; more than one only for experiments"
    )
    kick_after: float | None = option(
        5.0,
        optional(seconds, least=SHORTEST),
        "seconds after which a stuck grow is set aside so that other caches can grow, at least 0.01; None is "
        "never",
    )
    pressure: Sequence[Source] = option(
        (),
        _sources,
        "what reports that memory is short, such as `aslab.pressure.Cgroup`; idle memory is then given back",
    )
    debug: str = option(
        "",
        letters,
        "letters as SLUB has them, such as ``FZPU``, for caches that give none themselves: F checks the books, Z "
        "puts red zones round each object, P poisons what is freed, U keeps the stacks of each allocation and "
        "free, T logs both, V refuses a free while a view is kept. The environment variable ``ASLAB_DEBUG`` adds "
        "to it; docs/debugging.md has all of it.",
    )
    init_on_alloc: bool = option(
        False,
        boolean,
        "zero each object when it is allocated, in the caller's thread (about 0.1 ms per MiB); not in caches with "
        "a ``ctor``",
    )
    init_on_free: bool = option(False, boolean, "zero each object when it is freed; not in caches with a ``ctor``")
    holders_sample: int | None = option(
        None,
        optional(whole_number, least=0),
        "of so many allocations note one: who holds the buffer, see `Allocator.holders`. 1 notes each, 0 none. By "
        "default one for 64 MiB of buffers: each of more than 32 MiB, one in 1024 of 64 KiB, one in 4096 of 16 "
        "KiB and less. Those that had to wait for 0.1 s are noted in any case, unless it is 0. One that is noted "
        "costs, with its free, some 5 µs; others cost what they do without.",
    )
    leak_after: float | None = option(
        None,
        optional(seconds, zero=True),
        "seconds from which on a buffer that is noted counts as forgotten: a warning is logged, once for each, "
        "and `Allocator.events` has it. Looked at three times in ``expire``. None and 0 are never.",
    )
    checkpoints: bool = option(
        False, boolean, "make every `Cache.alloc` a full checkpoint, even on a hit (trio's rule)"
    )
    faults: bool = option(
        False,
        boolean,
        "let faults be turned on while the service runs, for game days: by `Allocator.faults`, and by ``aslab "
        "fault`` at the socket of `Allocator.serve_stats`",
    )


class AllocatorKeywords(TypedDict, total=False):
    """`AllocatorOptions` once more, for type checkers; a test keeps both the same."""

    slabs: Backend | None
    emergency: Backend | None
    grow_timeout: float | None
    limit: int | None
    emergency_limit: int | EllipsisType | None
    expire: float | None
    growth_workers: int
    kick_after: float | None
    pressure: Sequence[Source]
    debug: str
    init_on_alloc: bool
    init_on_free: bool
    holders_sample: int | None
    leak_after: float | None
    checkpoints: bool
    faults: bool


def _align(field: str, given: object) -> None:
    power = isinstance(given, int) and not isinstance(given, bool) and given & (given - 1) == 0
    if not power or not 8 <= given <= PAGE_SIZE:  # type: ignore[operator]
        raise ConfigError(field, given, f"it must be a power of two from 8 to {PAGE_SIZE}")


def _flags(field: str, given: object) -> None:
    if not isinstance(given, CacheFlags):
        raise ConfigError(field, given, "it must be members of CacheFlags")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions(Generic[T]):
    """The keywords of `Allocator.create_cache`, as they are given."""

    align: int | None = option(
        None,
        optional(_align),
        "alignment of each object: a power of two from 8 to the page size. By default 64 for objects below "
        "64 KiB, and from there the page size, as direct I/O needs it.",
    )
    objects_per_slab: int | None = option(
        None,
        optional(whole_number, least=1),
        "by default as many as fit 2 MiB, from 8 to 512, or 8 with a ``ctor``. More than 8 take at most 1/16 of "
        "``limit`` and ``max_objects``; it is fewer than 8 where a slab would exceed ``max_slab_size`` or leave "
        "more than 1/16 of those unused. More objects make growth rarer; 8 give memory back sooner.",
        compare=False,
    )
    max_slab_size: int | None = option(
        None,
        optional(whole_number, least=PAGE_SIZE),
        "bytes; by default 32 MiB, or one object where that is larger",
        compare=False,
    )
    magazine_size: int | None = option(
        None,
        optional(whole_number, least=SMALLEST, most=LARGEST),
        f"free objects kept at hand, from {SMALLEST} to {LARGEST}; by default from the size of an object, as in "
        "SPL",
    )
    ctor: Callable[[memoryview], T] | None = option(
        None,
        optional_function,
        "builds the object in a slot when the slab is made, not at each allocation (Bonwick 1994). It gets the "
        "memory, and runs on the event loop, once per object: keep it short. An emergency object is built when it "
        "is made, in the caller's thread. If it raises, the frames it ran in are cleared of their variables, "
        "because those keep the memory in use.",
    )
    dtor: Callable[[T], None] | None = option(
        None,
        optional_function,
        "undoes ``ctor`` before the slab is given back; for an emergency object, in the thread that frees it. "
        "What it raises is logged.",
    )
    reclaim: Callable[[int], int] | None = option(
        None,
        optional_function,
        "called under memory pressure with the number of objects it should free; returns how many it freed. It "
        "runs on the event loop, outside of any allocation: keep it short. What it raises is logged.",
    )
    reserve: int = option(
        0,
        partial(whole_number, least=0),
        "objects set aside for PUSHPAGE callers (Linux' mempool), with room for them under ``limit``. The reserve "
        "is filled from now on, see `Allocator.ready`, and freed objects refill it first.",
    )
    memalloc_reserve: int | None = option(
        None,
        optional(whole_number, least=0),
        "objects set aside in addition, for MEMALLOC callers alone: what one of them may still need to finish. "
        "With that many, one caller can always finish. A number is set aside from the start, and guaranteed. With "
        "None, what such callers have asked for is taken from ``reserve``, all but one object.",
    )
    min_objects: int = option(
        0,
        partial(whole_number, least=0),
        "guarantee this cache room under ``limit`` for that many objects, in whole slabs",
    )
    max_objects: int | None = option(
        None,
        optional(whole_number, least=1),
        "the most objects in slabs, counted in whole slabs; at the limit callers wait for a free",
    )
    max_emergency: int | None = option(
        None, optional(whole_number, least=0), "the most emergency objects outstanding; None is unbounded"
    )
    max_waiting: int | None = option(
        None,
        optional(whole_number, least=1),
        "the most callers that may wait at a time: another gets `TooManyWaiting` at once. PUSHPAGE and MEMALLOC "
        "callers may always wait, since their progress frees memory. With ``merge`` it holds for each cache by "
        "itself. None is unbounded.",
    )
    watermark: int = option(
        0, partial(whole_number, least=0), "grow in the background when fewer objects than that are free"
    )
    movable: bool = option(
        False,
        boolean,
        "allow buffers to be moved, so that sparse slabs can be given back; their memory is reached by "
        "`Buffer.pin`",
    )
    merge: bool = option(
        False,
        boolean,
        "share slabs with other such caches whose options are the same, but for name and ``reclaim`` (as SLUB "
        "does); bounds then hold for the shared slabs",
    )
    debug: str | None = option(
        None,
        optional(letters),
        "debug letters of this cache; None takes the allocator's. A cache with any never shares slabs. P cannot "
        "be combined with a ``ctor``, and the allocator's P does not apply to a cache with one.",
    )
    init_on_alloc: bool | None = option(
        None,
        optional(boolean),
        "zero each object when it is allocated; None takes the allocator's setting. It cannot be combined with a "
        "``ctor``, and the allocator's setting does not apply to a cache with one: what it built must survive a "
        "free. Each owner of such an object sees what the last one left in it.",
    )
    init_on_free: bool | None = option(
        None, optional(boolean), "zero each object when it is freed; the same holds"
    )
    holders_sample: int | None = option(
        None, optional(whole_number, least=0), "as that of the allocator; None takes the allocator's"
    )
    leak_after: float | None = option(
        None, optional(seconds, zero=True), "as that of the allocator; None takes the allocator's, 0 is never"
    )
    flags: CacheFlags = option(CacheFlags(0), _flags, "`CacheFlags.NOEMERGENCY`, or nothing")

    @property
    def has_emergency(self) -> bool:
        """Whether it may make emergency objects."""
        return self.max_emergency != 0 and CacheFlags.NOEMERGENCY not in self.flags

    @property
    def set_aside(self) -> int:
        """Objects of both reserves, as far as they are given."""
        return self.reserve + (self.memalloc_reserve or 0)


class CacheKeywords(TypedDict, total=False):
    """`CacheOptions` but ``ctor`` and ``dtor`` once more, for type checkers; a test keeps both the same."""

    align: int | None
    objects_per_slab: int | None
    max_slab_size: int | None
    magazine_size: int | None
    reclaim: Callable[[int], int] | None
    reserve: int
    memalloc_reserve: int | None
    min_objects: int
    max_objects: int | None
    max_emergency: int | None
    max_waiting: int | None
    watermark: int
    movable: bool
    merge: bool
    debug: str | None
    init_on_alloc: bool | None
    init_on_free: bool | None
    holders_sample: int | None
    leak_after: float | None
    flags: CacheFlags
