"""Where shared buffers lie: in which slab, and at which place in it. No I/O; event loop's thread only."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from .._allocator import Allocator
from .._cache import Cache
from .._errors import ConfigError
from .._fastpath import Buffer
from ..backends import Segment
from ..backends._shared import segment_at


class Place(NamedTuple):
    """True of every buffer of that cache at that address, until the segment is closed."""

    cache: Cache[Any]
    segment: Segment
    number: int
    """Of the slab."""
    offset: int
    """In bytes, from the start of the slab."""


class Places:
    """The slabs of a service, by number, and where buffers lay that were looked for before."""

    def __init__(self, of: Allocator | Iterable[Cache[Any]]) -> None:
        self._of = of
        self._known: dict[int, Place] = {}  # by address
        self._segments: dict[int, Segment] = {}
        self._numbers: weakref.WeakKeyDictionary[Segment, int] = weakref.WeakKeyDictionary()
        self._last = 0

    def find(self, buf: Buffer[Any]) -> Place:
        """Where a buffer lies; from now on it does not move.

        :raises ConfigError: if it is not of these caches, or not in shared memory
        """
        place = self._known.get(buf.address)
        if place is None or place.cache is not buf.cache or place.segment.closed:
            return self._look_for(buf)
        _ = buf.view
        return place

    def _look_for(self, buf: Buffer[Any]) -> Place:
        if not _among(buf.cache, self._of.caches if isinstance(self._of, Allocator) else self._of):
            raise ConfigError("buf", buf, "it must be of a cache that this service was opened for")
        _ = buf.view
        address = buf.address
        segment = segment_at(address)
        if segment is None:
            both = "slabs=SharedMemory(), emergency=SharedMemory()"
            raise ConfigError("buf", buf, f"it must lie in shared memory: open_allocator({both})")
        place = Place(buf.cache, segment, self._number(segment), address - segment.address)
        self._known[address] = place
        return place

    def _number(self, segment: Segment) -> int:
        number = self._numbers.get(segment)
        if number is None:
            self._last = number = self._last + 1
            self._numbers[segment], self._segments[number] = number, segment
        return number

    def segment(self, number: int) -> Segment:
        """The slab of that number."""
        return self._segments[number]

    def forget_gone(self) -> list[int]:
        """Forget the slabs that the backend has back, and return their numbers."""
        gone = [number for number, segment in self._segments.items() if segment.closed]
        if gone:
            self._known = {address: place for address, place in self._known.items() if not place.segment.closed}
        for number in gone:
            del self._segments[number]
        return gone


def _among(cache: object, caches: Iterable[object]) -> bool:
    """Whether it is one of them; `in` would compare."""
    for one in caches:  # noqa: SIM110  (a generator costs more than the search)
        if one is cache:
            return True
    return False
