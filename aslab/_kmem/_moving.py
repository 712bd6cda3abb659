"""The mover's state for one pool (_move.py): what it was asked to do, and how far it has got.

Always true, between calls:

    1. ``in_hand`` counts the new objects of moves under way, which nobody holds yet
    2. ``asked`` is set exactly while the pool is in the queue of moves
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .._fastpath import Buffer
from .._flags import KMEM_CBRC

Move = Callable[[Buffer[Any], Buffer[Any], int], KMEM_CBRC]
"""A client's callback: given its handle, a new one and the size, it moves what it keeps and returns an answer."""


@dataclass(slots=True)
class Moving:
    """The moves of one pool."""

    able: bool
    """Objects can be moved at all: the cache is ``movable``, or has a move callback."""
    callback: Move | None = None
    answers: dict[KMEM_CBRC, int] = field(default_factory=lambda: dict.fromkeys(KMEM_CBRC, 0))
    in_hand: int = 0
    """New objects of moves under way."""
    in_vain: bool = False
    """The last repacking moved nothing: until the next tick, frees do not ask for another."""
    asked: bool = False
    """The pool is in the queue of moves."""
    gently: bool = False
    """That includes a gentle pass of defragmentation."""
    step: int = 1
    """The next gentle pass empties slabs that are at most this many eighths full."""
    since_pause: int = 0
    """Bytes moved since other tasks last had a chance to run."""
