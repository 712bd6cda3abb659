"""A TCP echo service whose connections share one cache.

Each connection takes a buffer only while it has data in flight, receives straight into it and sends
straight out of it. 200 clients are served with at most 32 buffers: more clients wait, and memory
stays bounded. Run it to see it serve its own clients; give a port to serve others.
"""

import asyncio
import os
import socket
import sys

import aslab

CHUNK = 64 * 2**10
CLIENTS = 200
MESSAGE = os.urandom(3 * CHUNK)


async def serve(listener: socket.socket, chunks: aslab.Cache[memoryview]) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            connection, _ = await loop.sock_accept(listener)
            tasks.create_task(echo(connection, chunks))


async def echo(connection: socket.socket, chunks: aslab.Cache[memoryview]) -> None:
    loop = asyncio.get_running_loop()
    with connection:
        connection.setblocking(False)
        while True:
            async with chunks.lease() as chunk:
                received = await loop.sock_recv_into(connection, chunk.view)
                if not received:
                    return
                with chunk.view[:received] as part:
                    await loop.sock_sendall(connection, part)


async def client(address: tuple[str, int]) -> int:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(MESSAGE)
    writer.write_eof()
    echoed = await reader.read()
    writer.close()
    await writer.wait_closed()
    if echoed != MESSAGE:
        raise SystemExit("the echo differs from what was sent")
    return len(echoed)


async def main(port: int) -> None:
    async with aslab.open_allocator(limit=32 * CHUNK) as kmem:
        chunks = kmem.create_cache("chunks", CHUNK)
        with socket.create_server(("127.0.0.1", port), backlog=CLIENTS) as listener:
            listener.setblocking(False)
            server = asyncio.create_task(serve(listener, chunks))
            if port:
                print(f"serving 127.0.0.1 port {port}; Ctrl-C ends it")
                await server
            echoed = await asyncio.gather(*(client(listener.getsockname()) for _ in range(CLIENTS)))
            server.cancel()
            await asyncio.wait([server])
        stats = chunks.stats()
        print(f"{len(echoed)} clients, {sum(echoed) // 2**20} MiB echoed, at most {stats.obj_total} buffers")
        allocations = stats.hits + stats.misses
        print(f"{allocations} allocations, {stats.waits} of them waited; {stats.obj_held} still held")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
