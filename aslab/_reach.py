"""Which parts of an allocator, such as backends, can refer to nothing of a client's.

A buffer refers to its allocator, and so to its backends and sources of pressure. Where one of them may refer to a
buffer in turn, that is a cycle, and the garbage collector has to see it. A class says here that its objects
cannot. A subclass has to say so for itself, as it may add anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

C = TypeVar("C", bound=type)

_PARTS: dict[type, tuple[str, ...]] = {}


def self_contained(*parts: str) -> Callable[[C], C]:
    """Declare that objects of a class refer to nothing of a client's, but perhaps by the attributes ``parts``."""

    def declare(kind: C) -> C:
        _PARTS[kind] = parts
        return kind

    return declare


def is_self_contained(part: object) -> bool:
    """Whether nothing of a client's can be reached through an object."""
    parts = _PARTS.get(type(part))
    return parts is not None and all(is_self_contained(getattr(part, name)) for name in parts)
