"""Magazines: the free objects that are at hand, in front of the slabs (Bonwick 2001).

The hot path is the ``pop`` and ``append`` of a list, which the GIL makes atomic, so it takes no
lock and works from any thread. The last object freed is the first one handed out again, while it is
warm; a flush takes the oldest.

Linux and illumos have a magazine for each processor. Under the GIL one for each cache does.
"""

from __future__ import annotations

from typing import TypeVar

from ._kmem._slab import Slot

T = TypeVar("T")
SMALLEST, LARGEST = 2, 256

_SIZES = ((2**20, 4), (128 * 2**10, 16), (4 * 2**10, 64), (2**10, 128), (0, LARGEST))
"""From this object size on, so many objects: SPL's table, for 4 KiB pages."""


def default_size(object_size: int) -> int:
    """How many objects of that many bytes a magazine holds."""
    return next(size for least, size in _SIZES if object_size >= least)


class Magazine(list[Slot[T]]):
    """A stack of free slots, newest last. May stand over its capacity for a moment."""

    __slots__ = ("batch", "capacity")

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity: int = capacity
        self.batch: int = -(-capacity // 2)

    def take_oldest(self) -> Slot[T] | None:
        """The slot that has lain here longest, or None. Atomic, as pop and append are."""
        try:
            return self.pop(0)
        except IndexError:
            return None
