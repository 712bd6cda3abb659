"""Objects set aside for PUSHPAGE callers: those whose progress frees memory for everybody else.

The model is Linux' mempool: a fixed number, filled in advance, refilled first by what is freed. A PUSHPAGE caller
that finds no free object takes one of these at once, whatever growth does, and one that finds none left is served
by the next free of anybody. So if each holds its objects for a while only, and no more want one at a time than
the reserve has, none waits for longer than the longest hold.

What lies here is out of its slab, as what lies in a magazine is, but in nobody's hands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from ._slab import Slot

T = TypeVar("T")


class Reserve(Generic[T]):
    """The set-aside objects of one pool. `take` from any thread; the rest on the event loop's."""

    def __init__(self, objects: int) -> None:
        self.objects: int = objects
        """How many there should be; none any more once the pool closes."""
        self._slots: list[Slot[T]] = []

    def __iter__(self) -> Iterator[Slot[T]]:
        return iter(list(self._slots))

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def short(self) -> bool:
        """Whether any are missing."""
        return len(self._slots) < self.objects

    def put(self, slot: Slot[T]) -> None:
        """Set one aside."""
        self._slots.append(slot)

    def take(self) -> Slot[T] | None:
        """One of them, or None. Atomic."""
        try:
            return self._slots.pop()
        except IndexError:
            return None
