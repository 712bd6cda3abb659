"""A snapshot of an allocator for other processes: one JSON object."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict

from ._health import judge
from ._stats import AllocatorStats

VERSION = 1
"""Raised when a field changes its meaning or goes; a new field changes nothing."""


def snapshot_json(stats: AllocatorStats) -> bytes:
    """Return the snapshot: version, process, wall-clock time, health, and all counters by their names."""
    health = judge(stats)
    found = {
        "version": VERSION,
        "pid": os.getpid(),
        "time": time.time(),
        "health": {"state": health.state.value, "reasons": health.reasons},
        "stats": asdict(stats),
    }
    return json.dumps(found).encode() + b"\n"
