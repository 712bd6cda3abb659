"""Delays for faults and emulated memory: fixed, random, or from a list."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .._checks import seconds
from .._errors import ConfigError


@dataclass(frozen=True, slots=True)
class Uniform:
    """Seconds, distributed uniformly from ``low`` to ``high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        seconds("low", self.low, zero=True)
        seconds("high", self.high, zero=True)
        if self.high < self.low:
            raise ConfigError("high", self.high, f"it must be at least low, {self.low}")


@dataclass(frozen=True, slots=True)
class Exponential:
    """Seconds, distributed exponentially: mostly short, sometimes long, ``mean`` on average."""

    mean: float

    def __post_init__(self) -> None:
        seconds("mean", self.mean, zero=True)


Delay = float | Uniform | Exponential | Sequence[float]
"""Constant, random, or a list that is repeated."""


def drawing(field: str, delay: Delay, seed: int) -> Callable[[], float]:
    """A function that returns the next delay in seconds.

    :raises ConfigError: for ``field``, if the delay is wrong
    """
    draw = random.Random(seed)
    if isinstance(delay, Uniform):
        low, high = delay.low, delay.high
        return lambda: draw.uniform(low, high)
    if isinstance(delay, Exponential):
        if not delay.mean:
            return lambda: 0.0
        rate, uniform, log = 1 / delay.mean, draw.random, math.log
        return lambda: -log(1.0 - uniform()) / rate  # as Random.expovariate does, without the call
    if isinstance(delay, Sequence):
        if not delay:
            raise ConfigError(field, delay, "it must be a list of at least one delay")
        for one in delay:
            seconds(field, one, zero=True)  # this also refuses the characters of a string
        return itertools.cycle(tuple(delay)).__next__
    seconds(field, delay, zero=True)
    fixed = float(delay)
    return lambda: fixed
