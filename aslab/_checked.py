"""Checked buffers: the handles of caches with debug letters.

A free checks first whether the view is kept (V), then what was written outside of the buffer (Z). What it finds is
raised once the buffer is free. Always true: a handle's `record` is that of its own allocation, also once the
object has another owner, so a second free can say who did the first.
"""

from __future__ import annotations

import gc
import sys
from itertools import chain
from types import CoroutineType, FrameType, GeneratorType, TracebackType
from typing import TypeVar, cast

from ._errors import BufferFreedError, CorruptionError, DoubleFreeError
from ._fastpath import ManagedBuffer, Slot, has_company, is_kept, is_released
from ._kmem._debug import Debug, Record, record_of
from ._variables import variables

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

    _free = free

    def _claim(self, *, quiet: bool = False) -> Slot[T]:
        self.debug.used()
        return super()._claim(quiet=quiet)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            super().__exit__(exc_type, exc, tb)
        except CorruptionError:
            if exc is None:  # else that goes on its way, and this is logged
                raise

    def _look_for_keepers(self) -> None:
        """Refuse a free while somebody keeps a view. Exports of the memory are left to the free itself.

        What handles have lent by their own buffer protocol is no view that is kept (`Buffer._lent`): once the
        handles are gone, the memory lingers no more.
        """
        view, slot = self._view, getattr(self, "_slot", None)
        alive = view is not None and not is_released(view)
        if slot is None or slot.in_use(alive) or (alive and has_company(cast("memoryview", view))):
            return
        lent = getattr(self, "_lent", ())
        if view is not None and is_kept(view, 2, int(gc.get_referents(view)[0] in lent)):  # the handle, and here
            managed = gc.get_referents(view)
        elif slot.kept and slot.haunted():
            managed = [one.managed for one in slot.kept]
        else:
            return
        del view
        views = [one for one in gc.get_referrers(*managed) if isinstance(one, memoryview)]
        if not views:
            return
        raise self._refusal(f"debug letter V: a view of it is kept{_keepers(views, self)}")

    def _whose(self) -> str:
        return "\n".join(("", *self.record.story())) if self.record.allocated else super()._whose()


def checked(slot: Slot[T], debug: Debug[T]) -> CheckedBuffer[T]:
    """Make a handle for an object that was handed out."""
    record = record_of(slot)
    assert record is not None, "it was handed out"
    buf: CheckedBuffer[T] = CheckedBuffer()
    buf.debug, buf.record = debug, record
    return buf


def _keepers(views: list[memoryview], handle: object) -> str:
    """Say who refers to a view, in words that start with ``:``; "" if that cannot be found."""
    found: list[str] = []
    running: list[FrameType] = []
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        running.append(frame)
        code = frame.f_code
        for name, value in variables(frame):
            if any(value is view for view in views):
                found.append(f"variable {name!r} in {code.co_qualname}, {code.co_filename}:{frame.f_lineno}")
        value = None  # else it would be found here
    for one in chain.from_iterable(map(gc.get_referrers, views)):  # one by one: 3.13 finds a tuple of arguments
        if isinstance(one, CoroutineType):
            if not one.cr_running:
                found.append(f"a variable in {one.__qualname__}")
        elif isinstance(one, GeneratorType):
            if not one.gi_running:
                found.append(f"a variable in {one.__qualname__}")
        elif isinstance(one, FrameType):
            if one not in running and one.f_code.co_filename != __file__:  # it has ended; a traceback keeps it
                found.append(
                    f"a traceback through {one.f_code.co_qualname}, {one.f_code.co_filename}:{one.f_lineno}"
                )
        elif one is not handle and one is not views:
            found.append(f"an object of type {type(one).__name__}")
    return ": " + "; ".join(dict.fromkeys(found)) if found else ""
