"""Descriptor: what stands for a buffer outside of the process that allocated it."""

from __future__ import annotations

from typing import NamedTuple


class Descriptor(NamedTuple):
    """Names one sharing of one buffer. Small, immutable, picklable; send it any way you like.

    It gives no access by itself: `Client.attach` asks the service, which refuses what it does not share any more.
    """

    slab: int
    """The service's number of the slab; never used again."""
    offset: int
    """Where in the slab the buffer begins, in bytes."""
    size: int
    """How many bytes are shared."""
    generation: int
    """Counts the service's sharings, so that a place that is shared again never has the same one."""
