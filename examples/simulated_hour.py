"""An hour of a service in half a second: its memory is stuck for ten minutes, just when a rush arrives.

The same seed gives the same log, to the byte, in every process. With the argument ``trio`` it runs on trio.
"""

import sys

import anyio

import aslab
from aslab import lab
from aslab.emulation import Kmalloc, PhysicalMemory, Vmalloc
from aslab.faults import Deadlock

HOUR, MINUTE = 3600, 60


async def service() -> None:
    run = lab.current()
    memory = PhysicalMemory(16384)  # 64 MiB
    slabs = Deadlock(Vmalloc(memory, per_page=2e-6), window=(10 * MINUTE, 20 * MINUTE))
    longest, emergency = 0.0, 0

    async def worker(name: str, start: float, end: float) -> None:
        nonlocal longest, emergency
        await anyio.sleep(start)
        while run.time() < end:
            begin = run.time()
            async with frames.lease() as frame:
                longest = max(longest, run.time() - begin)
                emergency += frame.emergency
                run.log.write(name, "got", "emergency" if frame.emergency else "slab")
                await anyio.sleep(run.random.expovariate(1 / 5))
            await anyio.sleep(run.random.expovariate(1 / 5))

    async with aslab.open_allocator(slabs=slabs, emergency=Kmalloc(memory), kick_after=None) as kmem:
        frames = kmem.create_cache("frames", 65536, objects_per_slab=1, magazine_size=2)
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(worker, f"worker-{number}", 0, HOUR)
            for number in range(32):
                tasks.start_soon(worker, f"rush-{number}", 12 * MINUTE, 40 * MINUTE)
        stats = frames.stats()
        print(f"longest wait {longest * 1000:.0f} ms, {emergency} emergency objects", end=", ")
        print(f"{stats.obj_deadlock} deadlock")
        print(f"in the end {stats.obj_emergency} emergency objects are left, and growth is", end=" ")
        print("stuck" if stats.deadlocked else "well")


loop = "trio" if "trio" in sys.argv else "asyncio"
outcome = lab.run(service, seed=1, loop=loop)
print(f"{outcome.duration:.0f} simulated seconds on {loop}, {len(outcome.log)} events")
print(f"log {outcome.log.sha256[:16]}, the same each time")
