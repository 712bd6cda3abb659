"""The event log: how two runs are compared.

One line per event: seconds since the start, who, what and any detail, separated by tabs. Nothing that
differs between processes is written: no address, no wall-clock time, no hash. So the same seed gives the
same bytes, and a digest stands for the whole log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple


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
        return f"{self.time:.9f}\t{self.who}\t{self.what}\t{self.detail}"


class EventLog:
    """Events in the order they were written. Event loop's thread only."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)

    def write(self, who: str, what: str, detail: str = "") -> Event:
        """Add an event with the current time. Does not suspend."""
        event = Event(self._clock(), who, what, detail)
        self._lines.append(str(event))
        return event

    @property
    def sha256(self) -> str:
        """The digest of the whole text, in hexadecimal."""
        digest = hashlib.sha256()
        for line in self._lines:
            digest.update(line.encode())
            digest.update(b"\n")
        return digest.hexdigest()
