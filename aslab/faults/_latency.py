"""Memory that takes its time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from .._config import seconds
from .._errors import ConfigError
from .._flags import GFP
from ..backends import Backend, Region


@dataclass(frozen=True, slots=True)
class Uniform:
    """Seconds, anything from ``low`` to ``high`` alike."""

    low: float
    high: float

    def __post_init__(self) -> None:
        seconds("low", self.low, zero=True)
        seconds("high", self.high, zero=True)
        if self.high < self.low:
            raise ConfigError("high", self.high, f"allowed is at least low, {self.low}")


@dataclass(frozen=True, slots=True)
class Exponential:
    """Seconds, mostly short and now and then long, ``mean`` on average."""

    mean: float

    def __post_init__(self) -> None:
        seconds("mean", self.mean, zero=True)


Delay = float | Uniform | Exponential | Sequence[float]
"""Always the same, drawn at random, or a list that is replayed, over and over."""


class Latency:
    """Wraps a backend: each acquire and each release takes a while longer.

    The delay passes before the wrapped backend is asked, as a cancellable sleep on the event loop, so
    in virtual time too. Draws come from ``seed``: the same seed, the same delays.

    A call that may not wait is refused with `anyio.WouldBlock` where the delay is not 0.
    """

    def __init__(self, backend: Backend, acquire: Delay, release: Delay = 0.0, *, seed: int = 0) -> None:
        self.backend = backend
        self._acquire_delay = _drawing("acquire", acquire, seed)
        self._release_delay = _drawing("release", release, seed + 1)

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Sleep, then ask the wrapped backend."""
        await anyio.sleep(self._acquire_delay())
        return await self.backend.acquire(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Ask the wrapped backend.

        :raises anyio.WouldBlock: if the delay drawn is not 0
        """
        if self._acquire_delay() > 0:
            raise anyio.WouldBlock
        return self.backend.acquire_nowait(nbytes, align, gfp)

    async def release(self, region: Region) -> None:
        """Sleep, then give back to the wrapped backend, even if cancelled meanwhile."""
        try:
            await anyio.sleep(self._release_delay())
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.backend.release(region)
            raise
        await self.backend.release(region)


def _drawing(field: str, delay: Delay, seed: int) -> Callable[[], float]:
    draw = random.Random(seed)
    if isinstance(delay, Uniform):
        low, high = delay.low, delay.high
        return lambda: draw.uniform(low, high)
    if isinstance(delay, Exponential):
        mean = delay.mean
        return lambda: draw.expovariate(1 / mean) if mean else 0.0
    if isinstance(delay, Sequence):
        if not delay:
            raise ConfigError(field, delay, "allowed is a list of at least one delay")
        for one in delay:
            seconds(field, one, zero=True)  # also what a string consists of is refused here
        return itertools.cycle(tuple(delay)).__next__
    seconds(field, delay, zero=True)
    fixed = float(delay)
    return lambda: fixed
