"""A snapshot of an allocator for other processes: one JSON object."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict

from ._health import judge
from ._holder import Holder
from ._stats import AllocatorStats

SHOWN = 10
"""Holders in a snapshot, the oldest ones."""
VERSION = 1
"""Raised when a field changes its meaning or goes; a new field changes nothing."""


def snapshot_json(stats: AllocatorStats, holders: Iterable[Holder] = ()) -> bytes:
    """Return the snapshot: version, process, wall-clock time, health, all counters, and who holds buffers."""
    health = judge(stats)
    found = {
        "version": VERSION,
        "pid": os.getpid(),
        "time": time.time(),
        "health": {"state": health.state.value, "reasons": health.reasons},
        "stats": asdict(stats),
        "holders": [asdict(holder) for holder in holders],
    }
    return json.dumps(found).encode() + b"\n"
