"""``aslab demo`` on many small files and on a few large ones, compared with what people write or type instead.

The files are made in a temporary folder, and are in the page cache. What is timed is reading and hashing them;
finding them, and the start of a Python, is not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..cli._loops import Loop, run_on
from ._app import command
from ._measured import Bench, Quantity, Turn, Values

SMALL = 10 * 2**10
LARGE = 4
A_FOLDER = 100
ALL = Quantity("all files", "ms")
PLAIN = "asyncio.to_thread(hashlib.file_digest)"
XARGS = "xargs -P2 sha256sum"
JOBS = 8
"""Commands that xargs runs, at most two at once, so that both cores are used to the end."""


class Trees:
    """Files of two sizes in a temporary folder, from entry to exit."""

    def __init__(self, trees: Mapping[str, tuple[int, int]]) -> None:
        self._trees = trees
        self._made = ExitStack()
        self.files: dict[str, list[str]] = {}
        """Their paths, by the name of their tree."""

    def __enter__(self) -> None:
        top = Path(self._made.enter_context(tempfile.TemporaryDirectory(prefix="aslab-bench-")))
        for number, (name, (count, size)) in enumerate(self._trees.items()):
            piece = random.Random(size).randbytes(SMALL)
            self.files[name] = []
            for each in range(count):
                folder = top / f"{number}" / f"{each // A_FOLDER}"
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / f"{each}"
                file.write_bytes(each.to_bytes(8, "big") + piece * (size // SMALL))
                self.files[name].append(str(file))

    def __exit__(self, *exc: object) -> None:
        self._made.close()


Way = Callable[[list[str]], float]
"""Hashes these files, and returns the seconds that it took."""


@command("demo", rounds=3, quick={"rounds": 1, "files": 500, "mib": 16})
def demo(
    files: Annotated[int, typer.Option(help="Files of 10 KiB.", min=1)] = 5_000,
    mib: Annotated[int, typer.Option(help="Size of four large files, in MiB.", min=1)] = 64,
) -> Bench:
    """Checksums of many small files and of a few large ones, compared with other ways. Takes half a minute."""
    ways: dict[str, Way] = {PLAIN: _plain, "aslab demo": _aslab}
    if shutil.which("xargs") and shutil.which("sha256sum"):
        ways[XARGS] = _xargs
    counts = {f"{files:,} files of 10 KiB": (files, SMALL), f"{LARGE} files of {mib:,} MiB": (LARGE, mib * 2**20)}
    trees = Trees(counts)
    turns = [
        Turn(case, name, partial(_measure, way, trees, case), against=PLAIN)
        for case in counts
        for name, way in ways.items()
    ]
    return Bench("checksums of a tree of files", turns, "Finding the files is not timed.", around=trees)


def _measure(way: Way, trees: Trees, case: str) -> Values:
    return {ALL: way(trees.files[case]) * 1e3}


def _plain(files: list[str]) -> float:
    async def hash_all() -> float:
        begin = time.perf_counter()
        await asyncio.gather(*(asyncio.to_thread(_hash, file) for file in files))
        return time.perf_counter() - begin

    return run_on(Loop.ASYNCIO, hash_all)


def _hash(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _aslab(files: list[str]) -> float:
    top = os.path.commonpath(files) if len(files) > 1 else files[0]
    command_line = [sys.executable, "-m", "aslab", "demo", "--loop", "asyncio", "--json", top]
    done = subprocess.run(command_line, stdout=subprocess.PIPE, check=True)
    run = json.loads(done.stdout)
    assert run["files"] == len(files)
    return float(run["seconds"])


def _xargs(files: list[str]) -> float:
    command_line = ["xargs", "-P2", f"-n{-(-len(files) // JOBS)}", "sha256sum"]
    begin = time.perf_counter()
    subprocess.run(command_line, input="\n".join(files).encode(), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
