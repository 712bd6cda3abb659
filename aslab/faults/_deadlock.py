"""Memory that does not come."""

from __future__ import annotations

import contextlib
import math
import random

import anyio

from .._checks import seconds, whole_number
from .._errors import ConfigError
from .._flags import GFP
from ..backends import Backend, Region


class Deadlock:
    """Wraps a backend: acquires get stuck, until their time is over or `let_go`, whichever comes first.

    Which, is said in one of three ways:

    - From the ``at``-th on, all. They stay so for ``duration`` seconds after the first one got stuck;
      afterwards everything works.
    - With ``probability``, from the ``at``-th on each one by chance, for ``duration`` seconds of its own.
    - With ``window``, those made in that time, until it ends. It is counted from when the Deadlock was made,
      or from its first call where that was outside an event loop.

    Stuck calls can be cancelled. Releases always work. A call that may not wait is refused with
    `anyio.WouldBlock` where another would get stuck.

    :param at: the first call that can get stuck, counted from 1
    :param duration: seconds; None is until `let_go`
    :param probability: percent of calls that get stuck, 0..100
    :param window: its begin and its end, in seconds
    :param seed: the same seed, the same calls stuck; only with ``probability``
    :raises ConfigError: for bad values, and for a window together with anything else
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
        """Seconds that calls are stuck; None is until `let_go`."""
        self.probability = probability
        """Percent of calls that get stuck, each for itself; None if all do."""
        self.window = window
        """Seconds from when to when calls get stuck; None if the time is not what decides."""
        self.stuck: int = 0
        """Calls that are stuck now."""
        self.calls: int = 0
        """Calls there have been."""
        self._at = at
        self._draw = random.Random(seed)
        self._origin: float | None = None
        with contextlib.suppress(RuntimeError):  # made outside an event loop
            self._origin = anyio.current_time()
        self._until: float | None = None
        self._over = False
        self._waiting: dict[anyio.Event, None] = {}  # in order, so that they wake in order

    def let_go(self) -> None:
        """End the deadlock, for good; the stuck go on in the order they came. Event loop's thread only."""
        self._over = True
        for event in self._waiting:
            event.set()

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Get stuck, if it is time to; then ask the wrapped backend."""
        self.calls += 1
        if self._is_time():
            await self._get_stuck()
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend.

        :raises anyio.WouldBlock: if the call would get stuck; in a thread without a loop, which cannot know
            the time, a window lasts while calls are stuck in it
        """
        self.calls += 1
        if self._is_time():
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Give back to the wrapped backend."""
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
            raise ConfigError("probability", probability, "allowed is a number of percent, 0..100")
    elif seed:
        raise ConfigError("seed", seed, "allowed only with a probability: nothing else is random")
    if window is None:
        return
    if at != 1 or duration is not None or probability is not None:
        raise ConfigError("window", window, "allowed only without at, duration and probability")
    if not isinstance(window, tuple) or len(window) != 2:
        raise ConfigError("window", window, "allowed is a pair of seconds, begin and end")
    for end in window:
        seconds("window", end, zero=True)
    if window[0] >= window[1]:
        raise ConfigError("window", window, "allowed is an end after the begin")
