"""Memory that never arrives."""

from __future__ import annotations

import contextlib
import math
import random

import anyio

from .._checks import seconds, whole_number
from .._errors import ConfigError
from .._flags import GFP
from .._reach import self_contained
from ..backends import Backend, Region


@self_contained("backend")
class Deadlock:
    """Wraps a backend: acquires get stuck until their time is over or `let_go` is called.

    There are three ways to choose which calls get stuck:

    - By default, all from the ``at``-th on. They stay stuck until ``duration`` seconds after the first one got
      stuck; after that everything works.
    - With ``probability``, each call from the ``at``-th on by chance, for ``duration`` seconds.
    - With ``window``, calls made within that time, until it ends. Time counts from the creation of the Deadlock,
      or from its first call if it was created outside an event loop.

    Stuck calls can be cancelled. Releases always work. Where a call would get stuck, one that may not wait is
    refused with `anyio.WouldBlock`.

    :param at: the first call that can get stuck, counted from 1
    :param duration: seconds; None means until `let_go`
    :param probability: percentage of calls that get stuck, 0..100
    :param window: begin and end, in seconds
    :param seed: the same seed makes the same calls stuck; only with ``probability``
    :raises ConfigError: if a value is wrong, or a window is combined with anything else
    """

    def __init__(
        self,
        backend: Backend,
        *,
        at: int = 1,
        duration: float | None = None,
        probability: float | None = None,
        window: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        whole_number("at", at, 1)
        if duration is not None:
            seconds("duration", duration)
        _check(at, duration, probability, window, seed)
        self.backend = backend
        self.duration = duration
        """Seconds that calls are stuck; None means until `let_go`."""
        self.probability = probability
        """Percentage of calls that get stuck, independently; None if all do."""
        self.window = window
        """Begin and end of the time when calls get stuck, in seconds; None if time does not matter."""
        self.stuck: int = 0
        """Calls stuck right now."""
        self.calls: int = 0
        """Calls so far."""
        self._at = at
        self._draw = random.Random(seed)
        self._origin: float | None = None
        with contextlib.suppress(RuntimeError):  # created outside an event loop
            self._origin = anyio.current_time()
        self._until: float | None = None
        self._over = False
        self._waiting: dict[anyio.Event, None] = {}  # ordered, so that they wake in order

    def let_go(self) -> None:
        """End the deadlock for good; stuck calls continue in order of arrival. Event loop's thread only."""
        self._over = True
        for event in self._waiting:
            event.set()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Get stuck if it is time to, then ask the wrapped backend."""
        self.calls += 1
        if self._is_time():
            await self._get_stuck()
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend.

        :raises anyio.WouldBlock: if the call would get stuck. A thread without a loop cannot know the time: for
            it, a window lasts while calls are stuck in it
        """
        self.calls += 1
        if self._is_time():
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Release to the wrapped backend."""
        await self.backend.release(region)

    def _is_time(self) -> bool:
        if self._over or self.calls < self._at:
            return False
        if self.probability is not None:
            return self._draw.random() * 100 < self.probability
        try:
            now = anyio.current_time()
        except RuntimeError:  # a thread without a loop cannot know the time
            return self.window is None or self.stuck > 0
        if self.window is not None:
            if self._origin is None:
                self._origin = now
            return self._origin + self.window[0] <= now < self._origin + self.window[1]
        self._over = self._until is not None and now >= self._until
        return not self._over

    def _deadline(self) -> float:
        if self.window is not None and self._origin is not None:
            return self._origin + self.window[1]
        end = anyio.current_time() + (math.inf if self.duration is None else self.duration)
        if self.probability is not None:
            return end
        if self._until is None:
            self._until = end
        return self._until

    async def _get_stuck(self) -> None:
        event = anyio.Event()
        self._waiting[event] = None
        self.stuck += 1
        try:
            with anyio.CancelScope(deadline=self._deadline()):
                await event.wait()
        finally:
            self.stuck -= 1
            del self._waiting[event]
        if self.window is None and self.probability is None:
            self._over = True


def _check(at: int, duration: float | None, probability: object, window: object, seed: int) -> None:
    if probability is not None:
        number = isinstance(probability, (int, float)) and not isinstance(probability, bool)
        if not number or not 0 <= probability <= 100:  # type: ignore[operator]
            raise ConfigError("probability", probability, "it must be a percentage from 0 to 100")
    elif seed:
        raise ConfigError("seed", seed, "it needs a probability: nothing else is random")
    if window is None:
        return
    if at != 1 or duration is not None or probability is not None:
        raise ConfigError("window", window, "it excludes at, duration and probability")
    if not isinstance(window, tuple) or len(window) != 2:
        raise ConfigError("window", window, "it must be a pair of times in seconds, begin and end")
    for end in window:
        seconds("window", end, zero=True)
    if window[0] >= window[1]:
        raise ConfigError("window", window, "it must end after it begins")
