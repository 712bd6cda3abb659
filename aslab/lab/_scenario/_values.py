"""Values in scenario files that TOML has no type for: times, sizes, shares and distributions."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainValidator

from ..._checks import parse_size
from ..._errors import ConfigError
from ...faults import Delay, Exponential, Uniform
from ...faults._spec import parse_seconds

LONGEST = 7 * 24 * 3600.0  # seconds; more is surely a mistake
LARGEST = 2**30  # bytes, for one object or slab; an allocator's limit may be larger

SHORTEST = 1e-9  # seconds; less is lost in the rounding of the clock

TIMES = "it must be a time with a unit, such as '40us', '250ms', '3s', '2m', from 1 ns to a week"
DISTRIBUTIONS = (
    "it must be a time such as '250ms', {low = '1ms', high = '5ms'}, {mean = '10ms'}, or a list of times"
)


def parse_time(given: object) -> float:
    """Convert a time with a unit to seconds.

    :raises ValueError: with what it must be
    """
    if isinstance(given, str):
        try:
            number = parse_seconds(given)
        except (ValueError, OverflowError):
            number = math.nan
        if given[-1:].isalpha() and (number == 0 or SHORTEST <= number <= LONGEST):
            return number
    raise ValueError(TIMES)


def _positive_time(given: object) -> float:
    number = parse_time(given)
    if not number:
        raise ValueError(TIMES + ", and above 0")
    return number


def _time_or_never(given: object) -> float | None:
    if given == "never":
        return None
    try:
        return _positive_time(given)
    except ValueError:
        raise ValueError(TIMES + ", above 0, or 'never'") from None


def _distribution(given: object) -> Delay:
    try:
        if isinstance(given, str):
            return parse_time(given)
        if isinstance(given, list) and given:
            return tuple(map(parse_time, given))
        if isinstance(given, dict) and set(given) == {"mean"}:
            return Exponential(parse_time(given["mean"]))
        if isinstance(given, dict) and set(given) == {"low", "high"}:
            return Uniform(parse_time(given["low"]), parse_time(given["high"]))
    except ConfigError as exc:
        raise ValueError(exc.allowed) from None
    except ValueError:
        pass
    raise ValueError(DISTRIBUTIONS)


def _size(given: object, most: int = LARGEST) -> int:
    if type(given) is int and 0 < given <= most:
        return given
    try:
        return parse_size("", given if isinstance(given, str) else "", most)
    except ConfigError as exc:
        raise ValueError(exc.allowed) from None


def _share(given: object) -> float:
    if isinstance(given, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?%", given):
        share = float(given[:-1]) / 100
        if share <= 1:
            return share
    raise ValueError("it must be a share, from '0%' to '100%'")


def _limit(given: Any) -> int:
    return _size(given, 2**50)


def always_zero(delay: Delay) -> bool:
    """Whether it only ever draws 0."""
    if isinstance(delay, Uniform):
        return not delay.high
    if isinstance(delay, Exponential):
        return not delay.mean
    return not any(delay) if isinstance(delay, tuple) else not delay


Time = Annotated[float, BeforeValidator(parse_time)]
"""Seconds, 0 included."""
PositiveTime = Annotated[float, BeforeValidator(_positive_time)]
"""Seconds, above 0."""
TimeOrNever = Annotated[float | None, BeforeValidator(_time_or_never)]
"""Seconds, above 0; None for never."""
Distribution = Annotated[Delay, PlainValidator(_distribution)]
"""Seconds, drawn each time."""
Size = Annotated[int, BeforeValidator(_size)]
"""Bytes."""
Limit = Annotated[int, BeforeValidator(_limit)]
"""Bytes; never allocated in one piece."""
Share = Annotated[float, BeforeValidator(_share)]
"""0 to 1."""
