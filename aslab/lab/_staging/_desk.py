"""What a request asks of a pool, and what every pool records about it.

Every pool gets the same requests: some buffers to begin with, or one more to finish. What it does with that
information is up to the pool.
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
"""The node that requests wait on, and that waits on whoever holds a buffer."""


@dataclass(slots=True, eq=False)
class Staged:
    """A buffer in use."""

    hold: AbstractContextManager[None]
    buffer: Buffer[Any] | None = None
    """The aslab buffer, if it is one."""

    @property
    def pinned(self) -> bool:
        """Whether the GPU can copy from it at full speed."""
        return self.buffer is None or not self.buffer.emergency


class Pool(Protocol):
    """What a request sees of a pool."""

    async def begin(self, count: int) -> list[Staged]:
        """Allocate buffers for a request that begins and has none."""
        ...

    async def finish(self) -> Staged:
        """Allocate one buffer for a request that will free something once it has it."""
        ...

    def give(self, staged: Staged) -> None:
        """Free a buffer."""
        ...


class Desk:
    """What all pools record: who waits on whom, and how often a request checked for a free buffer."""

    def __init__(self, waits: WaitGraph) -> None:
        self.waits = waits
        self.looks: Counter[int] = Counter()
        """The number of checks, by second."""

    def look(self) -> None:
        """Count a check for a free buffer."""
        self.looks[int(current().time())] += 1

    def waiting(self) -> AbstractContextManager[None]:
        """Within this block, the task waits on whoever holds a buffer."""
        self.look()
        return self.waits.on(POOL)

    def hand_out(self, buffer: Buffer[Any] | None = None) -> Staged:
        """From now on, whoever waits on the pool waits on this task."""
        staged = Staged(self.waits.held(POOL), buffer)
        staged.hold.__enter__()
        return staged

    def take_back(self, staged: Staged) -> None:
        """The end of that."""
        staged.hold.__exit__(None, None, None)


class OneByOne(ABC):
    """A pool of single buffers: two are allocated one after the other, and all requests are alike."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def begin(self, count: int) -> list[Staged]:
        """Allocate one after the other."""
        return [await self.finish() for _ in range(count)]

    @abstractmethod
    async def finish(self) -> Staged:
        """Allocate the next buffer."""

    @abstractmethod
    def give(self, staged: Staged) -> None:
        """Free a buffer."""
