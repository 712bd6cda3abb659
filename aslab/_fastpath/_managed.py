"""Managed buffers: handles whose coming and going is counted, and which may lead from one slot to another.

Always true: ``_slot``, ``moving`` and ``left`` change together, under the guard of `Home`, but in a finaliser. A
handle that is ``moving`` is referred to by the mover, so a finaliser never finds one. A slot goes to one place
only: the mover takes it where ``left`` is set, the free itself elsewhere.
"""

from __future__ import annotations

from typing import TypeVar

from .._errors import BufferFreedError
from ._buffer import Buffer
from ._magazine import Slot
from ._views import is_kept

T = TypeVar("T")


class ManagedBuffer(Buffer[T]):
    """A buffer whose coming and going needs more than the magazine.

    Emergency objects, and those of a cache that zeroes on free, shares its slabs, or moves its objects. What
    another thread may do at the same time as a move is done under the guard of `Home`.
    """

    __slots__ = ("emergency", "left", "moving", "touched")

    emergency: bool
    moving: bool
    """The mover copies it now; a free meanwhile leaves the slot to the mover."""
    left: bool
    """It did."""
    touched: bool
    """Somebody could write into it since the copy began."""

    @property
    def view(self) -> memoryview:
        """As `Buffer.view`. In a movable cache the buffer stays where it is from then on, until it is freed.

        :raises BufferFreedError: after `free`
        """
        with self._home.guard:
            self.touched = True
            return super().view

    def free(self) -> None:
        """As `Buffer.free`."""
        with self._home.guard:
            slot = self._claim()
            self.left = self.moving
        if not self.left:
            self._home.take_back(slot)

    def end_quietly(self) -> Slot[T] | None:
        """End the handle for its client; None where it had ended before, or somebody exports the memory still."""
        try:
            return self._claim(quiet=True)
        except BufferFreedError:
            return None
        except BufferError:
            pass  # the error's frames hold the view, so it has to be gone first
        self._park()
        return None

    def _abandon(self) -> None:
        with self._home.guard:  # not in a finaliser: that never finds it moving, since the mover holds on to it
            slot = self.end_quietly()
            self.left = slot is not None and self.moving
        if slot is not None and not self.left:
            self._home.collected(slot)

    def sibling(self, slot: Slot[T]) -> Buffer[T]:
        """A new handle of another slot, for the same client."""
        sibling: Buffer[T] = self._home.hand_out(slot)
        return sibling

    def leads_to(self, slot: Slot[T]) -> bool:
        """Whether this is the live handle of a slot."""
        return getattr(self, "_slot", None) is slot

    def lead_to(self, slot: Slot[T]) -> None:
        """From here on this handle is that of another place: it was moved."""
        old = self._slot
        slot.owner, old.owner = old.owner, None
        self._slot = slot
        view, self._view = self._view, None
        if view is not None and is_kept(view):  # released, else it would not move; who kept it knows the old place
            old.remember(view, self._home.view_gone)
        if self.emergency:
            self.emergency = False
            self._home.count_move()

    def _pinned_view(self) -> memoryview:
        with self._home.guard:
            self.touched = True
            return self._pin()

    def _claim(self, *, quiet: bool = False) -> Slot[T]:
        slot = self._allocated()
        if self._view is None and slot.in_use():  # by a pin, or what is left of one
            raise self._refusal("it is pinned, or a slice or an array of a pinned view is alive")
        slot = super()._claim(quiet=quiet)
        self._home.count_return(self.emergency)
        return slot
