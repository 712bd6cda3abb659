"""Checks of single values, each with a `ConfigError` for a wrong one; and sizes in bytes as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ._errors import ConfigError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def whole_number(field: str, given: object, least: int, most: int | None = None) -> None:
    """Refuse anything but an int from ``least`` to ``most``."""
    number = isinstance(given, int) and not isinstance(given, bool)
    if not number or given < least or (most is not None and given > most):  # type: ignore[operator]
        bound = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigError(field, given, f"it must be a whole number {bound}")


def seconds(field: str, given: object, *, zero: bool = False, least: float = 0.0) -> None:
    """Refuse anything but a finite number of at least ``least``, and zero unless ``zero`` allows it."""
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    short = number and (given < least or (given == 0 and not zero))  # type: ignore[operator]
    if not number or not math.isfinite(given) or short:  # type: ignore[arg-type]
        number_of = f"number of seconds, at least {least:g}" if zero or least else "positive number of seconds"
        raise ConfigError(field, given, f"it must be a {number_of}")


def optional_function(field: str, given: object) -> None:
    """Refuse anything but a callable or None."""
    if given is not None and not callable(given):
        raise ConfigError(field, given, "it must be a function, or None")


def boolean(field: str, given: object) -> None:
    """Refuse anything but True and False."""
    if not isinstance(given, bool):
        raise ConfigError(field, given, "it must be True or False")


def optional(check: Callable[..., None], **bounds: Any) -> Callable[[str, object], None]:
    """The same check, but None passes."""

    def check_unless_none(field: str, given: object) -> None:
        if given is None:
            return
        try:
            check(field, given, **bounds)
        except ConfigError as exc:
            raise ConfigError(field, given, f"{exc.allowed}, or None") from None

    return check_unless_none


def parse_size(field: str, text: str, most: int) -> int:
    """The number of bytes in a text such as ``4096``, ``64KiB`` or ``1M``; units are powers of 1024.

    :param field: the name of the option, for the message
    :param most: the largest size allowed, in bytes
    :raises ConfigError: for anything else
    """
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)(?:(?<=[KMG])iB)?", text, re.IGNORECASE)
    nbytes = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not 1 <= nbytes <= most:
        raise ConfigError(field, text, f"it must be a size such as 4096, 64KiB or 1M, up to {format_size(most)}")
    return nbytes


def format_size(nbytes: float) -> str:
    """A text such as ``1 MiB``, ``33.2 MiB`` or ``517 B``."""
    size, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size == int(size) or size >= 100 else f"{size:.1f} {unit}"
