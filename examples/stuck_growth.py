"""A service whose memory gets stuck: growth hangs for two seconds, and the service goes on.

The fault wraps the real backend. Watch the first callers wait a tenth of a second, the others take
emergency objects at once, and normal operation resume when the grow ends.
"""

import anyio

import aslab
from aslab.backends import Mmap
from aslab.faults import Deadlock


async def handle_requests(frames: aslab.Cache[memoryview]) -> None:
    while True:
        async with frames.lease() as frame:
            frame.view[0] = 1
            await anyio.sleep(0.005)


async def main() -> None:
    slabs = Deadlock(Mmap(), duration=2.0)
    async with aslab.open_allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
        frames = kmem.create_cache("frames", 256 * 2**10)
        for _ in range(8):
            tasks.start_soon(handle_requests, frames)
        print("seconds  growing  deadlocked  emergency objects  served so far")
        for tick in range(6):
            await anyio.sleep(0.5)
            stats = frames.stats()
            served = stats.hits + stats.misses
            marks = f"{stats.growing!s:7}  {stats.deadlocked!s:10}"
            print(f"{(tick + 1) / 2:7.1f}  {marks}  {stats.obj_emergency:17d}  {served:13d}")
        tasks.cancel_scope.cancel()
    stats = frames.stats()
    print(f"deadlocks: {stats.obj_deadlock}, callers that waited too long: {stats.timeouts}")


if __name__ == "__main__":
    anyio.run(main)
