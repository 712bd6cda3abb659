"""Camera frames for two other processes, without a copy. One of them is killed now and then, and nothing is lost.

Both consumers read each frame where the producer wrote it. A frame is free again when both have let go of it, or
have died. The producer goes no faster than the slower of the two.
"""

import multiprocessing
import tempfile
import zlib
from pathlib import Path

import anyio
from anyio import to_thread

import aslab
from aslab import share
from aslab.backends import SharedMemory

SIZE = 1280 * 720 * 3
FRAMES, KILLS = 100, 2


def verify(path: str) -> None:
    """A consumer that checks every frame against the checksum at its end, and that none is missing."""
    count = 0
    with share.connect_blocking(path) as client:
        for claim in client.receiver("camera"):
            with claim:
                assert zlib.crc32(claim.view[:-4]) == int.from_bytes(claim.view[-4:], "little")
                assert claim.view[0] == count % 256
            count += 1
    print(f"verified {count} frames", flush=True)


def look(path: str) -> None:
    """A consumer that crashes: it is killed while it holds a frame, as likely as not."""
    with share.connect_blocking(path) as client:
        for claim in client.receiver("camera"):
            with claim:
                sum(claim.view[::1000])


async def film(frames: aslab.Cache[memoryview], sender: share.Sender) -> None:
    """The camera: each frame is written once, into a buffer of the cache, and handed over."""
    for number in range(FRAMES):
        buf = await frames.alloc()
        buf.view[:-4] = bytes([number % 256]) * (SIZE - 4)
        buf.view[-4:] = zlib.crc32(buf.view[:-4]).to_bytes(4, "little")
        await sender.send(buf)
    sender.close()


async def main(path: str) -> None:
    processes = multiprocessing.get_context("spawn")
    verifier = processes.Process(target=verify, args=(path,))
    async with aslab.open_allocator(slabs=SharedMemory(), emergency=SharedMemory()) as kmem:
        frames = kmem.create_cache("frames", SIZE, max_objects=16)
        async with share.serve(kmem, path) as service, anyio.create_task_group() as tasks:
            verifier.start()
            assert verifier.pid
            await service.client(verifier.pid)
            tasks.start_soon(film, frames, share.Sender(service, "camera"))
            for _ in range(KILLS):
                looker = processes.Process(target=look, args=(path,))
                looker.start()
                assert looker.pid
                await service.client(looker.pid)
                await anyio.sleep(0.05)
                looker.kill()
                await to_thread.run_sync(looker.join)
            await to_thread.run_sync(verifier.join)
        stats = frames.stats()
        print(f"{KILLS} consumers killed, {stats.obj_held} of {stats.obj_total} buffers still held")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(main, str(Path(folder, "socket")))
