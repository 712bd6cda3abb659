"""An upload service whose memory is bounded: Starlette on uvicorn, each body in a buffer of one cache.

At most `LIMIT` bytes of bodies are held at once: later uploads wait for a buffer, and their bytes wait in the
sockets. Run it to see it serve 50 clients of its own; give a port to serve others.
"""

import asyncio
import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import aslab
from aslab.backends import Backend

LARGEST = 4 * 2**20
LIMIT = 64 * 2**20
UNREAD = 32 * 2**10
"""Bytes that a socket accepts before anybody reads them; Linux doubles it. uvicorn keeps the bytes of one read for
each body that waits for its turn: for 200 bodies 18 MiB with this value, and 34 MiB with the system's default."""


async def upload(request: Request) -> PlainTextResponse:
    """Receive a body into a buffer, and reply with its checksum."""
    bodies: aslab.Cache[memoryview] = request.state.bodies
    digest, end = hashlib.sha256(), 0
    async for buf, n in aslab.gather(request.receive, bodies):
        with buf, buf.view[:n] as body:
            end += n
            if end > LARGEST:
                return PlainTextResponse("too large", 413)
            await anyio.to_thread.run_sync(digest.update, body)
    return PlainTextResponse(digest.hexdigest())


def make_app(slabs: Backend | None = None) -> Starlette:
    """The service, on real memory or on another backend."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        async with aslab.open_allocator(slabs=slabs, limit=LIMIT) as kmem:
            yield {"bodies": kmem.create_cache("bodies", LARGEST)}

    return Starlette(routes=[Route("/", upload, methods=["POST"])], lifespan=lifespan)


def listen(port: int = 0) -> socket.socket:
    """A socket that accepts little of a body before anybody reads it."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD)  # its connections inherit it
    return listener


async def client(port: int, body: bytes) -> bool:
    """Upload it, and return whether the service got all of it right."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer.startswith("HTTP/1.1 200 ") and answer.endswith(hashlib.sha256(body).hexdigest())


async def main(port: int) -> None:
    server = uvicorn.Server(uvicorn.Config(make_app(), log_level="warning"))
    with listen(port) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        if not port:
            body = os.urandom(LARGEST)
            right = await asyncio.gather(*(client(listener.getsockname()[1], body) for _ in range(50)))
            server.should_exit = True
            size = LARGEST // 2**20
            print(f"{sum(right)} of {len(right)} uploads of {size} MiB answered with the right checksum")
        await serving


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
