"""A real HTTP service that takes uploads: requests a second, and the most memory that it had.

The service is Starlette on uvicorn, in a process of its own for each turn, since a peak is for a life. The clients
are in this process and upload all at once. Memory is what the service had at its peak above what it had after one
request; part of it is what uvicorn itself keeps of bodies that wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .._checks import format_size
from ..cli._errors import BadInput
from ..cli._loops import Loop, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

LARGEST = 4 * 2**20
LIMIT = 64 * 2**20
PIECE = 2**18
"""Bytes that a client writes at a time."""
WARM = 1
KINDS = {
    "aslab: buffers of one cache": "aslab",
    "a bytearray each, and a semaphore": "semaphore",
    "a bytearray each, unbounded": "unbounded",
}
RIVAL = "a bytearray each, and a semaphore"
REQUESTS, PEAK = Quantity("requests", "1/s", more_is_better=True), Quantity("peak memory", "MiB")


@command("service", rounds=3, quick={"rounds": 1, "uploads": 40})
def service(
    uploads: Annotated[int, typer.Option(help="Uploads at once.", min=1)] = 200,
) -> Bench:
    """An HTTP service that takes uploads of 4 MiB, with 64 MiB to hold them in. Takes half a minute."""
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"bench service needs {name}, which is in the extra 'test': run pip install '.[test]'")
    turns = [
        Turn("", name, partial(_measure, kind, uploads), Loop.ASYNCIO.value, RIVAL) for name, kind in KINDS.items()
    ]
    note = f"Bounded to {format_size(LIMIT)} of bodies. Memory: above what it was after one request."
    return Bench(f"{uploads} uploads of {format_size(LARGEST)} at once", turns, note)


def _measure(kind: str, uploads: int) -> Values:
    with _serving(kind) as (process, port):
        run_on(Loop.ASYNCIO, _upload_all, port, WARM)
        before = _forget_peak(process)
        seconds = run_on(Loop.ASYNCIO, _upload_all, port, uploads)
        found = {REQUESTS: uploads / seconds}
        if before:
            found[PEAK] = (_peak(process) - before) / 2**20
        return found


@contextmanager
def _serving(kind: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command_line = [sys.executable, "-m", "aslab.bench._uploads", kind, f"{LARGEST}", f"{LIMIT}"]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.terminate()


def _forget_peak(process: subprocess.Popen[str]) -> int:
    """What the process has now in bytes, from which on its peak counts; 0 where the system does not say."""
    try:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        return _peak(process)
    except OSError:
        return 0


def _peak(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def _upload_all(port: int, uploads: int) -> float:
    """The seconds that they take together."""
    body = bytes(LARGEST)
    right = hashlib.sha256(body).hexdigest().encode()
    begin = time.perf_counter()
    answers = await asyncio.gather(*(_upload(port, body) for _ in range(uploads)))
    seconds = time.perf_counter() - begin
    assert all(answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(right) for answer in answers)
    return seconds


async def _upload(port: int, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    for start in range(0, len(body), PIECE):
        writer.write(body[start : start + PIECE])
        await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
