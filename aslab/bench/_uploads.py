"""The service of ``aslab bench service``: a program of its own, since it is its memory that is measured.

    python -m aslab.bench._uploads aslab|semaphore|unbounded LARGEST LIMIT

It prints its port, and serves until SIGTERM. Each body is held as a whole, hashed in a thread, and answered with
its checksum; so the three differ in nothing but where a body is held.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
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

UNREAD = 32 * 2**10
"""Bytes that a socket accepts before anybody reads them; Linux doubles it."""


async def into_buffer(request: Request) -> PlainTextResponse:
    """Hold the body in a buffer of the cache."""
    bodies: aslab.Cache[memoryview] = request.state.bodies
    digest = hashlib.sha256()
    async for buf, n in aslab.gather(request.receive, bodies):
        with buf, buf.view[:n] as body:
            await anyio.to_thread.run_sync(digest.update, body)
    return PlainTextResponse(digest.hexdigest())


async def into_bytearray(request: Request) -> PlainTextResponse:
    """Hold the body in a bytearray; wait first for the semaphore, if there is one."""
    digest = hashlib.sha256()
    async with request.state.turns or contextlib.nullcontext():
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
        await anyio.to_thread.run_sync(digest.update, body)
    return PlainTextResponse(digest.hexdigest())


def make_app(kind: str, largest: int, limit: int) -> Starlette:
    """The service, with bodies of up to ``largest`` bytes each, and ``limit`` in all unless it is unbounded."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        if kind == "aslab":
            async with aslab.open_allocator(limit=limit) as kmem:
                yield {"bodies": kmem.create_cache("bodies", largest)}
        else:
            yield {"turns": anyio.Semaphore(limit // largest) if kind == "semaphore" else None}

    upload = into_buffer if kind == "aslab" else into_bytearray
    return Starlette(routes=[Route("/", upload, methods=["POST"])], lifespan=lifespan)


def main(kind: str, largest: str, limit: str) -> None:
    """Serve."""
    logging.getLogger("aslab").addHandler(logging.NullHandler())  # a machine that is busy makes growth late
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD)  # its connections inherit it
    app = make_app(kind, int(largest), int(limit))
    server = uvicorn.Server(uvicorn.Config(app, loop="asyncio", http="h11", log_level="warning"))
    print(listener.getsockname()[1], flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
