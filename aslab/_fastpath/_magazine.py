"""Magazines: the free objects that are at hand, in front of the slabs (Bonwick 2001).

The hot path is the ``pop`` and ``append`` of a list, which the GIL makes atomic, so it takes no
lock and works from any thread. The last object freed is the first one handed out again, while it is
warm; a flush takes the oldest.

Linux and illumos have a magazine for each processor. Under the GIL one for each cache does.
"""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from ._views import Exported

T = TypeVar("T")
SMALLEST, LARGEST = 2, 256

_SIZES = ((2**20, 4), (128 * 2**10, 16), (4 * 2**10, 64), (2**10, 128), (0, LARGEST))
"""From this object size on, so many objects: SPL's table, for 4 KiB pages."""


def default_size(object_size: int) -> int:
    """How many objects of that many bytes a magazine holds."""
    return next(size for least, size in _SIZES if object_size >= least)


class Slot(Exported, Generic[T]):
    """The place of one object. Only `Buffer` handles, which come and go, reach a caller."""

    __slots__ = ("address", "obj", "out", "owner", "slab")

    slab: object | None
    """Where it was cut from; None for an emergency object. What is behind the magazine knows what that is."""
    out: bool
    """Whether it is out of its slab."""
    owner: weakref.ref[object] | None
    """The handle that leads here, in caches whose objects may be moved."""
    address: int
    obj: T | None
    """What the cache's constructor built here; kept from one owner to the next (Bonwick 1994)."""

    def __init__(self, slab: object | None, memory: memoryview, start: int, offset: int, size: int) -> None:
        super().__init__(memory, offset, size)
        self.slab = slab
        self.out = False
        self.owner = None
        self.address = start + offset
        self.obj = None


class Magazine(list[Slot[T]]):
    """A stack of free slots, newest last. May stand over its capacity for a moment."""

    __slots__ = ("batch", "capacity", "watch")

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity: int = capacity
        self.batch: int = -(-capacity // 2)
        self.watch: bool = False
        """Somebody wants to hear of each free."""

    def take_oldest(self) -> Slot[T] | None:
        """The slot that has lain here longest, or None. Atomic, as pop and append are."""
        try:
            return self.pop(0)
        except IndexError:
            return None
