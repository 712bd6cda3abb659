"""Options that are listed once: name, type, default, check and description stand in one field of a dataclass.

`check_each` runs the checks. `keywords` gives a function that takes ``**options`` the signature, documentation and
error message that it would have if it listed them itself.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import Field, field, fields
from typing import Any, TypeVar

D = TypeVar("D")
F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[str, object], None]
"""Called with the name of an option and its value; raises `ConfigError` if the value is not allowed."""

_WIDTH = 110
_INDENT = " " * 4


def option(default: D, check: Check, doc: str, *, compare: bool = True) -> D:
    """A field of a dataclass of options.

    :param check: of the value by itself; what depends on other options is checked elsewhere
    :param doc: continues ``:param name:``
    :param compare: whether two objects that differ only here are different
    """
    return field(default=default, compare=compare, metadata={"check": check, "doc": doc})


def check_each(options: object) -> None:
    """Check each option by itself, in the order of the fields."""
    for one in _listed(options):
        one.metadata["check"](one.name, getattr(options, one.name))


def values(options: object) -> dict[str, Any]:
    """The values by name, not copied."""
    return {one.name: getattr(options, one.name) for one in _listed(options)}


def keywords(options: type) -> Callable[[F], F]:
    """Decorate a function that makes an ``options`` from its ``**options``, and perhaps some named ones.

    In its docstring the line ``:param options:`` is replaced by their descriptions.
    """
    listed = tuple(_listed(options))
    names = {one.name for one in listed}
    more = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in listed
    ]

    def dress(function: F) -> F:
        signature = inspect.signature(function)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.name not in names and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        if function.__doc__:  # there is none under python -OO
            documented = "\n".join(map(_documented, listed))
            before, _, after = inspect.cleandoc(function.__doc__).partition(":param options:")
            function.__doc__ = before + documented + after[after.index("\n") :]
        # An unknown keyword gives a TypeError that names the function.
        options.__init__.__qualname__ = function.__qualname__  # type: ignore[misc]
        return function

    return dress


def _listed(options: object) -> Iterator[Field[Any]]:
    return (one for one in fields(options) if one.metadata)  # type: ignore[arg-type]


def _documented(one: Field[Any]) -> str:
    return textwrap.fill(f":param {one.name}: {one.metadata['doc']}", _WIDTH, subsequent_indent=_INDENT)
