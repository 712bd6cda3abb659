"""Free slots that somebody may still write to: the object of a view that has ended is alive.

A library that takes the address of a view and keeps only the view object (torch does) exports nothing, so a free
succeeds. But it can write there as long as that object lives. So the slot lingers: it is reused last, when its own
task might otherwise wait for it, and its memory is not released until the object is gone. A caller that merely has
the view in a variable, as most do, gets the slot back as soon as the variable goes.

    free ── view object alive ──► lingering ── it goes ──► magazine
                                      └─ nothing else is free ──► the next owner, and here again afterwards

Always true between calls: a lingering slot is free, out of its slab, and not in the magazine. Whoever takes it out
owns it.

Any thread: each step is one operation of a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .._fastpath import Slot

S = TypeVar("S", bound=Slot[Any])


class Lingering(dict[S, object]):
    """Lingering slots of one kind: of slabs, or of emergency objects.

    :param clean: called for each slot that stops lingering: it may have been written to since it was freed
    """

    def __init__(self, clean: Callable[[S], object] | None = None) -> None:
        super().__init__()
        self._clean = clean

    def admit(self, slot: S) -> bool:
        """Take in a free slot if it has to linger; otherwise it stays the caller's."""
        self[slot] = None  # before looking: from here on we are notified
        return not self.let_go(slot)

    def take(self) -> S | None:
        """Take the one that came last: most likely its own task has merely kept a variable."""
        try:
            return self.popitem()[0] if self else None
        except KeyError:  # another thread was quicker
            return None

    def let_go(self, slot: S) -> bool:
        """Take a slot out if it need not linger any more; it is the caller's then."""
        if self.pop(slot, self) is self:  # somebody took it
            return False
        if slot.haunted():
            self[slot] = None
            return False
        if self._clean is not None:
            self._clean(slot)
        return True

    def look(self) -> list[S]:
        """Take out all that need not linger any more. Slices, and garbage, go without notice."""
        return [slot for slot in list(self) if self.let_go(slot)]
