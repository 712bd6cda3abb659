"""How a closed pool gets its last memory back, when no event loop is left to look now and then.

A buffer was dropped while its memory was exported, or a view object is kept: the region is released once they are
gone. A weak reference tells of that, but not of everything: not whether the object that has just ended its export
is itself kept, nor whether a finaliser brings back what the garbage collector took for garbage, since the
collector calls weak references first. So whatever a weak reference reports is checked again after the next
collection. Memory that is still reachable at exit is not released: no code can run any more.

Always true between calls: an `Orphan` that has not reported is in ``_orphans``, which keeps it alive.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

from .._fastpath import Exported, exporter

_NOTHING = exporter(memoryview(bytearray(1)), 0, 1)
_orphans: set[Orphan] = set()  # nothing else refers to them
_looks: set[Callable[[], bool]] = set()


class Orphan:
    """A place that gets no new exports. ``tell`` is called, in any thread, when the existing ones are gone.

    The exporter keeps the memory alive by a memoryview of its own. That view is waited for, not the exporter: once
    it is gone, nothing exports the region.
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
        if ctypes.c_ssize_t.from_address(self._number).value:  # its reference count: the collector is running
            self._again = ctypes.cast(self._number, ctypes.py_object).value
            look_after_collections(self._look)
        else:
            _orphans.discard(self)
            self._tell()

    def _look(self) -> bool:
        inner, self._again = self._again, None
        if inner is not None:
            self._wait_for(inner)  # reported at once if ours is the last reference
        return True


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
