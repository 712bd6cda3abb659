"""Free slots that may still be written to, because the object of an ended view is alive.

A library that takes the address of a view and keeps only the view object (as torch does) exports nothing, so a
free succeeds. But it can write to the memory as long as that object lives. So the slot lingers: it is reused last,
and only because its own task might otherwise wait for it, and its memory is not released until the object is gone.
If the view is merely in a variable, as is common, the slot is back as soon as the variable is gone.

    free ── view object alive ──► lingering ── it goes ──► magazine
                                      └─ nothing else is free ──► the next owner, and here again afterwards

Always true, between calls:

    1. a lingering slot is free, out of its slab, and not in the magazine
    2. exactly one thread takes a slot out, and owns it from then on

Any thread: each step is a single dictionary operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .._fastpath import Slot

S = TypeVar("S", bound=Slot[Any])


class Lingering(dict[S, object]):
    """Lingering slots of one kind: of slabs, or of emergency objects.

    :param clean: called for each slot that stops lingering, as it may have been written to since it was freed
    """

    def __init__(self, clean: Callable[[S], object] | None = None) -> None:
        super().__init__()
        self._clean = clean
        self.tell: Callable[[], object] | None = None
        """Called in any thread when a slot has begun to linger, after the pool is closed."""

    def admit(self, slot: S) -> bool:
        """Take in a free slot if it has to linger. Returns False if not: then the slot is still the caller's."""
        self[slot] = None  # before looking, so that no notification is missed
        if self.let_go(slot):
            return False
        if self.tell is not None:
            self.tell()
        return True

    def take(self) -> S | None:
        """Take out the newest slot, or None: most likely its own task has merely kept a variable."""
        try:
            return self.popitem()[0] if self else None
        except KeyError:  # another thread was quicker
            return None

    def let_go(self, slot: S) -> bool:
        """Take a slot out if it need not linger any more. Returns True if so: then the caller owns it."""
        if self.pop(slot, self) is self:  # already taken
            return False
        if slot.haunted():
            self[slot] = None
            return False
        if self._clean is not None:
            self._clean(slot)
        return True

    def look(self) -> list[S]:
        """Take out all slots that need not linger any more: the end of slices and garbage is not reported."""
        return [slot for slot in list(self) if self.let_go(slot)]
