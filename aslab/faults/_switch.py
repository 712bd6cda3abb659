"""Memory that is well until somebody turns a fault on.

A fault may end by itself, after some seconds or some failures. What it holds up goes on as soon as it has ended,
however it ended.

Always true:

    1. a fault that is over holds nothing up and fails nothing, whether or not anybody has noticed that it is over
    2. each fault that was turned on is told once, and once when it has ended or was replaced; in that order,
       whichever threads do it
"""

from __future__ import annotations

import enum
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio

from .._checks import seconds as check_seconds
from .._checks import whole_number
from .._errors import CacheClosedError
from .._flags import GFP
from ..backends import Backend, Region
from ..backends._protocol import batching, owning


class FaultKind(enum.StrEnum):
    """What a fault does to acquires."""

    STUCK = "stuck"
    """They get stuck until it ends."""
    SLOW = "slow"
    """They take longer."""
    FAIL = "fail"
    """They raise MemoryError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault that is on."""

    kind: FaultKind
    began: float
    """By the event loop's clock; not a number if it was turned on where no loop runs."""
    until: float
    """When it ends by itself; infinity for never."""
    delay: float = 0.0
    """Seconds by which acquires are slow."""
    times: int = 0
    """Acquires that are to fail."""


Tell = Callable[[Fault, bool], object]
"""Called with a fault, and whether it was turned on or has ended. In the thread that did it."""


class Switch:
    """Wraps a backend: faults that are turned on and off while it is in use, by a test for example.

    One fault of each kind may be on. Releases always work. Event loop's thread only, but for `acquire_nowait`;
    those of `Allocator.faults` are for any thread.
    """

    def __init__(
        self, backend: Backend, *, clock: Callable[[], float] = anyio.current_time, tell: Tell | None = None
    ) -> None:
        self.backend = backend
        self.failures: int = 0
        """Acquires that failed so far."""
        self.stuck: int = 0
        """Acquires that are held up now, stuck or slow."""
        self._clock = clock
        self._tell: Tell = tell or (lambda fault, on: self.look_again())
        self._on: dict[FaultKind, Fault] = {}
        self._left = 0  # acquires still to fail
        self._changed = anyio.Event()
        self._closed = False
        self._lock = threading.Lock()  # of `_on`, for changes
        self._telling = threading.RLock()  # held for a change and until it is told, so that they are told in order

    def __repr__(self) -> str:
        return f"Switch({self.backend!r})"

    def fail(self, times: int = 1, seconds: float | None = None) -> None:
        """Let the next acquires raise MemoryError. Replaces what is left of an earlier call.

        :param times: how many; 0 for none
        :param seconds: when it ends even if that many have not failed; None is never
        """
        whole_number("times", times, 0)
        self._turn_on(FaultKind.FAIL, seconds, times=times)

    def stick(self, seconds: float | None = None) -> None:
        """Let acquires get stuck from now on. They can be cancelled.

        :param seconds: when it ends; None is by `heal` alone
        """
        self._turn_on(FaultKind.STUCK, seconds)

    def slow(self, delay: float, seconds: float | None = None) -> None:
        """Let acquires take longer from now on.

        :param delay: by how many seconds
        :param seconds: when it ends; None is by `heal` alone
        """
        check_seconds("delay", delay)
        self._turn_on(FaultKind.SLOW, seconds, delay=delay)

    def heal(self) -> None:
        """End all faults; what they hold up goes on."""
        for fault in tuple(self._on.values()):
            self._turn_off(fault)

    def close(self) -> None:
        """End all faults, and take no more."""
        self._closed = True
        self.heal()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that are on. Any thread."""
        found = [fault for kind in FaultKind if (fault := self._fault(kind)) is not None]
        return tuple(replace(one, times=self._left) if one.kind is FaultKind.FAIL else one for one in found)

    def expire(self) -> float:
        """Notice what has ended by itself. Returns when the next will: infinity for none."""
        for fault in tuple(self._on.values()):
            if self._is_over(fault):
                self._turn_off(fault)
        return min((fault.until for fault in tuple(self._on.values())), default=math.inf)

    def look_again(self) -> None:
        """Let acquires that are held up see what has changed. Event loop's thread only."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Fail, be held up, or ask the wrapped backend.

        :raises MemoryError: if this call fails
        """
        await self._obey(nbytes)
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Fail, or ask the wrapped backend. Any thread.

        :raises MemoryError: if this call fails
        :raises anyio.WouldBlock: if it would be held up
        """
        self._fail_perhaps(nbytes)
        if self._fault(FaultKind.STUCK) or self._fault(FaultKind.SLOW):
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Release to the wrapped backend."""
        await self.backend.release(region)

    def region_owner(self, region: Region) -> object | None:
        """As the wrapped backend says: see `aslab.backends.Owning`."""
        wrapped = owning(self.backend)
        return None if wrapped is None else wrapped.region_owner(region)

    async def _obey(self, nbytes: int) -> None:
        self._fail_perhaps(nbytes)
        if not self._on:
            return
        began = self._clock()
        self.stuck += 1
        try:
            while (end := self._held_until(began)) > self._clock():
                with anyio.CancelScope(deadline=end):
                    await self._changed.wait()
        finally:
            self.stuck -= 1

    def _held_until(self, began: float) -> float:
        """When a call that began then may go on, as things are."""
        stuck, slow = self._fault(FaultKind.STUCK), self._fault(FaultKind.SLOW)
        until = -math.inf if stuck is None else stuck.until
        return until if slow is None else max(until, min(slow.until, began + slow.delay))

    def _fail_perhaps(self, nbytes: int) -> None:
        fault = self._fault(FaultKind.FAIL)
        if fault is None:
            return
        with self._lock:
            if self._on.get(FaultKind.FAIL) is not fault:  # another thread's call was the last to fail
                return
            self.failures += 1
            self._left -= 1
            last = not self._left
        if last:
            self._turn_off(fault)
        raise MemoryError(f"switch: {nbytes} bytes refused")

    def _fault(self, kind: FaultKind) -> Fault | None:
        fault = self._on.get(kind)
        return None if fault is None or self._is_over(fault) else fault

    def _is_over(self, fault: Fault) -> bool:
        try:
            return fault.until < math.inf and fault.until <= self._clock()
        except RuntimeError:  # a thread without a loop cannot know the time
            return False

    def _turn_on(self, kind: FaultKind, seconds: float | None, delay: float = 0.0, times: int = 0) -> None:
        if seconds is not None:
            check_seconds("seconds", seconds)
        if self._closed:
            raise CacheClosedError("the allocator is closed")
        until = math.inf if seconds is None else self._clock() + seconds
        try:
            began = self._clock()
        except RuntimeError:
            began = math.nan
        fault = Fault(kind=kind, began=began, until=until, delay=delay, times=times)
        nothing = kind is FaultKind.FAIL and not times
        with self._telling:
            with self._lock:
                before = self._on.pop(kind, None)
                if kind is FaultKind.FAIL:
                    self._left = times
                if not nothing:
                    self._on[kind] = fault
            if before is not None:
                self._tell(before, False)
            if not nothing:
                self._tell(fault, True)

    def _turn_off(self, fault: Fault) -> None:
        with self._telling:
            with self._lock:
                if self._on.get(fault.kind) is not fault:  # another thread has ended or replaced it
                    return
                del self._on[fault.kind]
            self._tell(fault, False)


class BatchingSwitch(Switch):
    """The same around a backend that delivers several regions by one call."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """As `Switch.acquire`."""
        return await super().acquire(nbytes, align, gfp)

    async def acquire_many(self, count: int, nbytes: int, align: int, gfp: GFP, within: float) -> list[Region]:
        """As `acquire`: one fault for the whole call."""
        await self._obey(count * nbytes)
        wrapped = batching(self.backend)
        assert wrapped is not None, "see `switch`"
        return await wrapped.acquire_many(count, nbytes, align, gfp, within)


def switch(backend: Backend, clock: Callable[[], float], tell: Tell) -> Switch:
    """Wrap a backend so that it stays one that batches, if it is."""
    kind = Switch if batching(backend) is None else BatchingSwitch
    return kind(backend, clock=clock, tell=tell)
