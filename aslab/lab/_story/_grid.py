"""A grid of computers to run the story on, described by a file.

    draw = 60                  how many random combinations; by default all of them
    seed = 1                   for the random draw
    [fixed]                    values for every computer, such as pages = 8192
    [vary]                     lists of values, such as hogs = [2, 4, 8]

The keys of both tables are the fields of `Computer`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, create_model

from ..._errors import ConfigError
from .._scenario._complaints import complaint, short
from .._scenario._load import read
from .._scenario._schema import Section
from ._computer import KEYS, Computer, check_value, computer_with

MOST = 100_000
"""Most combinations in a grid."""

Config = dict[str, Any]


def _different(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("it must be distinct values")
    return values


def _one(key: str) -> Any:
    return Annotated[Any, PlainValidator(partial(check_value, key))]


def _many(key: str) -> Any:
    return Annotated[list[_one(key)], Field(min_length=1, max_length=100), AfterValidator(_different)]  # type: ignore[misc]


def _table(name: str, kind: Callable[[str], Any]) -> Any:
    """A table with the fields of a computer, all optional."""
    fields: dict[str, Any] = {key: (kind(key), None) for key in KEYS}
    return create_model(name, __base__=Section, **fields)


if TYPE_CHECKING:
    Fixed = Section
    Vary = Section
else:
    Fixed, Vary = _table("Fixed", _one), _table("Vary", _many)


class GridFile(Section):
    """What the file may contain."""

    draw: Annotated[int, Field(ge=1, le=MOST)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63)] = 0
    fixed: Fixed = Fixed()
    vary: Vary = Vary()


@dataclass(frozen=True, slots=True)
class Grid:
    """The computers of a grid."""

    configs: tuple[tuple[Config, Computer], ...]
    """The varied values, and the computer they make."""
    skipped: tuple[ConfigError, ...]
    """Why the other combinations make no sense."""


def load_grid(path: Path, more: Mapping[str, object] | None = None) -> Grid:
    """Read a file, and build its combinations. Blocks while it reads.

    :param more: further fixed values, which take precedence
    :raises ConfigError: with the file, the key, the value and what it must be
    :raises OSError: if it cannot be read
    """
    return make_grid(*read(path, _check), more or {})


def _check(data: dict[str, Any]) -> tuple[GridFile, Config, dict[str, list[Any]]]:
    try:
        file = GridFile.model_validate(data)
    except ValidationError as exc:
        raise complaint(exc, GridFile) from None
    fixed, vary = file.fixed.model_dump(exclude_unset=True), file.vary.model_dump(exclude_unset=True)
    for key in fixed.keys() & vary.keys():
        raise ConfigError(f"fixed.{key}", short(fixed[key]), "it cannot be given with a list in [vary]")
    size = math.prod(map(len, vary.values()))
    if file.draw is None and size > MOST:
        raise ConfigError("draw", None, f"it must be given for more than {MOST} combinations; there are {size}")
    return file, fixed, vary


def make_grid(file: GridFile, fixed: Config, vary: dict[str, list[Any]], more: Mapping[str, object]) -> Grid:
    """The combinations, in the order of the lists or as drawn, without those that make no sense.

    :raises ConfigError: if a key in ``more`` is varied
    """
    for key in more.keys() & vary.keys():
        raise ConfigError(f"--set {key}", more[key], "it cannot be given for a key that the grid varies")
    base = computer_with({**fixed, **more})
    configs, skipped = [], []
    for config in _combinations(vary, file.draw, file.seed):
        computer = computer_with(config, base=base)
        try:
            computer.check()
        except ConfigError as exc:
            skipped.append(exc)
        else:
            configs.append((config, computer))
    return Grid(tuple(configs), tuple(skipped))


def _combinations(vary: dict[str, list[Any]], draw: int | None, seed: int) -> list[Config]:
    size = math.prod(map(len, vary.values()))
    if draw is None or draw >= size:
        return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    drawing = random.Random(seed)
    found: dict[tuple[Any, ...], None] = {}
    while len(found) < draw:
        found[tuple(drawing.choice(values) for values in vary.values())] = None
    return [dict(zip(vary, values, strict=True)) for values in found]
