"""Objects set aside for those whose progress frees memory for everybody else.

The model is Linux' mempool: a fixed number, filled in advance, refilled first by what is freed. A PUSHPAGE caller
that finds no free object takes one of these at once, whatever growth does, and one that finds none left is served
by the next free of anybody. So if each holds its objects for a while only, and no more want one at a time than
the reserve has, none waits for longer than the longest hold.

Hold-and-wait needs more than that: callers that hold an object, and need another to finish, can use up all there
is, each the last one of another. So the last ``kept`` objects are for MEMALLOC callers alone: those who finish
once they have them. If no such caller needs more at a time, somebody can always finish, and what it gives back is
kept again before anybody else gets any (the banker's argument: Dijkstra, 1965). Unless said otherwise, the cache
learns how many: as many as such a caller has asked for at once, of its reserve.

What lies here is out of its slab, as what lies in a magazine is, but in nobody's hands.
"""

from __future__ import annotations

from typing import TypeVar

from .._fastpath import Slot
from .._flags import FINISHES, ORDINARY

T = TypeVar("T")


class Reserve(list[Slot[T]]):
    """The set-aside objects of one pool. `take`, `at_hand`, `learn` from any thread; the rest on the event loop's.

    :param objects: how many there should be for PUSHPAGE callers
    :param kept: how many more for MEMALLOC callers; None where that is learned
    """

    __slots__ = ("_asked", "_given", "_learns", "_most_needed", "kept", "objects")

    def __init__(self, objects: int, kept: int | None) -> None:
        super().__init__()
        self._learns = kept is None
        self._asked = 0  # the most that a MEMALLOC caller has asked for at once
        self._most_needed = 1  # the most that a PUSHPAGE caller has
        self._given = objects
        self.objects: int = objects + (kept or 0)
        """How many there should be; none any more once the pool closes."""
        self.kept: int = kept or 0
        """How many of them are for MEMALLOC callers alone."""

    def close(self) -> None:
        """Nothing is set aside any more."""
        self.objects = self.kept = self._given = 0

    @property
    def short(self) -> bool:
        """Whether any are missing."""
        return len(self) < self.objects

    @property
    def missing(self) -> int:
        """How many of those for MEMALLOC callers are missing."""
        return max(0, self.kept - len(self))

    def comes_before(self, level: int) -> bool:
        """Whether something is missing that is set aside before such a caller gets anything."""
        if level == ORDINARY:
            return self.short
        return level > FINISHES and self.missing > 0

    def learn(self, objects: int, level: int, most: int | None) -> None:
        """A caller asks for so many at once, and the pool can never have more than ``most`` objects.

        What is learned is taken from the reserve, and leaves one of it, and enough for what PUSHPAGE callers have
        asked for: nobody must wait for ever. Any thread.
        """
        if level == FINISHES:
            self._asked = max(self._asked, objects)
        elif level < ORDINARY:
            self._most_needed = max(self._most_needed, objects)
        if self._learns and self._given:
            left = self._given - 1 if most is None else min(self._given - 1, most - self._most_needed)
            self.kept = max(0, min(self._asked, left))

    def at_hand(self, level: int) -> int:
        """How many there are for such a caller."""
        if level == ORDINARY:
            return 0
        return max(0, len(self) - (self.kept if level > FINISHES else 0))

    def take(self, level: int = FINISHES) -> Slot[T] | None:
        """One of those, or None."""
        if not (self and self.at_hand(level)):
            return None
        try:
            slot = self.pop()
        except IndexError:  # another thread was quicker
            return None
        if level > FINISHES and len(self) < self.kept:  # two threads took the last but one
            self.append(slot)
            return None
        return slot
