"""The checks of options: each refuses a wrong value with a `ConfigError`; and sizes in bytes as text."""

from __future__ import annotations

import math
import re

from ._errors import ConfigError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def whole_number(field: str, given: object, least: int, most: int | None = None) -> None:
    """Refuse what is not an int in ``least..most``."""
    bound = f"at least {least}" if most is None else f"{least}..{most}"
    if isinstance(given, bool) or not isinstance(given, int):
        raise ConfigError(field, given, f"allowed is a whole number, {bound}")
    if given < least or (most is not None and given > most):
        raise ConfigError(field, given, f"allowed is {bound}")


def seconds(field: str, given: object, *, zero: bool = False, least: float = 0.0) -> None:
    """Refuse what is not a finite time, or too short; zero only where it makes sense."""
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    short = number and (given < least or (given == 0 and not zero))  # type: ignore[operator]
    if not number or not math.isfinite(given) or short:  # type: ignore[arg-type]
        raise ConfigError(
            field, given, f"allowed are seconds {f'from {least:g} on' if zero or least else 'above 0'}"
        )


def optional_function(field: str, given: object) -> None:
    """Refuse what cannot be called and is not None."""
    if given is not None and not callable(given):
        raise ConfigError(field, given, "allowed is a function, or None")


def boolean(field: str, given: object) -> None:
    """Refuse what is not True or False."""
    if not isinstance(given, bool):
        raise ConfigError(field, given, "allowed are True and False")


def parse_size(field: str, text: str, most: int) -> int:
    """Bytes from ``4096``, ``64KiB``, ``1M``; units are powers of 1024.

    :param field: the name of the option, for the message
    :param most: bytes
    :raises ConfigError: for anything else
    """
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:(?<=[KMG])iB)?", text, re.IGNORECASE)
    nbytes = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not 1 <= nbytes <= most:
        raise ConfigError(field, text, f"allowed are sizes such as 4096, 64KiB, 1M, up to {format_size(most)}")
    return nbytes


def format_size(nbytes: float) -> str:
    """``1 MiB``, ``33.2 MiB``, ``517 B``."""
    size, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size == int(size) or size >= 100 else f"{size:.1f} {unit}"
