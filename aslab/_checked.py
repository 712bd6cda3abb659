"""Checked buffers: the handles of caches with debug letters.

A free checks first whether the view is kept (V), then what was written outside of the buffer (Z). What it finds is
raised once the buffer is free. Always true: a handle's `record` is that of its own allocation, also once the
object has another owner, so a second free can say who did the first.
"""

from __future__ import annotations

import gc
import sys
from inspect import CO_OPTIMIZED
from types import CoroutineType, FrameType, GeneratorType
from typing import Any, TypeVar, cast

from ._errors import BufferFreedError, DoubleFreeError
from ._fastpath import ManagedBuffer, is_kept
from ._kmem._debug import Debug, Record

T = TypeVar("T")


class CheckedBuffer(ManagedBuffer[T]):
    """A buffer of a cache with debug letters."""

    __slots__ = ("debug", "record")

    debug: Debug[T]
    record: Record

    def free(self) -> None:
        """As `Buffer.free`.

        :raises DoubleFreeError: with letter F, if it was freed before
        :raises RedZoneError: with letter Z, if somebody wrote outside of it; it is free all the same
        :raises BufferError: with letter V, if the view object is kept; the buffer stays allocated
        """
        debug = self.debug
        if debug.views:
            self._look_for_keepers()
        try:
            with self._home.guard:
                slot = self._claim()
                self.left = self.moving
        except BufferFreedError:
            if debug.consistency:
                raise DoubleFreeError(debug.freed_twice(self.record)) from None
            raise
        if self.left:  # the mover frees it, and logs what it finds
            return
        error = debug.let_go(slot, debug.site(), collected=False)
        self._home.take_back(slot)
        if error is not None:
            raise error

    def _look_for_keepers(self) -> None:
        """Refuse a free that would leave the slot lingering."""
        view, slot = self._view, getattr(self, "_slot", None)
        if slot is None:
            return
        if view is not None and is_kept(view, 2):  # the handle, and here
            keepers = _keepers(view, self)
            raise self._refusal(f"debug letter V: its view is kept{keepers}")
        if slot.kept and slot.haunted():
            raise self._refusal("debug letter V: a view that has ended is kept, or a slice of it")

    def _forgotten(self) -> str:
        return "\n".join((super()._forgotten(), *self.record.story()))


def _keepers(view: memoryview, handle: object) -> str:
    """Say who refers to a view, in words that start with ``:``; "" if that cannot be found."""
    found = []
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        code, names = frame.f_code, cast("Any", frame.f_locals)
        for name, value in names.items():
            if value is view:
                found.append(f"variable {name!r} in {code.co_qualname}, {code.co_filename}:{frame.f_lineno}")
        value = None  # else it would be found here
        if code.co_flags & CO_OPTIMIZED and isinstance(names, dict):
            names.clear()  # a copy, which the frame keeps, and so the view
    for one in gc.get_referrers(view):
        if isinstance(one, CoroutineType):
            if not one.cr_running:
                found.append(f"a variable in {one.__qualname__}")
        elif isinstance(one, GeneratorType):
            if not one.gi_running:
                found.append(f"a variable in {one.__qualname__}")
        elif one is not handle and not isinstance(one, FrameType):
            found.append(f"an object of type {type(one).__name__}")
    return ": " + "; ".join(dict.fromkeys(found)) if found else ""
