"""Objects set aside for callers whose progress frees memory for all others.

Always true, between calls:

    1. each object here is out of its slab, like the objects in a magazine, and no caller holds it
    2. there are at most ``objects`` of them, the last ``kept`` for MEMALLOC callers alone

The model is Linux' mempool: a fixed number, filled in advance, and refilled first by frees. A PUSHPAGE caller that
finds no free object takes one of these at once, whatever growth does; one that finds none left is served by the
next free. So if every caller holds its objects only for a while, and no more callers want one at a time than the
reserve has, none waits longer than the longest hold.

Hold-and-wait needs more than that: callers that hold an object and need another to finish can use up all objects,
each holding what another needs. So the last ``kept`` objects are for MEMALLOC callers alone: those that finish
once they have them. If no such caller needs more than ``kept`` at a time, one can always finish, and what it gives
back is kept again before any other caller gets it (the banker's argument: Dijkstra, 1965). Unless it is told
``memalloc_reserve``, the pool learns ``kept``: the most that a MEMALLOC caller has asked for at once, taken from
the reserve.
"""

from __future__ import annotations

from typing import TypeVar

from .._fastpath import Slot
from .._flags import FINISHES, ORDINARY

T = TypeVar("T")


class Reserve(list[Slot[T]]):
    """The reserve of one pool. `take`, `at_hand` and `learn` from any thread; the rest from the event loop's.

    :param objects: the number to set aside for PUSHPAGE callers
    :param kept: how many more for MEMALLOC callers; None to learn it
    """

    __slots__ = ("_asked", "_given", "_learns", "_most_needed", "kept", "objects")

    def __init__(self, objects: int, kept: int | None) -> None:
        super().__init__()
        self._learns = kept is None
        self._asked = 0  # the most that a MEMALLOC caller has asked for at once
        self._most_needed = 1  # the same for PUSHPAGE callers
        self._given = objects
        self.objects: int = objects + (kept or 0)
        """How many there should be; 0 once the pool is closed."""
        self.kept: int = kept or 0
        """How many of them are for MEMALLOC callers alone."""

    def close(self) -> None:
        """Set nothing aside from now on."""
        self.objects = self.kept = self._given = 0

    @property
    def short(self) -> bool:
        """Whether any objects are missing."""
        return len(self) < self.objects

    @property
    def missing(self) -> int:
        """How many of the objects for MEMALLOC callers are missing."""
        return max(0, self.kept - len(self))

    def comes_before(self, level: int) -> bool:
        """Whether the reserve must be refilled before a caller of ``level`` gets anything."""
        if level == ORDINARY:
            return self.short
        return level > FINISHES and self.missing > 0

    def learn(self, objects: int, level: int, most: int | None) -> None:
        """Learn from a caller of ``level`` that asks for ``objects`` at once. Any thread.

        The kept objects are taken from the reserve; at least one of it stays for PUSHPAGE callers, and of the
        pool enough for the most that they have asked for, so that none waits forever.

        :param most: the most objects that the pool can ever have; None without a bound
        """
        if level == FINISHES:
            self._asked = max(self._asked, objects)
        elif level < ORDINARY:
            self._most_needed = max(self._most_needed, objects)
        if self._learns and self._given:
            left = self._given - 1 if most is None else min(self._given - 1, most - self._most_needed)
            self.kept = max(0, min(self._asked, left))

    def at_hand(self, level: int) -> int:
        """Return how many objects a caller of ``level`` may take."""
        if level == ORDINARY:
            return 0
        return max(0, len(self) - (self.kept if level > FINISHES else 0))

    def take(self, level: int = FINISHES) -> Slot[T] | None:
        """Take one of those, or None."""
        if not (self and self.at_hand(level)):
            return None
        try:
            slot = self.pop()
        except IndexError:  # another thread was quicker
            return None
        if level > FINISHES and len(self) < self.kept:  # two threads raced for the last object not kept
            self.append(slot)
            return None
        return slot
