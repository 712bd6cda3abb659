"""What may be configured, and the checks: one clear `ConfigError` before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import EllipsisType
from typing import Any, Generic, NamedTuple, TypeVar

from ._checks import boolean, optional_function, seconds, whole_number
from ._clients import log_failure
from ._errors import ConfigError
from ._fastpath import LARGEST, SMALLEST, default_size
from ._flags import CacheFlags
from .backends._libc import PAGE_SIZE
from .backends._protocol import Backend
from .pressure import Source

T = TypeVar("T")

OBJECTS_PER_SLAB = 8
LARGEST_OBJECT = 2**40
MAX_SLAB_SIZE = 32 * 2**20
WASTE = 16
"""A default slab may leave one part in so many of ``limit`` or ``max_objects`` unused."""
SHORTEST = 0.01
"""Seconds that what goes by in the background takes at least: below, looking would be all that is done."""


class Shape(NamedTuple):
    """How big things are, in bytes."""

    size: int
    align: int
    objects: int

    @property
    def stride(self) -> int:
        """From one object to the next."""
        return -(-self.size // self.align) * self.align

    @property
    def slab_size(self) -> int:
        """One slab, in whole pages."""
        return -(-self.stride * self.objects // PAGE_SIZE) * PAGE_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorConfig:
    """The arguments of `open_allocator`, checked."""

    slabs: Backend
    emergency: Backend
    grow_timeout: float | None
    limit: int | None
    emergency_limit: int | EllipsisType | None
    expire: float | None
    growth_workers: int
    kick_after: float | None
    pressure: Sequence[Source]
    init_on_alloc: bool
    init_on_free: bool
    checkpoints: bool

    def __post_init__(self) -> None:
        for field in ("slabs", "emergency"):
            backend = getattr(self, field)
            if isinstance(backend, type) or not isinstance(backend, Backend):
                raise ConfigError(field, backend, "allowed is a backend: acquire, acquire_nowait, release")
        if self.grow_timeout is not None:
            seconds("grow_timeout", self.grow_timeout, zero=True)
        if self.limit is not None:
            whole_number("limit", self.limit, 1)
        if self.emergency_limit not in (None, ...):
            whole_number("emergency_limit", self.emergency_limit, 0)
        for field in ("expire", "kick_after"):
            if getattr(self, field) is not None:
                seconds(field, getattr(self, field), least=SHORTEST)
        whole_number("growth_workers", self.growth_workers, 1)
        for source in self.pressure:
            if isinstance(source, type) or not callable(getattr(source, "run", None)):
                raise ConfigError("pressure", source, "allowed are sources, such as aslab.pressure.Psi()")
        for field in ("init_on_alloc", "init_on_free", "checkpoints"):
            boolean(field, getattr(self, field))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig(Generic[T]):
    """The arguments of `Allocator.create_cache`, checked, with the defaults filled in."""

    name: str
    shape: Shape
    magazine_size: int
    ctor: Callable[[memoryview], T] | None
    dtor: Callable[[T], None] | None
    reclaim: Callable[[int], int] | None
    reserve: int
    memalloc_reserve: int | None
    min_objects: int
    max_objects: int | None
    max_emergency: int | None
    watermark: int
    movable: bool
    merge: bool
    init_on_alloc: bool
    init_on_free: bool
    flags: CacheFlags

    @property
    def has_emergency(self) -> bool:
        """Whether it may make emergency objects."""
        return self.max_emergency != 0 and CacheFlags.NOEMERGENCY not in self.flags

    @property
    def set_aside(self) -> int:
        """Objects of both reserves, as far as they are given."""
        return self.reserve + (self.memalloc_reserve or 0)

    @property
    def guaranteed(self) -> int:
        """Bytes of the slabs for ``min_objects``, and for the reserves: neither is anybody else's."""
        return -(-max(self.min_objects, self.set_aside) // self.shape.objects) * self.shape.slab_size

    def shares_with(self, other: CacheConfig[Any]) -> bool:
        """Whether both may share slabs: both want to, and nothing else sets them apart."""
        return self.merge and replace(self, name=other.name, reclaim=other.reclaim) == other


def cache_config(
    *,
    limit: int | None,
    emergency_limit: int | EllipsisType | None,
    name: str,
    size: int,
    align: int,
    objects_per_slab: int | None,
    max_slab_size: int | None,
    magazine_size: int | None,
    ctor: Callable[[memoryview], T] | None,
    dtor: Callable[[T], None] | None,
    reclaim: Callable[[int], int] | None,
    reserve: int,
    memalloc_reserve: int | None,
    min_objects: int,
    max_objects: int | None,
    max_emergency: int | None,
    watermark: int,
    movable: bool,
    merge: bool,
    init_on_alloc: bool,
    init_on_free: bool,
    flags: CacheFlags,
) -> CacheConfig[T]:
    """Check everything, and work out the shape of a slab."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ConfigError("name", name, "allowed is a printable name that is not empty")
    shape = _shape(size, align, objects_per_slab, max_slab_size, max_objects, limit)
    if limit is not None and shape.slab_size > limit:
        raise ConfigError(
            "limit", limit, f"allowed is at least one slab of cache {name!r}, {shape.slab_size} bytes"
        )
    single = max_emergency != 0 and flags is not CacheFlags.NOEMERGENCY
    if isinstance(emergency_limit, int) and 0 < emergency_limit < size and single:
        allowed = f"allowed is 0, or at least one object of cache {name!r}, {size} bytes"
        raise ConfigError("emergency_limit", emergency_limit, allowed)
    if magazine_size is not None:
        whole_number("magazine_size", magazine_size, SMALLEST, LARGEST)
    for field, function in (("ctor", ctor), ("dtor", dtor), ("reclaim", reclaim)):
        optional_function(field, function)
    if dtor is not None and ctor is None:
        raise ConfigError("dtor", dtor, "allowed only with a ctor: there is nothing to destroy")
    if max_emergency is not None:
        whole_number("max_emergency", max_emergency, 0)
    whole_number("watermark", watermark, 0, max_objects)
    most = _most(shape, limit, max_objects)
    whole_number("reserve", reserve, 0, most)
    if memalloc_reserve is not None:
        whole_number("memalloc_reserve", memalloc_reserve, 0, None if most is None else most - reserve)
    whole_number("min_objects", min_objects, 0, most)
    for field, value in (
        ("movable", movable),
        ("merge", merge),
        ("init_on_alloc", init_on_alloc),
        ("init_on_free", init_on_free),
    ):
        boolean(field, value)
    for field, value in (("init_on_alloc", init_on_alloc), ("init_on_free", init_on_free)):
        if value and ctor is not None:
            raise ConfigError(field, value, "allowed only without a ctor: zeros would wipe what it built")
    if movable and ctor is not None:
        raise ConfigError("movable", movable, "allowed only without a ctor: what it built would stay behind")
    if merge and (ctor is not None or movable or reserve or memalloc_reserve or min_objects):
        raise ConfigError("merge", merge, "allowed only without ctor, movable, reserves and min_objects")
    if not isinstance(flags, CacheFlags):
        raise ConfigError("flags", flags, "allowed are members of CacheFlags")
    return CacheConfig(
        name=name,
        shape=shape,
        magazine_size=magazine_size or default_size(size),
        ctor=ctor,
        dtor=None if dtor is None else partial(_destroy, name, dtor),
        reclaim=reclaim,
        reserve=reserve,
        memalloc_reserve=memalloc_reserve,
        min_objects=min_objects,
        max_objects=max_objects,
        max_emergency=max_emergency,
        watermark=watermark,
        movable=movable,
        merge=merge,
        init_on_alloc=init_on_alloc,
        init_on_free=init_on_free,
        flags=flags,
    )


def _destroy(name: str, dtor: Callable[[T], None], obj: T) -> None:
    try:
        dtor(obj)
    except BaseException as exc:  # the memory has to go back all the same
        log_failure(exc, "cache %r: its dtor failed on %r", name, obj)


def _shape(
    size: int,
    align: int,
    objects_per_slab: int | None,
    max_slab_size: int | None,
    max_objects: int | None,
    limit: int | None,
) -> Shape:
    if max_slab_size is not None:
        whole_number("max_slab_size", max_slab_size, PAGE_SIZE)
    whole_number("align", align, 8, PAGE_SIZE)
    if align & (align - 1):
        raise ConfigError("align", align, f"allowed is a power of two, 8..{PAGE_SIZE}")
    whole_number("size", size, 1, LARGEST_OBJECT)
    single = Shape(size, align, 1)
    if max_slab_size is None:
        max_slab_size = max(MAX_SLAB_SIZE, single.slab_size)
    if single.slab_size > max_slab_size:
        raise ConfigError("size", size, f"allowed is 1..{max_slab_size} bytes: one object must fit max_slab_size")
    if max_objects is not None:
        whole_number("max_objects", max_objects, 1)
    if objects_per_slab is None:
        objects = _by_default(single, min(OBJECTS_PER_SLAB, max_slab_size // single.stride), limit, max_objects)
    else:
        whole_number("objects_per_slab", objects_per_slab, 1)
        objects = objects_per_slab
    shape = Shape(size, align, objects)
    if shape.slab_size > max_slab_size:
        raise ConfigError(
            "objects_per_slab",
            objects,
            f"allowed is 1..{max_slab_size // shape.stride}: a slab must fit max_slab_size",
        )
    if max_objects is not None and max_objects < objects:
        raise ConfigError("max_objects", max_objects, f"allowed is at least one slab, {objects} objects")
    return shape


def _by_default(single: Shape, most: int, limit: int | None, max_objects: int | None) -> int:
    """The most objects in a slab, up to ``most``, that leave next to nothing of the bounds unused."""
    usable = {n: _most(single._replace(objects=n), limit, max_objects) for n in range(most, 0, -1)}
    best = max((objects for objects in usable.values() if objects is not None), default=0)
    fine = (n for n, objects in usable.items() if objects is None or objects * WASTE >= max(1, best) * (WASTE - 1))
    return next(fine, 1)


def _most(shape: Shape, limit: int | None, max_objects: int | None) -> int | None:
    """How many objects there can ever be, in whole slabs; None is no bound."""
    slabs = [most // each for most, each in ((limit, shape.slab_size), (max_objects, shape.objects)) if most]
    return min(slabs) * shape.objects if slabs else None
