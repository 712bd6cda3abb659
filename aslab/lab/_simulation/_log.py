"""The event log: how two runs are compared. Written as events; text is made when it is read.

One line per event: seconds since the start, who, what and any detail, separated by tabs. Nothing that
differs between processes is written: no address, no wall-clock time, no hash. So the same seed gives the
same bytes, and a digest stands for the whole log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

LINE = "%.9f\t%s\t%s\t%s\n"
AT_ONCE = 4096
"""Events that are kept, and formatted, together."""
FIELDS = 4
_make = tuple.__new__  # what Event() calls, without the call in between


class Event(NamedTuple):
    """One thing that happened."""

    time: float
    """Seconds since the run began."""
    who: str
    """The name of a task, a cache or a backend."""
    what: str
    """One word."""
    detail: str = ""
    """Any further detail, on one line."""

    def __str__(self) -> str:
        return (LINE % self)[:-1]


class EventLog:
    """Events in the order they were written. Event loop's thread only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._written: list[object] = []  # the fields of one event after the other
        self._parts: list[tuple[object, ...]] = []  # those before: the collector leaves tuples of texts alone

    def __len__(self) -> int:
        return len(self._parts) * AT_ONCE + len(self._written) // FIELDS

    def __str__(self) -> str:
        return "".join(self._chunks())

    def write(self, who: str, what: str, detail: str = "") -> Event:
        """Add an event with the current time. Does not suspend."""
        event = _make(Event, (self._clock(), who, what, detail))
        written = self._written
        written += event
        if len(written) == AT_ONCE * FIELDS:
            self._parts.append(tuple(written))
            written.clear()
        return event

    @property
    def sha256(self) -> str:
        """The digest of the whole text, in hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self._chunks():
            digest.update(chunk.encode())
        return digest.hexdigest()

    def _chunks(self) -> Iterator[str]:
        for fields in (*self._parts, tuple(self._written)):
            yield LINE * (len(fields) // FIELDS) % fields
