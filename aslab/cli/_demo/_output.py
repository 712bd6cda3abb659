"""Output for programs: lines for ``sha256sum -c``, or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict

from ._run import Result

_ESCAPES = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"))


def write_sums(sums: Mapping[str, str]) -> None:
    """Print lines for ``sha256sum -c``, sorted by path; names are printed as their original bytes."""
    by_name = {os.fsencode(path): hexadecimal for path, hexadecimal in sums.items()}
    sys.stdout.flush()
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:  # sys.stdout may be unbuffered
        out.write(b"".join([_line(path, by_name[path]) for path in sorted(by_name)]))


def _line(path: bytes, hexadecimal: str) -> bytes:
    """A line, which starts with a backslash if the name is escaped."""
    name = b"./-" if path == b"-" else path  # "-" alone would mean stdin
    escaped = name
    for plain, escape in _ESCAPES:
        escaped = escaped.replace(plain, escape)
    mark = b"\\" if escaped != name else b""
    return b"%b%b  %b\n" % (mark, hexadecimal.encode(), escaped)


def write_json(told: Mapping[str, object]) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(told, indent=2) + "\n")


def run_as_json(result: Result) -> dict[str, object]:
    """All about one run."""
    from statistics import median  # takes long to import

    outcome = result.outcome
    return {
        "loop": result.run.loop.value,
        "injected": list(result.run.injected),
        "files": len(outcome.sums),
        "bytes": outcome.nbytes,
        "seconds": outcome.seconds,
        "bytes_per_second": outcome.nbytes / outcome.seconds if outcome.seconds else 0.0,
        "allocations": outcome.allocations,
        "waited": len(outcome.waits),
        "wait_median": median(outcome.waits) if outcome.waits else None,
        "wait_longest": outcome.waits[-1] if outcome.waits else None,
        "emergency_used": outcome.emergency_used,
        "emergency_max": outcome.stats.obj_emergency_max,
        "deadlocks": outcome.stats.obj_deadlock,
        "resumed": outcome.resumed,
        "unreadable": [asdict(one) for one in outcome.unreadable],
    }
