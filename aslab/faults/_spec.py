"""Faults as text, for command lines: ``latency:250ms``, ``deadlock:3s,at=2``, ``failslab:probability=20``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from .._errors import ConfigError
from ..backends import Backend, Heap
from ._deadlock import Deadlock
from ._delay import Exponential, Uniform
from ._failslab import Failslab
from ._latency import Latency

ALLOWED = (
    "it must look like latency:250ms, latency:10ms-50ms, latency:mean=20ms, deadlock, deadlock:3s, "
    "deadlock:3s,at=2, deadlock:probability=20,duration=1s,seed=3, deadlock:window=3s-5s, "
    "failslab:probability=20 (also interval, times, space, fail_nth, seed)"
)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_KNOBS = {"probability", "interval", "times", "space", "fail_nth", "seed"}


def parse_fault(spec: str) -> Callable[[Backend], Backend]:
    """Parse a fault into a function that wraps a backend.

    :raises ConfigError: if it is not a valid fault
    """
    kind, _, rest = spec.partition(":")
    words = [word for word in rest.split(",") if word]
    plain = [word for word in words if "=" not in word]
    named = [word.split("=", 1) for word in words if "=" in word]
    options = dict(named)
    try:
        wrap = {"latency": _latency, "deadlock": _deadlock, "failslab": _failslab}[kind](plain, options)
    except (KeyError, ValueError) as exc:
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError("inject", spec, ALLOWED) from None
    if options or plain or len({name for name, _ in named}) < len(named):
        raise ConfigError("inject", spec, ALLOWED)
    wrap(Heap())  # refuses wrong values now, not when the first backend is wrapped
    return wrap


def parse_seconds(text: str) -> float:
    """Parse ``3s``, ``250ms``, ``40us``, ``1m``, or a plain number of seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m)?", text)
    if match is None:
        raise ValueError(text)
    return float(match[1]) * _UNITS[match[2] or "s"]


def _latency(plain: list[str], options: dict[str, str]) -> Callable[[Backend], Backend]:
    seed = int(options.pop("seed", "0"))
    if "mean" in options:
        return partial(Latency, acquire=Exponential(parse_seconds(options.pop("mean"))), seed=seed)
    low, dash, high = plain.pop().partition("-") if plain else ("", "", "")
    if dash:
        return partial(Latency, acquire=Uniform(parse_seconds(low), parse_seconds(high)), seed=seed)
    return partial(Latency, acquire=parse_seconds(low))


def _deadlock(plain: list[str], options: dict[str, str]) -> Callable[[Backend], Backend]:
    knobs: dict[str, Any] = {"at": int(options.pop("at", "1")), "seed": int(options.pop("seed", "0"))}
    if plain:
        knobs["duration"] = parse_seconds(plain.pop())
    elif "duration" in options:
        knobs["duration"] = parse_seconds(options.pop("duration"))
    if "probability" in options:
        knobs["probability"] = float(options.pop("probability"))
    if "window" in options:
        begin, _, end = options.pop("window").partition("-")
        knobs["window"] = parse_seconds(begin), parse_seconds(end)
    return partial(Deadlock, **knobs)


def _failslab(plain: list[str], options: dict[str, str]) -> Callable[[Backend], Backend]:
    if plain or not options or not set(options) <= _KNOBS:
        raise ValueError
    knobs = {name: int(options.pop(name)) for name in tuple(options)}
    if "fail_nth" not in knobs:
        knobs.setdefault("probability", 100)
    return lambda backend: Failslab(backend, **knobs)
