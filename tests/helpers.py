"""What several test modules share: slabs without an allocator, and names for types."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aslab._config import Shape
from aslab._fastpath import Magazine, Slot
from aslab._kmem._depot import Depot
from aslab._kmem._slab import Slab
from aslab.backends import Region

Loop = tuple[str, dict[str, Any]]
SHAPE = Shape(64, 64, 4)
LATE_THREAD = "aslab late releases"


def new_slab(objects: int = 4) -> Slab[Any]:
    """A slab on a bytearray."""
    shape = Shape(SHAPE.size, SHAPE.align, objects)
    slab: Slab[Any] = Slab(Region.over(bytearray(shape.slab_size + 64), align=64), shape)
    for _ in range(shape.objects):
        slab.carve()
    return slab


def new_depot(slabs: int, *, objects: int = 4, capacity: int = 4) -> tuple[Depot[Any], Magazine[Any]]:
    """A depot with so many empty slabs behind an empty magazine."""
    magazine: Magazine[Any] = Magazine(capacity)
    depot: Depot[Any] = Depot(magazine)
    for _ in range(slabs):
        depot.add(new_slab(objects))
    return depot, magazine


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let the kernel give out no descriptor, also where the garbage collector closes one meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def join_late_threads() -> None:
    """Those that release what closed allocators get back: each has an event loop of its own, and its files."""
    for thread in threading.enumerate():
        if thread.name == LATE_THREAD:
            thread.join()


def all_slots(depot: Depot[Any], magazine: Magazine[Any]) -> list[Slot[Any]]:
    """Every slot that is free or in the magazine, with repetitions if there are any."""
    return [slot for slab in depot.slabs.partial for slot in slab.slots if not slot.out] + list(magazine)
