"""How long something takes: a fixed time, a random one, or a list; for faults and for emulated memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._checks import seconds
from .._errors import ConfigError


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


def drawing(field: str, delay: Delay, seed: int) -> Callable[[], float]:
    """A function that answers the next delay in seconds.

    :raises ConfigError: naming ``field``
    """
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
