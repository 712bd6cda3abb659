"""``--set KEY=VALUE``: a computer of one's own, and what keys there are."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from ... import ConfigError
from .._errors import BadInput, printable

if TYPE_CHECKING:
    from ...lab._story._computer import Computer

LONGEST = 200  # characters of a value


def parse_settings(given: Sequence[str]) -> dict[str, object]:
    """Keys and checked values. A value is one of TOML; a pair may do without its brackets.

    :raises BadInput: for what is no such thing
    :raises ConfigError: for a key or value that is not allowed
    """
    from ...lab._story._computer import computer_with

    found: dict[str, object] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key.isidentifier() or len(text) > LONGEST:
            raise BadInput(f"--set {printable(one[:LONGEST])}: allowed are KEY=VALUE, such as hogs=8")
        if key in found:
            raise BadInput(f"--set {printable(one)}: {key} is set twice")
        try:
            computer_with({key: (value := _value(text))})
        except ConfigError as exc:
            raise ConfigError(f"--set {exc.field}", exc.given, exc.allowed) from None
        found[key] = value
    return found


def computer_for(given: Sequence[str], fragmented: float) -> Computer:
    """The computer that the options describe, which makes sense as a whole.

    :param fragmented: percent
    :raises BadInput: for what is no option
    :raises ConfigError: for a key or value that is not allowed
    """
    from ...lab._story._computer import computer_with

    found = settings_for(given, fragmented)
    computer = computer_with(found)
    computer.check()
    return computer


def settings_for(given: Sequence[str], fragmented: float) -> dict[str, object]:
    """``--set`` and ``--fragmented`` together.

    :raises BadInput: for what is no option, or said twice
    :raises ConfigError: for a key or value that is not allowed
    """
    found = parse_settings(given)
    if fragmented:
        if "pinned" in found:
            raise BadInput("--fragmented: allowed not with --set pinned, which says the same")
        found["pinned"] = fragmented / 100
    return found


def _value(text: str) -> Any:
    for attempt in (text, f"[{text}]" if "," in text else text):
        try:
            table = tomllib.loads(f"value = {attempt}")
        except (ValueError, RecursionError):
            continue
        if set(table) == {"value"}:
            return table["value"]
    return text


class StoryCommand(TyperCommand):
    """A command whose help ends with what can be set; looked up when somebody asks for help."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the keys, their defaults and what they mean."""
        from ...lab._story._computer import COMPUTER, KEYS

        with formatter.section("Keys of --set, and of the tables of --grid"):
            formatter.write_dl(
                [(f"{key} {_short(getattr(COMPUTER, key))}", one.metadata["meaning"]) for key, one in KEYS.items()]
            )


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
