"""Sizes in bytes, as people write and read them."""

from __future__ import annotations

import re

from ._errors import ConfigError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


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
