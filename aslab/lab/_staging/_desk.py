"""What a request says to a pool, and what every pool notes of it.

To each pool a request says the same: so many buffers to begin with, or one more, to finish what it has begun. What
a pool makes of that is its own affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ... import Buffer
from .._simulation._run import current
from .._simulation._waits import WaitGraph

POOL = "staging pool"
"""What a request waits on, and whoever has a buffer is waited on for."""


@dataclass(slots=True, eq=False)
class Staged:
    """A buffer in somebody's hands."""

    hold: AbstractContextManager[None]
    buffer: Buffer[Any] | None = None
    """Where aslab gave it."""

    @property
    def pinned(self) -> bool:
        """Whether the GPU can copy from it at full speed."""
        return self.buffer is None or not self.buffer.emergency


class Pool(Protocol):
    """What a request sees."""

    async def begin(self, count: int) -> list[Staged]:
        """So many buffers for somebody who begins, and has none."""
        ...

    async def finish(self) -> Staged:
        """One buffer for somebody who has something that comes back once this is served."""
        ...

    def give(self, staged: Staged) -> None:
        """Take a buffer back."""
        ...


class Desk:
    """What all pools note of those who come: who waits on whom, and how often somebody looked for a buffer."""

    def __init__(self, waits: WaitGraph) -> None:
        self.waits = waits
        self.looks: Counter[int] = Counter()
        """By the second in which they were."""

    def look(self) -> None:
        """Somebody looks whether a buffer is free."""
        self.looks[int(current().time())] += 1

    def waiting(self) -> AbstractContextManager[None]:
        """While this lasts, the task waits on whoever has a buffer."""
        self.look()
        return self.waits.on(POOL)

    def hand_out(self, buffer: Buffer[Any] | None = None) -> Staged:
        """From here on who waits on the pool waits on this task."""
        staged = Staged(self.waits.held(POOL), buffer)
        staged.hold.__enter__()
        return staged

    def take_back(self, staged: Staged) -> None:
        """It does not any more."""
        staged.hold.__exit__(None, None, None)


class OneByOne(ABC):
    """A pool that knows single buffers: two are had one after the other, and all who ask are alike."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def begin(self, count: int) -> list[Staged]:
        """One after the other."""
        return [await self.finish() for _ in range(count)]

    @abstractmethod
    async def finish(self) -> Staged:
        """The next buffer for whoever asks."""

    @abstractmethod
    def give(self, staged: Staged) -> None:
        """Take a buffer back."""
