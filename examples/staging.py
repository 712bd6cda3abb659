"""A staging loop: batches of a file go to a GPU through a few pinned buffers, and reading overlaps copying.

Run it as it is, or give it a file. At most `BUFFERS` batches are in memory at a time. To show what happens when
the driver hangs while it pins memory, the first grow is stuck for a moment: the loop begins with emergency
objects, whose copies are slower, and goes on with pinned ones. Without PyTorch or a GPU it runs on ordinary
memory.
"""

import importlib
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

import aslab
import aslab.io
from aslab.backends import Backend, Mmap, Pinned
from aslab.faults import Deadlock

BATCH = 2**20
BUFFERS = 4
STUCK = 0.2


class Device:
    """The GPU, or ordinary memory where there is none."""

    def __init__(self) -> None:
        self._torch: Any = None
        self.slabs: Backend = Mmap()
        try:
            torch = importlib.import_module("torch")
            if not torch.cuda.is_available():
                raise ImportError("PyTorch finds no GPU")
            self.slabs, self._torch = Pinned(), torch
        except ImportError as exc:
            print(f"ordinary buffers: {exc}")
        self._room: Any = torch.empty(BATCH, dtype=torch.uint8, device="cuda") if self._torch else bytearray(BATCH)

    def step(self, buf: aslab.Buffer[memoryview], n: int) -> int:
        """Copy a batch to the device, and work on it there. In a thread: it blocks until the copy is done."""
        if self._torch is None:
            self._room[:n] = buf.view[:n]
            return zlib.crc32(memoryview(self._room)[:n])
        self._room[:n].copy_(self._torch.from_dlpack(buf)[:n], non_blocking=True)
        self._torch.cuda.current_stream().synchronize()  # until here the GPU reads the buffer
        return zlib.crc32(self._room[:n].cpu().numpy())


async def stage(path: Path, count: int, staging: aslab.Cache[memoryview], device: Device) -> tuple[list[int], int]:
    """Bring all batches to the device. Returns what it made of each, and how many buffers were not pinned."""
    results, ordinary = [0] * count, 0
    turn = anyio.Lock()  # there is one device

    async def work(numbers: Iterator[int]) -> None:
        nonlocal ordinary
        for number in numbers:
            async with staging.lease() as buf:
                n = await aslab.io.read_into(path, buf, number * BATCH)
                ordinary += buf.emergency
                async with turn:
                    results[number] = await to_thread.run_sync(device.step, buf, n)

    async with anyio.create_task_group() as tasks:
        numbers = iter(range(count))
        for _ in range(BUFFERS):
            tasks.start_soon(work, numbers)
    return results, ordinary


async def main(path: Path, nbytes: int) -> None:
    device, count = Device(), -(-nbytes // BATCH)
    async with aslab.open_allocator(slabs=Deadlock(device.slabs, duration=STUCK), grow_timeout=0.02) as kmem:
        staging = kmem.create_cache("staging", BATCH, max_objects=BUFFERS)
        first, ordinary = await stage(path, count, staging, device)
        print(f"the driver hangs: {len(first)} batches, {ordinary} of them through emergency objects")
        await staging.prefill(BUFFERS)
        again, ordinary = await stage(path, count, staging, device)
        print(f"it works again: {len(again)} batches, {ordinary} of them through emergency objects")
        print("the same" if first == again else "DIFFERENT")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        data = Path(*sys.argv[1:2]) if sys.argv[1:] else Path(folder, "batches")
        if not sys.argv[1:]:
            data.write_bytes(os.urandom(20 * BATCH + 1000))
        anyio.run(main, data, data.stat().st_size)
