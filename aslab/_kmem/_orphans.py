"""What a closed pool waits for when no event loop is left that looks now and then.

A buffer was forgotten while somebody exported its memory, or a view object is kept: the region goes back when they
are gone. A weak reference tells of that, but not of all: whether the object that has just ended its export is
itself kept; and whether a finaliser brings back what the garbage collector took for garbage, since that calls weak
references first. So what it tells of then is looked at after the next collection. What lives until the process
ends is not given back: nothing can run any more.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

from .._fastpath import Exported, exporter

_NOTHING = exporter(memoryview(bytearray(1)), 0, 1)
_orphans: set[Orphan] = set()  # else nobody would hold them
_looks: set[Callable[[], bool]] = set()


class Orphan:
    """A place that nobody exports but those who do already. ``tell`` is called when they are gone, in any thread.

    The way to the memory is the exporter, and that holds on to it by a memoryview of its own: that is waited for,
    not the exporter, since once it is gone nothing exports the region any more.
    """

    def __init__(self, place: Exported, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._again: memoryview | None = None
        _orphans.add(self)
        (inner,) = cast("dict[str, memoryview]", place.exporter._objects).values()
        place.exporter = _NOTHING
        self._number = id(inner)
        self._wait_for(inner)

    def _wait_for(self, inner: memoryview) -> None:
        self._ref: Any = weakref.ref(inner, self._gone)

    def _gone(self, _: object) -> None:
        if ctypes.c_ssize_t.from_address(self._number).value:  # its reference count: the collector is at work
            self._again = ctypes.cast(self._number, ctypes.py_object).value
            look_after_collections(self._look)
        else:
            _orphans.discard(self)
            self._tell()

    def _look(self) -> bool:
        inner, self._again = self._again, None
        if inner is not None:
            self._wait_for(inner)  # told at once if it is ours alone
        return True


def look_after_collections(look: Callable[[], bool]) -> None:
    """Have that called after each garbage collection, in any thread, until it answers True."""
    _looks.add(look)
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        for look in list(_looks):
            _looks.discard(look)
            if not look():
                _looks.add(look)
