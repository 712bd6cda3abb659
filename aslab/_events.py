"""Events: what an operator wants to hear of at once, such as growth that becomes late.

A service reads them in a task of its own, by ``async for``. Nothing of the service runs inside of the allocator,
so whatever the reader does (it may await, fail, or be cancelled) disturbs nobody.

Always true:

    1. a reader gets each event from the moment it begins to listen, in order, but for those it lost
    2. a reader that falls behind loses the oldest events, never the newest, and is told how many
    3. without a reader an event costs one look at an empty dict

Event loop's thread only.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from types import TracebackType

import anyio
import anyio.lowlevel

from ._holder import Holder

MOST = 1000
"""Events kept for a reader that is behind."""


class EventKind(enum.StrEnum):
    """What happened to a cache or, for the last two, to the backends of all of them."""

    LATE = "late"
    """Growth became late: SPL's DEADLOCKED was set."""
    RECOVERED = "recovered"
    """The late grow has ended, with a slab or without: DEADLOCKED was cleared."""
    AT_LIMIT = "at_limit"
    """A caller waits at ``limit`` or ``max_objects``, and none has come to wait there for the last 10 seconds."""
    SET_ASIDE = "set_aside"
    """A grow has been stuck for ``kick_after``, and other caches grow again."""
    FAILED = "failed"
    """A grow failed; once for a series of failures."""
    HELD_LONG = "held_long"
    """A buffer has been held for ``leak_after``; once for each that was noted."""
    FAULT = "fault"
    """A fault was turned on by `Allocator.faults`."""
    HEALED = "healed"
    """A fault has ended: it was healed, replaced, or over by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEvent:
    """One event, of one cache or of a fault."""

    kind: EventKind
    """What happened."""
    cache: str
    """The name of the cache; of caches that share slabs, that of the first; of FAULT and HEALED, empty."""
    time: float
    """When, in seconds by the event loop's clock."""
    seconds: float
    """How long it lasted: of RECOVERED, since growth became late; of SET_ASIDE, since the grow began; of HEALED,
    since the fault was turned on; of HELD_LONG, since the allocation; else 0."""
    text: str
    """The same as one line for people: what is logged."""
    holder: Holder | None = None
    """Of HELD_LONG, who holds the buffer; else None."""


class Listeners:
    """All readers of one allocator's events."""

    def __init__(self) -> None:
        self.readers: dict[Events, None] = {}
        """Who listens now. An attribute, since it is looked at for each caller that waits at the limit."""
        self._closed = False

    def add(self, reader: Events) -> None:
        """Let a reader hear of everything from now on; of a closed allocator, that there is no more."""
        self.readers[reader] = None
        if self._closed:
            reader.end()

    def remove(self, reader: Events) -> None:
        """Forget a reader."""
        self.readers.pop(reader, None)

    def tell(self, event: CacheEvent) -> None:
        """Tell all readers."""
        for reader in self.readers:
            reader.put(event)

    def close(self) -> None:
        """Tell all readers that there is no more."""
        self._closed = True
        for reader in self.readers:
            reader.end()


class Events:
    """The events of one allocator from the start of a ``with`` block to its end, for ``async for``.

    Made by `Allocator.events`. The iteration ends when the allocator is closed and all events are read. Event
    loop's thread only; for one task, as each event is given once.
    """

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._queue: deque[CacheEvent] = deque()
        self._arrived = anyio.Event()
        self._ended = False
        self.lost: int = 0
        """Events that were dropped because more than 1000 were waiting to be read."""

    def __enter__(self) -> Events:
        self._listeners.add(self)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._listeners.remove(self)
        self.end()

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> CacheEvent:
        """Return the next event. Suspends until there is one; if cancelled, none is lost."""
        await anyio.lowlevel.checkpoint()
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._queue.popleft()

    def put(self, event: CacheEvent) -> None:
        """Queue an event. Called by the allocator."""
        if len(self._queue) >= MOST:
            self._queue.popleft()
            self.lost += 1
        self._queue.append(event)
        self._arrived.set()

    def end(self) -> None:
        """Note that no more events come. Called by the allocator."""
        self._ended = True
        self._arrived.set()
