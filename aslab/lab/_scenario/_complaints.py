"""What is wrong with a scenario file, in one line and in our words: key, value, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..._errors import ConfigError
from ._schema import Scenario

_WORDS = {
    "missing": "it is missing",
    "model_type": "allowed is a table",
    "dict_type": "allowed is a table",
    "model_attributes_type": "allowed is a table",
    "list_type": "allowed is a list",
    "int_type": "allowed are whole numbers",
    "bool_type": "allowed are true and false",
    "string_type": "allowed is text in quotes",
    "string_too_short": "allowed are 1 to 1000 characters",
    "string_too_long": "allowed are 1 to 1000 characters",
    "string_pattern_mismatch": (
        "allowed are names of up to 61 letters, digits, blanks and _ . -, the first a letter or a digit"
    ),
}
"""For the kinds of errors of pydantic's whose own words are about Python."""


def complaint(exc: ValidationError, model: type[BaseModel] = Scenario) -> ConfigError:
    """The first thing that is wrong; an unknown key before all, since it may be what something else lacks."""
    errors = exc.errors(include_url=False)
    error = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    loc, kind, message, given = error["loc"], error["type"], error["msg"], short(error["input"])
    key = ".".join(printable(str(part)) for number, part in enumerate(loc) if not _is_tag(loc, number))
    key = key.removesuffix(".[key]") or "file"
    if kind == "missing":
        given = None
    elif kind == "extra_forbidden":
        return ConfigError(key, given, f"unknown key, allowed are {', '.join(_known_keys(loc, model))}")
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = error["input"].get("kind") if isinstance(error["input"], dict) else None
        return ConfigError(f"{key}.kind", short(tag), f"allowed are {', '.join(_kinds())}")
    elif kind in ("too_short", "too_long"):
        two = key.endswith(".window")
        return ConfigError(key, given, "allowed are two times, begin and end" if two else "allowed are 1 to 100")
    allowed = message.removeprefix("Value error, ").replace("Input should be", "allowed is")
    allowed = _WORDS.get(kind, allowed)
    return ConfigError(
        key, given, allowed if kind in _WORDS or allowed.startswith("allowed") else f"allowed: {allowed}"
    )


def short(given: object) -> object:
    """What was given, short enough for one line."""
    try:
        text = repr(given)
    except (ValueError, RecursionError):  # an int of more digits than Python writes, tables without end
        return "something huge"
    return given if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """The text, escaped where it must be so that it stays on its line and leaves the terminal alone."""
    return text if text.isprintable() else repr(text)[1:-1]


def _is_tag(loc: tuple[int | str, ...], number: int) -> bool:
    """Pydantic puts the kind of a backend into the path to its keys."""
    return loc[0] == "backends" and number == 2 and loc[number] != "[key]"


def _backend_models() -> Iterator[type[BaseModel]]:
    backends = get_args(Scenario.model_fields["backends"].annotation)[1]
    yield from get_args(get_args(backends)[0])


def _kind(model: type[BaseModel]) -> Any:
    return get_args(model.model_fields["kind"].annotation)[0]


def _kinds() -> list[str]:
    return [_kind(model) for model in _backend_models()]


def _known_keys(loc: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys of the table in which ``loc`` is unknown."""
    if len(loc) == 1:
        return list(model.model_fields)
    if loc[0] == "backends":
        models = [model for model in _backend_models() if _kind(model) == loc[2]]
    else:
        annotation = model.model_fields[str(loc[0])].annotation
        candidates = (annotation, *get_args(annotation))
        models = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
    return [key for model in models for key in model.model_fields]
