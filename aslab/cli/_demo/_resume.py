"""Has normal operation resumed after a fault?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import anyio

from ... import Cache
from ...backends import Backend
from ...faults import Deadlock, Failslab

GRACE = 60.0
"""Seconds that growth may take to recover after the fault is over."""


def patience(slabs: Backend) -> float:
    """Seconds to wait for growth to resume; 0 for a fault that never ends."""
    stuck = sum(_duration(fault) for fault in _faults(slabs))
    return 0.0 if math.isinf(stuck) else GRACE + stuck


async def slab_serves(cache: Cache[memoryview], patience: float) -> bool:
    """Wait for pending growth, allocate one buffer, and return whether it came from a slab.

    `Cache.stats` says afterwards whether growth has ended.
    """
    with anyio.move_on_after(patience):
        stats = cache.stats()
        free = stats.obj_total - stats.obj_held - stats.obj_handover
        await cache.prefill(
            free + 1 if stats.growing else 1
        )  # one more than there are, so that the pending slab must arrive
        async with cache.lease() as buf:
            return not buf.emergency
    return False


def _duration(fault: Backend) -> float:
    if isinstance(fault, Deadlock):
        return math.inf if fault.duration is None else fault.duration
    if isinstance(fault, Failslab) and fault.probability == 100 and fault.interval == 1 and fault.times < 0:
        return math.inf
    return 0.0


def _faults(backend: Backend | None) -> Iterator[Backend]:
    while backend is not None:
        yield backend
        backend = getattr(backend, "backend", None)
