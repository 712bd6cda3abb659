"""The same on trio: nothing about aslab changes. `checkpoints=True` makes every call a checkpoint, as on trio."""

import trio

import aslab


async def main() -> None:
    async with aslab.open_allocator(limit=64 * 2**20, checkpoints=True) as kmem:
        frames = kmem.create_cache("frames", 4 * 2**20)
        async with frames.lease() as frame:
            frame.view[:5] = b"hello"
            print(bytes(frame.view[:5]).decode(), "from", len(frame) // 2**20, "MiB at", hex(frame.address))
        print(kmem.table(), end="")


if __name__ == "__main__":
    trio.run(main)
