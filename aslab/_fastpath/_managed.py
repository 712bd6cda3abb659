"""Managed buffers: handles that are counted, and that may be led from one slot to another.

Emergency objects are counted, too, and have a smaller class where that is all.

Always true between calls: except in a finaliser, ``_slot``, ``moving`` and ``left`` change only under
`Home.guard`. Compiled code does without where it is one single step and the handle is not ``moving``. So the mover
sets that before it looks at a handle, and clears it last. It holds a reference to such a handle, so a finaliser
never sees one. A slot is taken back once: by the mover if ``left`` is set, by the free otherwise.
"""

from __future__ import annotations

from typing import TypeVar

from .._errors import BufferFreedError
from ._buffer import Buffer
from ._home import Noted
from ._magazine import Slot
from ._native import compiled
from ._views import is_kept

T = TypeVar("T")


@compiled
class EmergencyBuffer(Buffer[T]):
    """A buffer of an emergency object that needs nothing else of a `ManagedBuffer`.

    As a plain `Buffer`, the garbage collector does not see it if it is compiled.
    """

    __slots__ = ()

    emergency = True

    def free(self) -> None:
        """As `Buffer.free`."""
        self._home.take_back(self._claim())

    def _claim(self, *, quiet: bool = False) -> Slot[T]:
        slot = Buffer._claim(self, quiet=quiet)  # `super` would look for this class, which is not the compiled one
        self._home.count_return(True)
        return slot


@compiled
class ManagedBuffer(Buffer[T]):
    """A buffer whose allocation and free take more than the magazine.

    Used for buffers of which it is noted who holds them, in caches that zero on free, share their slabs, or move
    their objects, and for emergency objects of caches with callbacks. Whatever may race with a move is done under
    `Home.guard`.
    """

    __slots__ = ("_note", "emergency", "left", "moving", "touched")

    _note: Noted | None
    emergency: bool
    moving: bool
    """It is being copied; a free meanwhile leaves the slot to the mover."""
    left: bool
    """It was freed while moving."""
    touched: bool
    """Somebody may have written to it since the copy began."""

    @property
    def view(self) -> memoryview:
        """As `Buffer.view`. In a movable cache the buffer stays where it is from then on, until it is freed.

        :raises BufferFreedError: after `free`
        """
        with self._home.guard:
            self.touched = True
            view: memoryview = Buffer.view.__get__(self)  # a compiled one has another class: no super()
            return view

    def free(self) -> None:
        """As `Buffer.free`."""
        with self._home.guard:
            slot = self._claim()
            self.left = self.moving
        if not self.left:
            self._home.take_back(slot)

    _free = free

    def end_quietly(self) -> Slot[T] | None:
        """End the handle. None if it had ended before, or if its memory is still exported: then it is parked."""
        try:
            return self._claim(quiet=True)
        except BufferFreedError:
            return None
        except BufferError:
            pass  # the error's frames hold the view, so `_park` has to wait until they are gone
        self._park()
        return None

    def _abandon(self) -> None:
        with self._home.guard:  # never in a finaliser
            slot = self.end_quietly()
            self.left = slot is not None and self.moving
        if slot is not None and not self.left:
            self._home.collected(slot)

    def sibling(self, slot: Slot[T]) -> Buffer[T]:
        """A new handle of another slot, for the same client: one of the two is to `forget_note`."""
        sibling: Buffer[T] = self._home.hand_out(slot, self._note)
        return sibling

    def forget_note(self) -> None:
        """Leave the note of who holds it to its sibling."""
        self._note = None

    def leads_to(self, slot: Slot[T]) -> bool:
        """Whether this is the live handle of a slot."""
        return getattr(self, "_slot", None) is slot

    def lead_to(self, slot: Slot[T]) -> None:
        """Point the handle at another slot: its object was moved."""
        old = self._slot
        slot.owner, old.owner = old.owner, None
        self._slot = slot
        view, self._view = self._view, None
        if view is not None and is_kept(view):  # released, or it would not have moved; but its object is kept
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
        slot = Buffer._claim(self, quiet=quiet)
        self._home.count_return(self.emergency)
        if self._note is not None:
            self._note.end()
        return slot
