"""A copy of the tree, one mutant in it, and the tests. The tree itself is never touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contexts import environment
from .draw import Mutant
from .plugin import HANGS

GRACE = 60.0
"""Seconds over the cap after which a process is ended."""
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info")


@dataclass
class Verdict:
    """What came of one mutant."""

    mutant: Mutant
    killed: bool
    by: str
    tests: int
    ran: int
    seconds: float
    harmless: str = ""


@contextmanager
def copy_of(tree: Path) -> Iterator[Path]:
    """A copy that is gone afterwards, compiled, so that each run does not do it again."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(tree, copy, ignore=LEFT_OUT)
        command = "import aslab, pathlib; print(pathlib.Path(aslab.__file__).parents[1])"
        found = subprocess.run(
            [sys.executable, "-c", command],
            cwd=copy,
            env=environment(copy),
            capture_output=True,
            text=True,
            check=True,
        )
        if Path(found.stdout.strip()).resolve() != copy.resolve():
            raise RuntimeError(f"aslab would be imported from {found.stdout.strip()}")
        collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests"]
        subprocess.run(collect, cwd=copy, env=environment(copy), stdout=subprocess.DEVNULL, check=False)
        yield copy


def judge(mutant: Mutant, copy: Path, tests: dict[str, float], cap: float) -> Verdict:
    """Run the tests that reach a mutant until one fails."""
    if not tests:
        return Verdict(mutant, False, "no test reaches it", 0, 0, 0.0)
    place = copy / mutant.module
    original, stamp = place.read_text(), place.stat().st_mtime_ns
    order, result = copy.parent / "order.json", copy.parent / "result.json"
    order.write_text(json.dumps(tests))
    result.unlink(missing_ok=True)
    begun = time.monotonic()
    try:
        place.write_text(mutant.source)
        os.utime(place, ns=(stamp, stamp + 10**10))  # else bytecode of the same second would be taken for its own
        status = _run_tests(copy, tests, order, result, cap)
    finally:
        place.write_text(original)
        os.utime(place, ns=(stamp, stamp))
    seconds = time.monotonic() - begun
    came: dict[str, Any] = {"ran": 0, "failed": [], "capped": False}
    if result.exists():
        came = json.loads(result.read_text())
    ran, failed = came["ran"], came["failed"]
    if status == 0 or (came["capped"] and not failed):
        return Verdict(mutant, False, "capped" if came["capped"] else "", len(tests), ran, seconds)
    if status is None or status == HANGS:
        by = f"hangs {failed[0]}" if failed else "hangs"
    else:
        by = failed[0] if failed else f"does not start (exit {status})"
    return Verdict(mutant, True, by, len(tests), ran, seconds)


def _run_tests(copy: Path, tests: dict[str, float], order: Path, result: Path, cap: float) -> int | None:
    files = sorted({test.partition("::")[0] for test in tests})
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "mutation.plugin", "--hypothesis-seed=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=copy,
        env=environment(
            copy,
            MUTANTS_ORDER=str(order),
            MUTANTS_RESULT=str(result),
            MUTANTS_CAP=str(cap),
            PYTHONDONTWRITEBYTECODE="1",
            HYPOTHESIS_STORAGE_DIRECTORY=str(copy.parent / "hypothesis"),
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(cap + GRACE)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With its children: a test may have started some."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
