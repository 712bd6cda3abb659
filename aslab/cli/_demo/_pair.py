"""Two figures that are shown live: ours, and that of what is done without aslab."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Figure:
    """An act writes it, a display reads it."""

    value: float = 0.0


@dataclass(slots=True)
class Pair:
    """Both, and what else there is to say."""

    ours: Figure = field(default_factory=Figure)
    theirs: Figure = field(default_factory=Figure)
    note: str = ""
