"""Magazines: the free objects at hand, in front of the slabs (Bonwick 2001).

The hot path is the ``pop`` and ``append`` of a list, which the GIL makes atomic, so it takes no lock and works
from any thread. The last object freed is the first one handed out again, while it is warm; a flush takes the
oldest. Linux and illumos have a magazine for each processor. Under the GIL one for each cache does.

Beside the objects lie two sets of bits, each bit a reason, for which the hot path needs one look:

    detour    why an allocation must not simply pop
    watch     who wants to hear of a free, besides the slabs when the magazine is full

Always true between calls: whatever is in the magazine is out of its slab and in nobody's hands; a bit is set while
its reason holds. Whoever owns a reason sets the bit when it begins and clears it when it ends; nobody else does.
"""

from __future__ import annotations

import sys
import weakref
from ctypes import c_ubyte
from typing import Any, Generic, TypeVar

from ._native import compiled
from ._views import Exported, Exporter, KeptView

T = TypeVar("T")
SMALLEST, LARGEST = 2, 256

WAITERS = 1 << 0
"""In ``watch``: somebody waits in line, and has not been told of what is free. In ``detour``: those come first."""
FILLERS = 1 << 1
"""Somebody waits until so many objects are free, or the reserve is full."""
RESERVE = 1 << 2
"""The reserve is short."""
KEPT = 1 << 3
"""Objects are kept for those who finish: a task that frees has a claim on one."""
REPACK = 1 << 4
"""Emergency objects should move into slabs."""
CONDEMNED = 1 << 5
"""A slab goes as soon as it is empty."""
SHORT = 1 << 6
"""Other caches wait for slabs at the limit."""
CLOSED = 1 << 7
"""The pool is closed: nothing is allocated, and what is freed goes back."""
OPTIONS = 1 << 8
"""Only in ``detour``: by the options of the cache each allocation needs more than the magazine."""
NOTED = 1 << 9
"""Only in ``detour``: it is noted who gets the next object."""

_NAMES = {
    WAITERS: "WAITERS",
    FILLERS: "FILLERS",
    RESERVE: "RESERVE",
    KEPT: "KEPT",
    REPACK: "REPACK",
    CONDEMNED: "CONDEMNED",
    SHORT: "SHORT",
    CLOSED: "CLOSED",
    OPTIONS: "OPTIONS",
    NOTED: "NOTED",
}

_SIZES = ((2**20, 4), (128 * 2**10, 16), (4 * 2**10, 64), (2**10, 128), (0, LARGEST))
"""From this object size on, so many objects: SPL's table, for 4 KiB pages."""


def default_size(object_size: int) -> int:
    """How many objects of that many bytes a magazine holds."""
    return next(size for least, size in _SIZES if object_size >= least)


@compiled
class Slot(Exported, Generic[T]):
    """The place of one object. Only `Buffer` handles, which come and go, reach a caller."""

    __slots__ = ("address", "obj", "out", "owner", "slab")

    slab: object | None
    """Where it was cut from; None for an emergency object. What is behind the magazine knows what that is."""
    out: bool
    """Whether it is out of its slab."""
    owner: weakref.ref[object] | None
    """The handle that leads here, in caches whose objects may be moved."""
    address: int
    obj: T | None
    """What the cache's constructor built here; kept from one owner to the next (Bonwick 1994)."""

    def __init__(self, slab: object | None, memory: memoryview, start: int, offset: int, size: int) -> None:
        # `Exported.__init__`, written out: there are very many.
        self.exporter: Exporter = (c_ubyte * size).from_buffer(memory, offset)
        self.kept: tuple[KeptView, ...] = ()
        self.slab = slab
        self.out = False
        self.owner = None
        self.address = start + offset
        self.obj = None

    @classmethod
    def carve(
        cls, slots: list[Slot[T]], slab: object, memory: memoryview, start: int, size: int, stride: int, count: int
    ) -> object:
        """Append the next ``count`` slots of a slab to the list of its slots. The slab holds what is returned."""
        made = len(slots)
        slots += [cls(slab, memory, start, number * stride, size) for number in range(made, made + count)]
        return None


@compiled
class EmergencySlot(Slot[T]):
    """The slot of one emergency object, which has memory of its own."""

    __slots__ = ("part", "record", "region")

    region: object
    """What is kept of that: its region, or what owns the memory."""
    record: Any
    """What the debug letters know of it, or None."""
    part: dict[EmergencySlot[T], None]
    """Where it stands among those held."""


@compiled
class Magazine(list[Slot[T]]):
    """A stack of free slots, newest last. May stand over its capacity for a moment."""

    __slots__ = ("batch", "capacity", "detour", "due", "hits", "watch")

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity: int = capacity
        self.batch: int = -(-capacity // 2)
        self.hits: int = 0
        """Allocations that simply popped: never in a shared pool, whose allocations all take the detour."""
        self.due: int = sys.maxsize
        """From that many hits on, the next allocation takes the detour (NOTED). One that takes it anyway counts,
        too: it lowers this."""
        self.detour: int = False
        self.watch: int = False

    # A set of bits changes in one statement, with no call in it: CPython switches threads at calls and jumps back
    # only. None set is False and not 0, which the interpreter tests faster.

    def watch_for(self, reason: int) -> None:
        """From now on each free is heard of. Any thread."""
        self.watch |= reason

    def stop_watching(self, reason: int) -> None:
        """That reason has ended. Any thread."""
        self.watch = self.watch & ~reason or False

    def set_watch(self, reason: int, *, on: bool) -> None:
        """One or the other."""
        if on:
            self.watch_for(reason)
        else:
            self.stop_watching(reason)

    def divert(self, reason: int) -> None:
        """From now on no allocation simply pops. Any thread."""
        self.detour |= reason

    def let_pop(self, reason: int) -> None:
        """That reason has ended. Any thread."""
        self.detour = self.detour & ~reason or False

    def close(self) -> None:
        """Nothing is to lie here any more."""
        self.capacity = 0
        self.watch = CLOSED
        self.divert(CLOSED)

    def check(self, reason: int, holds: object, *, detour: bool = False) -> None:
        """For the owner of a reason: is its bit what it should be?

        :raises AssertionError: if it was forgotten
        """
        bits = self.detour if detour else self.watch
        if bool(bits & reason) != bool(holds):
            way, what = "detour" if detour else "watch", "missing" if holds else "left over"
            raise AssertionError(f"{way}: {_NAMES[reason]} is {what}")

    def take_oldest(self) -> Slot[T] | None:
        """The slot that has lain here longest, or None. Atomic, as pop and append are."""
        try:
            return self.pop(0)
        except IndexError:
            return None
