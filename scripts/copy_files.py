"""Ways to copy a large file, in turns: how fast, how much processor time, and what is left in the page cache.

    python scripts/copy_files.py [--mib 512] [--rounds 3] [--folder DIR]

Before each copy nothing of the file is cached. DIR must be on a disk's filesystem, with room for two files.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio

import aslab
from aslab.backends._libc import PAGE_SIZE
from aslab.io import copy_file

MIB = 2**20
WAYS = {
    "`copy_file`, 1 MiB by 1": (1, 1, True),
    "`copy_file`, 1 MiB by 4": (1, 4, True),
    "`copy_file`, 4 MiB by 4": (4, 4, True),
    "`copy_file(direct=False)`, 1 MiB by 4": (1, 4, False),
}
_libc = ctypes.CDLL(None, use_errno=True)


def prepare(src: Path, dst: Path) -> None:
    """Remove the copy, and take the source out of the page cache."""
    dst.unlink(missing_ok=True)
    forget(src)


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cached(path: Path) -> int:
    """Bytes of a file in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapping:
        pages = (ctypes.c_ubyte * -(-len(mapping) // PAGE_SIZE))()
        start = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping))
        if _libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapping)), pages):
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(page & 1 for page in pages) * PAGE_SIZE


def flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


async def measure(copy: Callable[[], Awaitable[object]], src: Path, dst: Path) -> tuple[float, float, float]:
    """Seconds until it is on the disk, processor seconds, bytes left in the page cache."""
    prepare(src, dst)
    began, spent = time.perf_counter(), time.process_time()
    await copy()
    flush(dst)
    seconds, processor = time.perf_counter() - began, time.process_time() - spent
    return seconds, processor, cached(src) + cached(dst)


def make(src: Path, mib: int) -> None:
    """A file without holes."""
    with src.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


async def run(folder: Path, mib: int, rounds: int) -> None:
    """Measure all ways in turns, and print a table of the medians."""
    src, dst = folder / "src", folder / "dst"
    make(src, mib)
    async with aslab.open_allocator() as kmem:
        caches = {size: kmem.create_cache(f"{size} MiB", size * MIB) for size in (1, 4)}
        ways: dict[str, Callable[[], Awaitable[object]]] = {
            "`shutil.copyfile`": partial(anyio.to_thread.run_sync, shutil.copyfile, src, dst)
        }
        for name, (size, in_flight, direct) in WAYS.items():
            ways[name] = partial(copy_file, src, dst, caches[size], direct=direct, in_flight=in_flight)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, copy in ways.items():
                found[name].append(await measure(copy, src, dst))
    print("| way | MiB/s, until on the disk | processor seconds | MiB left in the page cache |")
    print("| --- | --- | --- | --- |")
    for name, figures in found.items():
        seconds, processor, left = map(statistics.median, zip(*figures, strict=True))
        print(f"| {name} | {mib / seconds:.0f} | {processor:.2f} | {left / MIB:.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        anyio.run(run, Path(made), given.mib, given.rounds)
