"""What the sharing tests start, and kill: ``python -m tests.share_programs consume PATH``."""

from __future__ import annotations

import sys
import threading
import time

import anyio

import aslab
from aslab import share
from aslab.backends import SharedMemory

SIZE = 64 * 2**10


def fill(view: memoryview, number: int) -> None:
    """Write a frame that can be checked."""
    view[:8] = number.to_bytes(8, "little")
    view[8:] = bytes([number % 251]) * (len(view) - 8)


def check(view: memoryview) -> int:
    """The number of a frame, all of whose bytes must be of that frame."""
    number = int.from_bytes(view[:8], "little")
    with view[8:] as rest:
        assert rest == bytes([number % 251]) * len(rest), f"frame {number} was overwritten"
    return number


def consume(path: str) -> None:
    """Check every frame twice: as it comes, and before it goes back."""
    last = -1
    with share.connect_blocking(path) as client:
        for claim in client.receiver("frames"):
            with claim:
                number = check(claim.view)
                assert number > last, "a frame came twice"
                last = number
                time.sleep(0.0005 * (number % 3))
                assert check(claim.view) == number


def hold(path: str) -> None:
    """Take one frame and keep it."""
    with share.connect_blocking(path) as client:
        claims = [client.receiver("frames").receive()]
        while True:
            time.sleep(1)
            assert claims


def produce(path: str) -> None:
    """Send frames until killed."""
    # in a thread of its own, for a child by fork of a test that runs an event loop
    thread = threading.Thread(target=anyio.run, args=(_produce, path))
    thread.start()
    thread.join()  # a main thread that ends lets no other thread start


async def _produce(path: str) -> None:
    async with aslab.open_allocator(slabs=SharedMemory(), emergency=SharedMemory()) as kmem:
        cache = kmem.create_cache("frames", SIZE, max_objects=16)
        async with share.serve(kmem, path) as service:
            sender = share.Sender(service, "frames")
            number = 0
            while True:
                buf = await cache.alloc()
                fill(buf.view, number)
                await sender.send(buf)
                number += 1


if __name__ == "__main__":
    {"consume": consume, "hold": hold, "produce": produce}[sys.argv[1]](sys.argv[2])
