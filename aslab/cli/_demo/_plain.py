"""Checksums as people write them: a thread for each file; in another process, so that neither slows the other."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

Sums = dict[str, str | None]
"""SHA-256 in hexadecimal, by path; None where a file cannot be read."""


def hash_plainly(pipe: Connection) -> None:
    """Say True when ready; answer each list of paths with their sums, and the seconds that took."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    pipe.send(True)
    while True:
        paths = pipe.recv()
        begin = time.perf_counter()
        sums = await hash_all(paths)
        pipe.send((sums, time.perf_counter() - begin))


async def hash_all(paths: Sequence[str]) -> Sums:
    """Hash files, each in a call of a thread."""
    sums = await asyncio.gather(*(asyncio.to_thread(_hash, path) for path in paths))
    return dict(zip(paths, sums, strict=True))


def _hash(path: str) -> str | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  (as people write it)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
