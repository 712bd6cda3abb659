"""Every example runs, without a warning, and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPECTED = {
    "direct_copy.py": r"33566777 bytes copied at .* through 4 buffers\nthe same\n",
    "frames.py": r"verified 100 frames\n2 consumers killed, 0 of \d+ buffers still held\n",
    "simulated_hour.py": r"wait 10 ms, \d+ emergency objects, 1 deadlock\n.* 0 emergency .* well\n36\d\d sim",
    "smallest_asyncio.py": r"hello from 4 MiB at 0x[0-9a-f]+\n(.*\n){2}frames ",
    "smallest_trio.py": r"hello from 4 MiB at 0x[0-9a-f]+\n(.*\n){2}frames ",
    "tcp_echo.py": r"200 clients, 37 MiB echoed, at most \d+ buffers\n1000 allocations, .*; 0 still held",
    "staging.py": r"hangs: 21 batches, \d+ of them .*\nit works again: 21 batches, 0 of them .*\nthe same\n",
    "stuck_growth.py": r"0\.5  True     True +[1-8] +\d+\n(.*\n)*    3\.0  False    False +0 .*\ndeadlocks: \d",
    "upload_service.py": r"50 of 50 uploads of 4 MiB answered with the right checksum\n",
    "upload_to_worker.py": r"4 of 4 .*\n.* hangs: HTTP/1.1 503 .*\n.* 4 of 4 rightly\n0 of 4 buffers still held\n",
}


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "is DEADLOCKED" not in line]  # growth stuck, or just slow
    assert not told, done.stderr
    return done.stdout


def test_every_example_is_here() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_example_runs(name: str) -> None:
    assert re.search(EXPECTED[name], run(f"examples/{name}"))
