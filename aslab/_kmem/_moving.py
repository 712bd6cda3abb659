"""What the mover (_move.py) keeps of a pool: what it was asked for, and how far it is.

Always true: ``in_hand`` counts new objects that nobody holds yet, and ``asked`` is set while the pool is in the
queue of moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .._fastpath import Buffer
from .._flags import KMEM_CBRC

Move = Callable[[Buffer[Any], Buffer[Any], int], KMEM_CBRC]
"""A client's callback: gets the handle it has, a new one, and the size, and moves what it kept."""


@dataclass(slots=True)
class Moving:
    """The moves of one pool."""

    able: bool
    """Objects can be moved at all: the cache is ``movable``, or a client is asked."""
    callback: Move | None = None
    answers: dict[KMEM_CBRC, int] = field(default_factory=lambda: dict.fromkeys(KMEM_CBRC, 0))
    in_hand: int = 0
    """New objects of moves under way."""
    in_vain: bool = False
    """Nothing could be repacked; tried again after a tick."""
    asked: bool = False
    gently: bool = False
    """A pass of defragmentation was asked for, besides."""
    step: int = 1
    """How full slabs may be that the next such pass empties."""
    since_pause: int = 0
    """Bytes moved since other tasks had a chance."""
