"""What is wrong with a scenario file, in one line of our own words: the key, the value, what it must be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..._errors import ConfigError
from ._schema import Scenario

_WORDS = {
    "missing": "it is missing",
    "model_type": "it must be a table",
    "dict_type": "it must be a table",
    "model_attributes_type": "it must be a table",
    "list_type": "it must be a list",
    "int_type": "it must be a whole number",
    "bool_type": "it must be true or false",
    "string_type": "it must be text in quotes",
    "string_too_short": "it must have 1 to 1000 characters",
    "string_too_long": "it must have 1 to 1000 characters",
    "string_pattern_mismatch": (
        "it must be a name of up to 61 letters, digits, spaces and _ . -, starting with a letter or digit"
    ),
}
"""For kinds of pydantic errors whose own message speaks of Python types."""


def complaint(exc: ValidationError, model: type[BaseModel] = Scenario) -> ConfigError:
    """The first error; an unknown key takes precedence, since it may be a misspelled required one."""
    errors = exc.errors(include_url=False)
    error = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    loc, kind, message, given = error["loc"], error["type"], error["msg"], short(error["input"])
    key = ".".join(printable(str(part)) for number, part in enumerate(loc) if not _is_tag(loc, number))
    key = key.removesuffix(".[key]") or "file"
    if kind == "missing":
        given = None
    elif kind == "extra_forbidden":
        return ConfigError(key, given, f"unknown key; known keys are {', '.join(_known_keys(loc, model))}")
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = error["input"].get("kind") if isinstance(error["input"], dict) else None
        return ConfigError(f"{key}.kind", short(tag), f"it must be one of {', '.join(_kinds())}")
    elif kind in ("too_short", "too_long"):
        two = key.endswith(".window")
        return ConfigError(
            key, given, "it must be two times, begin and end" if two else "it must have 1 to 100 entries"
        )
    allowed = message.removeprefix("Value error, ").replace("Input should be", "it must be")
    allowed = _WORDS.get(kind, allowed)
    return ConfigError(
        key, given, allowed if kind in _WORDS or allowed.startswith("it ") else f"it must be: {allowed}"
    )


def short(given: object) -> object:
    """The given value, short enough for one line."""
    try:
        text = repr(given)
    except (ValueError, RecursionError):  # an int with more digits than Python prints, or endless nesting
        return "something huge"
    return given if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """The text, escaped if it would break the line or disturb the terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def _is_tag(loc: tuple[int | str, ...], number: int) -> bool:
    """Whether a part of the path is the kind of a backend, which pydantic inserts."""
    return loc[0] == "backends" and number == 2 and loc[number] != "[key]"


def _backend_models() -> Iterator[type[BaseModel]]:
    backends = get_args(Scenario.model_fields["backends"].annotation)[1]
    yield from get_args(get_args(backends)[0])


def _kind(model: type[BaseModel]) -> Any:
    return get_args(model.model_fields["kind"].annotation)[0]


def _kinds() -> list[str]:
    return [_kind(model) for model in _backend_models()]


def _known_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The valid keys of the table that ``loc`` is in."""
    if len(loc) == 1:
        return list(model.model_fields)
    if loc[0] == "backends":
        models = [model for model in _backend_models() if _kind(model) == loc[2]]
    else:
        annotation = model.model_fields[str(loc[0])].annotation
        candidates = (annotation, *get_args(annotation))
        models = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
    return [key for model in models for key in model.model_fields]
