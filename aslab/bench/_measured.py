"""What a benchmark measures, and what comes of it: turns that run interleaved, and rows with their spread.

Machines are shared and noisy: what else runs may halve a speed, and may change from one second to the next. So
each round measures all contenders of a case one after the other, every second round in the opposite order and each
of them first in its turn, and a ratio is made of two values of the same round. The median and the quartiles of all
rounds are shown.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

OURS = "aslab"
"""The contenders whose names begin with this are the project's own."""


class Quantity(NamedTuple):
    """What a figure is a figure of."""

    what: str
    """Such as "a pair", or "longest wait"."""
    unit: str
    more_is_better: bool = False

    def __str__(self) -> str:
        return f"{self.what}, {self.unit}"


Values = Mapping[Quantity, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender at one task, measured once a round."""

    case: str
    """What is to be done; empty if the benchmark has one task only."""
    contender: str
    measure: Callable[[], Values]
    loop: str = ""
    """The event loop it runs on; empty if that makes no difference."""
    against: str = ""
    """The contender of the same case and loop that it is compared with; empty for none."""
    rounds: int | None = None
    """The most rounds it takes part in, for what takes very long."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a command of ``aslab bench`` measures."""

    title: str
    turns: Sequence[Turn]
    note: str = ""
    name: str = ""
    """Its name in JSON and in a history; the command's if empty."""
    around: AbstractContextManager[object] = field(default_factory=nullcontext)
    """Entered before the first turn, and left after the last."""
    foretell: Callable[[int], str] | None = None
    """Says how long so many rounds take, for what takes minutes; told before it begins."""


class Spread(NamedTuple):
    """The median of several values, and the quartiles on both sides of it."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; all the same for a single value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


class Key(NamedTuple):
    """What a row is about."""

    loop: str
    case: str
    contender: str
    quantity: Quantity


@dataclass(frozen=True, slots=True)
class Row:
    """All that was measured of one quantity of one contender."""

    key: Key
    rounds: tuple[float, ...]
    """Its value in each round."""
    against: str = ""
    ratios: tuple[float, ...] = ()
    """Its value in each round divided by that of the contender ``against``; empty if there is none."""

    @property
    def best(self) -> float:
        """The best value of all rounds: what else a machine does only ever makes it worse."""
        return max(self.rounds) if self.key.quantity.more_is_better else min(self.rounds)


def interleave(turns: Sequence[Turn], rounds: int, tell: Callable[[Turn], object]) -> list[Row]:
    """Measure everything that often, and return the rows: all contenders of a case and a quantity together.

    :param tell: called before each turn
    """
    values: dict[Key, list[float]] = {}
    for number in range(rounds):
        for turn in _order(turns, number):
            if turn.rounds is None or number < turn.rounds:
                tell(turn)
                for quantity, value in turn.measure().items():
                    key = Key(turn.loop, turn.case, turn.contender, quantity)
                    values.setdefault(key, []).append(value)
    return list(_rows(turns, values))


def _order(turns: Sequence[Turn], number: int) -> list[Turn]:
    """That of one round: who comes first may find memory that is warmer, or a processor that is free."""
    order: list[Turn] = []
    for _, alike in itertools.groupby(turns, lambda turn: (turn.loop, turn.case)):
        group = list(alike)
        by = number // 2 % len(group)
        order += group[by:] + group[:by]
    return order if number % 2 == 0 else order[::-1]


def _rows(turns: Sequence[Turn], values: Mapping[Key, Sequence[float]]) -> Iterator[Row]:
    against = {(turn.loop, turn.case, turn.contender): turn.against for turn in turns}
    charts: dict[tuple[str, str, Quantity], list[Key]] = {}
    for key in values:
        charts.setdefault((key.loop, key.case, key.quantity), []).append(key)
    for key in itertools.chain.from_iterable(charts.values()):
        found = values[key]
        other = against[key[:3]]
        base = values.get(key._replace(contender=other), ())
        if base and all(base):
            ratios = tuple(one / by for one, by in zip(found, base, strict=True))
            yield Row(key, tuple(found), other, ratios)
        else:  # nothing to compare with, or a wait of no time at all
            yield Row(key, tuple(found))
