"""Memory filled with one byte, in which any other byte shows that somebody wrote there: red zones and poison.

The values are those of Linux (include/linux/poison.h), by which a reader of dumps knows them. Whether memory is
still filled takes one memcmp of it with itself, a byte further on. Any thread; no state is kept here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import NamedTuple

from ..backends._libc import same

POISON = 0x6B
"""In an object that is free, and in one that its owner has not written to yet."""
RED = 0xBB
"""In the red zones."""
ROW = 16
ROWS = 4
"""The most rows shown of a dump."""
CHUNK = 64 * 2**10


class Filled(NamedTuple):
    """A place that should hold one byte throughout."""

    address: int
    nbytes: int
    byte: int

    def fill(self) -> None:
        """Fill it, or fill it again."""
        ctypes.memset(self.address, self.byte, self.nbytes)

    def damage(self) -> tuple[int, int] | None:
        """Return where in memory the bytes that differ begin and end; None if there are none."""
        address, nbytes = self.address, self.nbytes
        if byte_at(address) == self.byte and same(address, address + 1, nbytes - 1):
            return None
        byte = bytes((self.byte,))
        wrong = [
            (place + len(chunk) - len(chunk.lstrip(byte)), place + len(chunk.rstrip(byte)))
            for place, chunk in _chunks(address, nbytes)
            if chunk.strip(byte)
        ]
        return (wrong[0][0], wrong[-1][1]) if wrong else None  # none: what should be there was written just now


def _chunks(address: int, nbytes: int) -> Iterator[tuple[int, bytes]]:
    for place in range(address, address + nbytes, CHUNK):
        yield place, ctypes.string_at(place, min(CHUNK, address + nbytes - place))


def byte_at(address: int) -> int:
    """Return the byte at an address."""
    return ctypes.string_at(address, 1)[0]


def row_of(label: str, address: int, row: bytes) -> str:
    """Return one row of a hex dump: a label, the address, the bytes in hex and as text."""
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
    return f"  {label:<8} {address:#x}: {row.hex(' '):<{3 * ROW - 1}} {text}"


def dump(label: str, start: int, end: int, most: int = ROWS) -> list[str]:
    """Return rows of a hex dump, and how many bytes are left out.

    :param start: an address, as ``end``
    """
    rows = [
        row_of(label, address, ctypes.string_at(address, min(ROW, end - address)))
        for address in range(start, min(end, start + most * ROW), ROW)
    ]
    left = end - start - most * ROW
    return [*rows, f"  {label:<8} ... {left} bytes more"] if left > 0 else rows
