"""What an act found, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._files import Unreadable

Words = list[tuple[str, str]]
"""A line in pieces, each with its style: `OURS`, `THEIRS` or none."""
OURS, THEIRS = "ours", "theirs"


@dataclass(frozen=True, slots=True)
class Told:
    """What an act found; each act has a dataclass of its own."""

    def words(self) -> Words:
        """One line."""
        raise NotImplementedError

    def wrong(self) -> list[str]:
        """What is not well, a sentence each."""
        return []

    def well(self) -> str:
        """What is well, if nothing is wrong."""
        return ""

    def missed(self) -> Sequence[Unreadable]:
        """Files and folders that could not be read."""
        return ()


@dataclass(frozen=True, slots=True)
class LeftOut(Told):
    """An act that this machine has no room for. Nothing is wrong."""

    left_out: str
    """Why."""

    def words(self) -> Words:
        return [(f"Left out: {self.left_out}.", "")]


def count(number: int, what: str) -> str:
    """As ``1 file``, ``2,000 files``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def and_broken(links: int) -> str:
    """What is said of broken symlinks, after the number of files."""
    return f" ({count(links, 'broken link')} skipped)" if links else ""


def duration(seconds: float) -> str:
    """As ``12 µs``, ``1.5 ms``, ``2.50 s``."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def rate(number: float) -> str:
    """As ``9.5``, ``1,200``."""
    return f"{number:,.1f}" if number < 20 else f"{number:,.0f}"
