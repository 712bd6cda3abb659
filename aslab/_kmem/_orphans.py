"""How a closed pool gets its last memory back, when no event loop is left to look from time to time.

If a buffer was dropped while its memory was exported, or a view object is kept, the region is released once those
are gone. A weak reference reports that, but not reliably: not whether the object that ended its export is itself
kept, nor whether a finaliser resurrects what the garbage collector took for garbage, since the collector clears
weak references first. So what a weak reference reports is checked again after the next collection. Memory that is
still reachable at exit is not released, as no code can run then.

Always true, between calls:

    1. an `Orphan` that has not reported is in ``_orphans``, which keeps it alive
    2. every function in ``_looks`` is called after each collection, until it returns True
"""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any, cast

from .._fastpath import Exported, exporter

_NOTHING = exporter(memoryview(bytearray(1)), 0, 1)
_orphans: set[Orphan] = set()  # nothing else refers to them
_looks: set[Callable[[], bool]] = set()


class Orphan:
    """A place that gets no new exports. ``tell`` is called, in any thread, once the existing ones are gone.

    The exporter keeps the memory alive by a memoryview of its own. The orphan waits for that view, not for the
    exporter: once it is gone, nothing exports the region.
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

    def _gone(self, _: object, *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if ending():  # the globals of this module may be gone, too
            return
        if ctypes.c_ssize_t.from_address(self._number).value:  # its reference count: the collector is running
            self._again = ctypes.cast(self._number, ctypes.py_object).value
            look_after_collections(self._look)
        else:
            _orphans.discard(self)
            self._tell()

    def _look(self) -> bool:
        inner, self._again = self._again, None
        if inner is not None:
            self._wait_for(inner)  # reports at once if ours is the last reference
        return True


def watch(place: Exported, tell: Callable[[], object]) -> None:
    """Call ``tell``, in any thread, once the exports of a place are gone. The place gets no new ones."""
    if not place.tell_when_unused(tell):
        Orphan(place, tell)


def look_after_collections(look: Callable[[], bool]) -> None:
    """Call ``look`` after each garbage collection, in any thread, until it returns True."""
    _looks.add(look)
    if _after_collection not in gc.callbacks:
        gc.callbacks.append(_after_collection)


def _after_collection(phase: str, _: object) -> None:
    if phase == "stop":
        for look in list(_looks):
            _looks.discard(look)
            if not look():
                _looks.add(look)
