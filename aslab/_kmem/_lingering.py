"""Places that nobody holds, and yet somebody may write to: the object of a view that has ended is still alive.

A library that takes the address of a view and keeps the view object alone (torch does) exports nothing, so a
free succeeds. But it can write there for as long as that object lives. So the place lingers: it is used last, when
its own task might wait for it otherwise, and its memory is not given back before the object is gone. Who merely
has the view in a variable, as most do, gets the place back as soon as the variable goes.

    free ── view object alive ──► lingering ── it goes ──► magazine
                                      └─ nothing else is free ──► the next owner, and here again afterwards

Any thread: each step is one operation of a dictionary, and whoever takes a place out owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .._fastpath import Slot

S = TypeVar("S", bound=Slot[Any])


class Lingering(dict[S, object]):
    """Such places of one kind: slots of slabs, or emergency objects.

    :param clean: called for each that need not linger any more: it may have been written to since it was freed
    """

    def __init__(self, clean: Callable[[S], object] | None = None) -> None:
        super().__init__()
        self._clean = clean

    def admit(self, slot: S) -> bool:
        """Take in a free slot, if it has to linger. Else it stays the caller's."""
        self[slot] = None  # before we look: from here on we are told
        return not self.let_go(slot)

    def take(self) -> S | None:
        """The one that came last: most likely its own task has merely kept a variable."""
        try:
            return self.popitem()[0] if self else None
        except KeyError:  # another thread was quicker
            return None

    def let_go(self, slot: S) -> bool:
        """If it need not linger any more it is the caller's."""
        if self.pop(slot, self) is self:  # somebody took it
            return False
        if slot.haunted():
            self[slot] = None
            return False
        if self._clean is not None:
            self._clean(slot)
        return True

    def look(self) -> list[S]:
        """Those that need not linger any more: of slices, and what was garbage, nobody tells."""
        return [slot for slot in list(self) if self.let_go(slot)]
