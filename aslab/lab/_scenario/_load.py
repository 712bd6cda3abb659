"""Reads a scenario file, or says in one line what is wrong with it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ..._config import cache_config
from ..._errors import ConfigError
from ..._flags import CacheFlags
from ..._options import AllocatorOptions, CacheOptions
from ._complaints import complaint, printable, short
from ._machine import Machine, keys_under
from ._metrics import METRICS
from ._schema import (
    AllocatorSection,
    CacheSection,
    Expectation,
    HeapBackend,
    MmapBackend,
    Scenario,
    TaskSection,
)
from ._values import TIMES, always_zero, parse_time

T = TypeVar("T")
LARGEST_FILE = 2**20  # bytes
MOST = 10**15


def load(path: Path, *, real_time: bool = False) -> Scenario:
    """Read and check a scenario file. Blocks while it reads.

    :param real_time: whether it will run on the wall clock; only then is real memory allowed
    :raises ConfigError: with the file, the key, the value and what it must be
    :raises OSError: if it cannot be read
    """
    return read(path, partial(check, real_time=real_time))


def read(path: Path, check: Callable[[dict[str, Any]], T]) -> T:
    """Read and check a TOML file. Blocks while it reads.

    :raises ConfigError: from ``check``, or if it is not TOML; the message includes the file name
    :raises OSError: if it cannot be read
    """
    with path.open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    try:
        if len(data) > LARGEST_FILE:
            raise ConfigError("size", len(data), f"it must be a file of at most {LARGEST_FILE} bytes")
        return check(parse(data))
    except ConfigError as exc:
        raise ConfigError(f"{printable(str(path))}: {exc.field}", short(exc.given), exc.allowed) from None


def parse(data: bytes) -> dict[str, Any]:
    """Parse TOML into a dictionary.

    :raises ConfigError: if it is not TOML
    """
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError("text", data[exc.start : exc.start + 8], "it must be TOML in UTF-8") from None
    except RecursionError:
        raise ConfigError("text", data[:8], "it must be TOML that is not nested so deeply") from None
    except ValueError as exc:  # TOMLDecodeError, or a number with more digits than Python reads
        why = str(exc)[:200] if isinstance(exc, tomllib.TOMLDecodeError) else "a number has too many digits"
        raise ConfigError("text", _line_of(data, str(exc)), f"it must be TOML: {why}") from None


def _line_of(data: bytes, message: str) -> str:
    """The line that a message from tomllib refers to."""
    found = re.search(r"at line (\d+)", message)
    lines = data.decode().splitlines() or [""]
    return lines[min(int(found[1]), len(lines)) - 1] if found else lines[0]


def check(data: dict[str, Any], *, real_time: bool = False) -> Scenario:
    """Build a scenario from a dictionary, and check it as a whole.

    :raises ConfigError: with the key, the value and what it must be
    """
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as exc:
        raise complaint(exc) from None
    machine = Machine(scenario, 0)
    _check_names(scenario, machine)
    for name, section in scenario.caches.items():
        try:
            cache_options(section, name, scenario.allocator)
        except ConfigError as exc:
            table = "allocator" if exc.field in ("limit", "emergency_limit") else f"caches.{name}"
            raise ConfigError(f"{table}.{exc.field}", exc.given, exc.allowed) from None
    for number, expectation in enumerate(scenario.expect):
        with keys_under(f"expect.{number}"):
            bounds(expectation)
    if real_time and scenario.simulated_only:
        allowed = "it must be false in real time: what this scenario expects is exact only in simulated time"
        raise ConfigError("simulated_only", True, allowed)
    if not real_time:
        for name, backend in scenario.backends.items():
            if isinstance(backend, (MmapBackend, HeapBackend)):
                allowed = "it must be an emulated backend in simulated time; real memory needs --real-time"
                raise ConfigError(f"backends.{name}.kind", backend.kind, allowed)
    return scenario


def cache_options(section: CacheSection, name: str, allocator: AllocatorSection) -> dict[str, Any]:
    """The arguments of `Allocator.create_cache`, checked as it checks them.

    :raises ConfigError: if it would refuse them
    """
    flags = CacheFlags(0)
    for word in section.flags:
        flags |= CacheFlags[word]
    options = {field: getattr(section, field) for field in CacheSection.model_fields if field != "prefill"}
    options |= {"name": name, "flags": flags}
    config = cache_config(
        name,
        section.size,
        CacheOptions(**{field: given for field, given in options.items() if field not in ("name", "size")}),
        AllocatorOptions(limit=allocator.limit, emergency_limit=allocator.emergency_limit),
    )
    whole_slabs = -(-section.prefill // config.shape.objects)
    most, room = section.max_objects, allocator.limit
    if most is not None and whole_slabs * config.shape.objects > most:
        raise ConfigError("prefill", section.prefill, f"it must fit, in whole slabs, within max_objects, {most}")
    if room is not None and whole_slabs * config.shape.slab_size > room:
        raise ConfigError(
            "prefill", section.prefill, f"it must fit, in whole slabs, within the limit, {room} bytes"
        )
    return options


def bounds(expectation: Expectation) -> tuple[float | None, float | None]:
    """``at_most`` and ``at_least``, in seconds or as counts.

    :raises ConfigError: if the figure is unknown, or a bound does not suit it
    """
    if expectation.what not in METRICS:
        raise ConfigError("what", expectation.what, f"it must be one of {', '.join(METRICS)}")
    metric = METRICS[expectation.what]
    for by in ("tasks", "cache"):
        if getattr(expectation, by) is not None and by not in metric.by:
            raise ConfigError(by, getattr(expectation, by), f"it cannot be given for {expectation.what}")
    found: list[float | None] = []
    for key in ("at_most", "at_least"):
        given = getattr(expectation, key)
        if given is None:
            found.append(None)
        elif metric.time:
            try:
                found.append(parse_time(given))
            except ValueError:
                raise ConfigError(key, given, TIMES) from None
        elif type(given) is int and 0 <= given <= MOST:
            found.append(float(given))
        else:
            raise ConfigError(key, given, f"it must be a whole number, 0..{MOST}")
    most, least = found
    if most is None and least is None:
        raise ConfigError("at_most", None, "give at_most, at_least, or both")
    if most is not None and least is not None and least > most:
        raise ConfigError("at_least", expectation.at_least, f"it must not exceed at_most, {expectation.at_most!r}")
    return most, least


def bounds_in_real_time(expectation: Expectation, slack: float) -> tuple[float | None, float | None]:
    """The same, with times relaxed by the slack: a real machine is also busy with other things."""
    most, least = bounds(expectation)
    if METRICS[expectation.what].time:
        most = None if most is None else most + slack
        least = None if least is None else max(0.0, least - slack)
    return most, least


def _check_names(scenario: Scenario, machine: Machine) -> None:
    backends, caches, tasks = machine.backends, scenario.caches, scenario.tasks
    _one_of("allocator.slabs", scenario.allocator.slabs, backends)
    _one_of("allocator.emergency", scenario.allocator.emergency, backends)
    for name, section in tasks.items():
        _one_of(f"tasks.{name}.cache", section.cache, caches)
        if section.timeout is not None and section.flags == "NOSLEEP":
            raise ConfigError(
                f"tasks.{name}.timeout", section.timeout, "it cannot be given with NOSLEEP, which never waits"
            )
        if section.together and section.flags == "NOSLEEP":
            raise ConfigError(f"tasks.{name}.together", True, "it cannot be given with NOSLEEP, which never waits")
        _let_time_pass(name, section)
    for number, expectation in enumerate(scenario.expect):
        _one_of(f"expect.{number}.tasks", expectation.tasks, tasks)
        _one_of(f"expect.{number}.cache", expectation.cache, caches)
        _can_fail(f"expect.{number}", expectation, tasks)
    for number, happening in enumerate(scenario.at):
        key = f"at.{number}"
        if happening.time > scenario.duration:
            raise ConfigError(
                f"{key}.time", happening.time, f"it must be within the duration, {scenario.duration:g} s"
            )
        wanted = {"let_go": "backend", "pin": "share"}.get(happening.do)
        for field in ("backend", "share"):
            if (getattr(happening, field) is not None) != (field == wanted):
                need = "it is required" if field == wanted else "it cannot be given"
                raise ConfigError(
                    f"{key}.{field}", getattr(happening, field), f"{need} with do = {happening.do!r}"
                )
        deadlocks = [name for name, section in scenario.backends.items() if section.kind == "deadlock"]
        _one_of(f"{key}.backend", happening.backend, deadlocks)


def _can_fail(key: str, expectation: Expectation, tasks: dict[str, TaskSection]) -> None:
    """Refuse an expectation that every run meets."""
    what = expectation.what
    if expectation.at_most is None and expectation.at_least in (0, "0s"):
        raise ConfigError(
            f"{key}.at_least", expectation.at_least, "it must be above 0: every figure is at least 0"
        )
    needed = {"timed_out": "timeout", "unfinished": "times"}.get(what)
    for name, section in tasks.items():
        meant = expectation.tasks in (None, name) and expectation.cache in (None, section.cache)
        if meant and (needed is None or getattr(section, needed) is not None):
            return
    if needed is not None:
        raise ConfigError(f"{key}.what", what, f"it needs tasks with {needed}: no others are counted")


def _let_time_pass(name: str, section: TaskSection) -> None:
    """Refuse tasks that repeat endlessly at one moment: simulated time would stand still."""
    if section.times is None and always_zero(section.arrival):
        if section.flags == "NOSLEEP":
            raise ConfigError(f"tasks.{name}.arrival", 0, "it must be above 0 with NOSLEEP, unless times is given")
        if always_zero(section.hold):
            raise ConfigError(f"tasks.{name}.arrival", 0, "it must be above 0, unless hold is or times is given")


def _one_of(key: str, name: str | None, names: Any) -> None:
    if name is not None and name not in names:
        raise ConfigError(key, name, f"it must be one of {', '.join(names)}" if names else "there is none to name")
