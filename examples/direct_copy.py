"""Copy a file by direct I/O: through 4 buffers of 1 MiB, and around the page cache.

A copy of a large file through the page cache pushes out what other programs keep there. Run it to see it copy a
file of 32 MiB with a hole; give two paths to copy a file of your own.
"""

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import anyio

import aslab
import aslab.io

CHUNK = 2**20
IN_FLIGHT = 4


async def copy(src: Path, dst: Path) -> None:
    async with aslab.open_allocator(limit=IN_FLIGHT * CHUNK) as kmem:
        chunks = kmem.create_cache("chunks", CHUNK)
        began = time.perf_counter()
        copied = await aslab.io.copy_file(src, dst, chunks, in_flight=IN_FLIGHT)
        rate = copied / 2**20 / (time.perf_counter() - began)
        print(f"{copied} bytes copied at {rate:.0f} MiB/s through {chunks.stats().obj_total} buffers")


def make(path: Path) -> None:
    """A file with a hole, and an end within a block."""
    with path.open("wb") as file:
        file.write(os.urandom(16 * CHUNK))
        file.seek(24 * CHUNK)
        file.write(os.urandom(8 * CHUNK + 12_345))


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    if len(sys.argv) > 2:
        anyio.run(copy, Path(sys.argv[1]), Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        src, dst = Path(folder, "src"), Path(folder, "dst")
        make(src)
        anyio.run(copy, src, dst)
        print("the same" if checksum(src) == checksum(dst) else "not the same")
        print(f"on the disk {src.stat().st_blocks // 2048} and {dst.stat().st_blocks // 2048} MiB")


if __name__ == "__main__":
    main()
