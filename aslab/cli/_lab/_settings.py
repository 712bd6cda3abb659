"""``--set KEY=VALUE``: a different computer, and the keys for that."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

from ... import ConfigError
from .._errors import BadInput, printable

if TYPE_CHECKING:
    from ...lab._story._computer import Computer

LONGEST = 200  # characters in a value


def parse_settings(given: Sequence[str]) -> dict[str, object]:
    """Parse keys and values. Values are TOML; a pair may omit its brackets.

    :raises BadInput: if it is not KEY=VALUE
    :raises ConfigError: for an unknown key or a wrong value
    """
    from ...lab._story._computer import computer_with

    found: dict[str, object] = {}
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key.isidentifier() or len(text) > LONGEST:
            raise BadInput(f"--set {printable(one[:LONGEST])}: must be KEY=VALUE, such as hogs=8")
        if key in found:
            raise BadInput(f"--set {printable(one)}: {key} is set twice")
        try:
            computer_with({key: (value := _value(text))})
        except ConfigError as exc:
            raise ConfigError(f"--set {exc.field}", exc.given, exc.allowed) from None
        found[key] = value
    return found


def computer_for(given: Sequence[str], fragmented: float) -> Computer:
    """The computer described by the options, checked as a whole.

    :param fragmented: a percentage
    :raises BadInput: if a setting is not KEY=VALUE
    :raises ConfigError: for an unknown key or a wrong value
    """
    from ...lab._story._computer import computer_with

    found = settings_for(given, fragmented)
    computer = computer_with(found)
    computer.check()
    return computer


def settings_for(given: Sequence[str], fragmented: float) -> dict[str, object]:
    """Combine ``--set`` and ``--fragmented``.

    :raises BadInput: if a setting is not KEY=VALUE, or given twice
    :raises ConfigError: for an unknown key or a wrong value
    """
    found = parse_settings(given)
    if fragmented:
        if "pinned" in found:
            raise BadInput("--fragmented: cannot be given with --set pinned, which means the same")
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
    """A command whose help ends with the keys of ``--set``, which are looked up only for that."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the keys, their defaults and their meaning."""
        from ...lab._story._computer import COMPUTER, KEYS

        with formatter.section("Keys of --set, and of the tables of --grid"):
            formatter.write_dl(
                [(f"{key} {_short(getattr(COMPUTER, key))}", one.metadata["meaning"]) for key, one in KEYS.items()]
            )


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
