"""What an allocator and a cache are made from: their options, checked, with the defaults filled in.

Anything that is not allowed gives one `ConfigError`, before anything is changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from ._checks import whole_number
from ._clients import log_failure
from ._errors import ConfigError
from ._fastpath import default_size
from ._keywords import check_each, values
from ._letters import NO_SELECTION, VARIABLE, Selection
from ._options import AllocatorOptions, CacheOptions
from ._reach import is_self_contained
from .backends._libc import PAGE_SIZE
from .backends._protocol import Backend
from .pressure import Source

T = TypeVar("T")

FIT = "the objects that fit limit and max_objects"
RED = 16
"""Bytes of a red zone before and after each object; what the alignment leaves is added to that after it."""
OBJECTS, MOST_OBJECTS = 8, 512
"""By default a slab has at least so many objects where they fit, and at most so many."""
SLAB_SIZE = 2 * 2**20
"""Bytes that a slab of small objects has by default: a huge page. For less, asking costs more than the memory."""
LARGEST_OBJECT = 2**40
MAX_SLAB_SIZE = 32 * 2**20
CACHE_LINE = 64
LARGE = 64 * 2**10
"""Bytes from which on objects are aligned to pages by default: what it wastes is a 16th at most."""
NOTED_BYTES, MOST_SAMPLED = 64 * 2**20, 4096
"""By default it is noted who holds a buffer once for so many bytes of buffers, or for so many buffers."""
WASTE = 16
"""By default a slab leaves at most 1/16 of ``limit`` or ``max_objects`` unused, and takes no more, unless it has
`OBJECTS` only."""


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to


@dataclass(frozen=True, slots=True)
class Shape:
    """The layout of a slab; sizes in bytes."""

    size: int
    align: int
    objects: int
    red: int = 0
    """Of a red zone, at least, before and after each object; 0 is none."""
    stride: int = field(init=False)
    """From the start of one object to the start of the next."""
    lead: int = field(init=False)
    """From the start of a slab to its first object."""
    slab_size: int = field(init=False)
    """Of one slab, in whole pages."""

    def __post_init__(self) -> None:
        stride = _rounded(self.size + 2 * self.red, self.align)
        lead = _rounded(self.red, self.align)
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "lead", lead)
        object.__setattr__(self, "slab_size", _rounded(lead + stride * self.objects, PAGE_SIZE))

    @property
    def single_size(self) -> int:
        """Of an emergency object, with its red zones."""
        return self.lead + self.stride if self.red else self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig(AllocatorOptions):
    """The options of an allocator, checked, with the defaults filled in."""

    slabs: Backend
    emergency: Backend
    pressure: tuple[Source, ...]
    selection: Selection
    """The debug letters that the environment chose when the allocator was opened."""

    @property
    def reaches_client(self) -> bool:
        """Whether a backend or source may refer to objects of the client, and so to its buffers."""
        return not all(map(is_self_contained, (self.slabs, self.emergency, *self.pressure)))


def allocator_config(
    options: AllocatorOptions, *, slabs: Callable[[], Backend], emergency: Callable[[], Backend]
) -> AllocatorConfig:
    """Check everything, and make the default backends where none are given."""
    check_each(options)
    pressure = tuple(options.pressure)
    for source in pressure:
        if isinstance(source, type) or not callable(getattr(source, "run", None)):
            raise ConfigError("pressure", source, "it must be a source, such as aslab.pressure.Psi()")
    filled = {
        "slabs": slabs() if options.slabs is None else options.slabs,
        "emergency": emergency() if options.emergency is None else options.emergency,
        "pressure": pressure,
        "selection": Selection(os.environ.get(VARIABLE, "")),
    }
    return AllocatorConfig(**values(options) | filled)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig(CacheOptions[T]):
    """The options of a cache, checked, with the defaults filled in."""

    name: str
    shape: Shape
    align: int
    magazine_size: int
    init_on_alloc: bool
    init_on_free: bool
    debug: str
    """The letters in force."""
    holders_sample: int
    leak_after: float

    @property
    def guaranteed(self) -> int:
        """Bytes of the slabs for ``min_objects`` and the reserves, which no other cache may use."""
        return -(-max(self.min_objects, self.set_aside) // self.shape.objects) * self.shape.slab_size

    @property
    def kind(self) -> Hashable:
        """Equal for caches that may share slabs, if ``merge`` allows it: they differ in nothing that matters."""
        ctor = self.ctor if isinstance(self.ctor, Hashable) else id(self.ctor)
        return replace(self, name="", reclaim=None, ctor=None), ctor


def cache_config(
    name: str,
    size: int,
    options: CacheOptions[T],
    allocator: AllocatorOptions,
    selection: Selection = NO_SELECTION,
) -> CacheConfig[T]:
    """Check everything, first each option by itself, then all together, and work out the shape of a slab."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError("name", name, "it must be a printable string that is not empty")
    whole_number("size", size, 1, LARGEST_OBJECT)
    check_each(options)
    debug = _debug(name, options, allocator.debug, selection)
    shape = _shape(size, options, allocator.limit, RED if "Z" in debug else 0)
    _check_bounds(name, shape, options, allocator)
    _check_combinations(options)
    sample = _sample(size, options.holders_sample, allocator.holders_sample)
    zeroed = options.ctor is None
    init_on_alloc = _either(options.init_on_alloc, allocator.init_on_alloc and zeroed)
    init_on_free = _either(options.init_on_free, allocator.init_on_free and zeroed)
    if "P" in debug:  # what is freed is poisoned instead, and zeroed for its next owner
        init_on_alloc, init_on_free = init_on_alloc or init_on_free, False
    filled = {
        "align": shape.align,
        "magazine_size": options.magazine_size or default_size(size),
        "dtor": None if options.dtor is None else partial(_destroy, name, options.dtor),
        "init_on_alloc": init_on_alloc,
        "init_on_free": init_on_free,
        "debug": debug,
        "merge": options.merge and not debug,
        "holders_sample": min(sample, 1) if "U" in debug else sample,
        "leak_after": (allocator.leak_after if options.leak_after is None else options.leak_after) or 0.0,
    }
    return CacheConfig(name=name, shape=shape, **values(options) | filled)


def _debug(name: str, options: CacheOptions[Any], default: str, selection: Selection) -> str:
    """The letters in force for a cache, in their order."""
    chosen = selection.of(name, default if options.debug is None else options.debug)
    if options.ctor is None:
        return chosen
    if "P" in (options.debug or ""):
        raise ConfigError("debug", options.debug, "P excludes a ctor: poison would wipe what the ctor built")
    return chosen.replace("P", "")


def _either(own: bool | None, default: bool) -> bool:
    return default if own is None else own


def _sample(size: int, own: int | None, default: int | None) -> int:
    chosen = default if own is None else own
    return max(1, min(MOST_SAMPLED, NOTED_BYTES // size)) if chosen is None else chosen


def _check_bounds(name: str, shape: Shape, options: CacheOptions[Any], allocator: AllocatorOptions) -> None:
    """The bounds in bytes and objects: of the allocator, of the cache, and what is to fit in them."""
    size, limit, emergency_limit = shape.single_size, allocator.limit, allocator.emergency_limit
    if limit is not None and shape.slab_size > limit:
        raise ConfigError(
            "limit", limit, f"it must be at least {shape.slab_size} bytes, one slab of cache {name!r}"
        )
    if isinstance(emergency_limit, int) and 0 < emergency_limit < size and options.has_emergency:
        allowed = f"it must be 0, or at least {size} bytes, one object of cache {name!r}"
        raise ConfigError("emergency_limit", emergency_limit, allowed)
    if options.max_objects is not None and options.watermark > options.max_objects:
        raise ConfigError("watermark", options.watermark, f"it must be at most max_objects, {options.max_objects}")
    most = _most(shape.objects, shape.slab_size, limit, options.max_objects)
    if most is None:
        return
    if options.reserve > most:
        raise ConfigError("reserve", options.reserve, f"it must be at most {most}, {FIT}")
    if (options.memalloc_reserve or 0) > most - options.reserve:
        allowed = f"it must be at most {most - options.reserve}, {FIT}, less the reserve"
        raise ConfigError("memalloc_reserve", options.memalloc_reserve, allowed)
    if options.min_objects > most:
        raise ConfigError("min_objects", options.min_objects, f"it must be at most {most}, {FIT}")


def _check_combinations(options: CacheOptions[Any]) -> None:
    """What excludes, or needs, each other."""
    if options.ctor is None:
        if options.dtor is not None:
            raise ConfigError("dtor", options.dtor, "it needs a ctor: there is nothing else to destroy")
    else:
        for field in ("init_on_alloc", "init_on_free"):
            if getattr(options, field):
                raise ConfigError(field, True, "it excludes a ctor: zeros would wipe what the ctor built")
        if options.movable:
            raise ConfigError("movable", True, "it excludes a ctor: what the ctor built would stay behind")
    if options.merge and (options.ctor is not None or options.movable or options.set_aside or options.min_objects):
        raise ConfigError("merge", True, "it excludes ctor, movable, both reserves and min_objects")


def _destroy(name: str, dtor: Callable[[T], None], obj: T) -> None:
    try:
        dtor(obj)
    except BaseException as exc:  # the memory has to go back all the same
        log_failure(exc, "cache %r: its dtor failed on %r", name, obj)


def _shape(size: int, options: CacheOptions[Any], limit: int | None, red: int) -> Shape:
    """The shape of a slab, as asked for or by default."""
    single = Shape(size, options.align or (CACHE_LINE if size < LARGE else PAGE_SIZE), 1, red)
    largest = (options.max_slab_size or max(MAX_SLAB_SIZE, single.slab_size)) // PAGE_SIZE * PAGE_SIZE
    if single.slab_size > largest:
        allowed = f"it must be at most {largest} bytes: one object must fit the whole pages of max_slab_size"
        raise ConfigError("size", size, allowed)
    most = (largest - single.lead) // single.stride
    objects = options.objects_per_slab
    if objects is None:
        built = options.ctor is not None  # one after the other, before the first can be had
        objects = _by_default(single, OBJECTS if built else MOST_OBJECTS, most, limit, options.max_objects)
    shape = replace(single, objects=objects)
    if shape.slab_size > largest:
        allowed = f"it must be at most {most}: a slab must fit the whole pages of max_slab_size"
        raise ConfigError("objects_per_slab", objects, allowed)
    if options.max_objects is not None and options.max_objects < objects:
        allowed = f"it must be at least {objects}, the objects of one slab"
        raise ConfigError("max_objects", options.max_objects, allowed)
    return shape


def _by_default(single: Shape, many: int, most: int, limit: int | None, max_objects: int | None) -> int:
    """The most objects in a slab that leave next to nothing of the bounds unused."""
    share = (min(SLAB_SIZE, SLAB_SIZE if limit is None else limit // WASTE) - single.lead) // single.stride
    if max_objects is not None:
        share = min(share, max_objects // WASTE)
    most = min(most, max(OBJECTS, min(many, share)))
    if limit is None and max_objects is None:
        return most
    slabs = (replace(single, objects=n) for n in range(most, 0, -1))
    usable = {slab.objects: _most(slab.objects, slab.slab_size, limit, max_objects) or 0 for slab in slabs}
    least = max(1, *usable.values()) * (WASTE - 1)
    return next((n for n, objects in usable.items() if objects * WASTE >= least), 1)


def _most(objects: int, slab_size: int, limit: int | None, max_objects: int | None) -> int | None:
    """How many objects there can ever be, in whole slabs; None is no bound."""
    slabs = [most // each for most, each in ((limit, slab_size), (max_objects, objects)) if most]
    return min(slabs) * objects if slabs else None
