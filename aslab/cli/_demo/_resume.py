"""Has normal operation resumed after a fault?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import anyio

from ... import Cache
from ...backends import Backend
from ...faults import Deadlock, Failslab

GRACE = 60.0
"""Seconds that growth may take to recover, after the fault itself is over."""


def patience(slabs: Backend) -> float:
    """Seconds to wait for growth to come back; 0 behind a fault that has no end."""
    stuck = sum(_duration(fault) for fault in _faults(slabs))
    return 0.0 if math.isinf(stuck) else GRACE + stuck


async def slab_serves(cache: Cache[memoryview], patience: float) -> bool:
    """Wait for growth that is under way, allocate one buffer, and tell whether it came from a slab.

    Whether growth is over, too, is for `Cache.stats` to tell afterwards.
    """
    with anyio.move_on_after(patience):
        stats = cache.stats()
        free = stats.obj_total - stats.obj_held - stats.obj_handover
        await cache.prefill(free + 1 if stats.growing else 1)  # one more than there is: what is growing must come
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
