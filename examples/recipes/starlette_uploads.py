"""Uploads of any size, streamed to disk through a bounded pool of buffers: one Starlette app for asyncio and trio.

    uvicorn starlette_uploads:app
    hypercorn -k trio starlette_uploads:app

    curl --data-binary @FILE localhost:8000/files

A buffer is taken once bytes of the body are there, and kept while they are written. So the disk decides how long
it is held, and not the client: clients that send slowly, or nothing, hold none.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import aslab
import aslab.io

PIECE = 256 * 2**10
"""Bytes of a buffer. uvicorn hands out bodies in messages of up to 320 KiB."""
ENOUGH = 64 * 2**10
"""Bytes that are worth a write. Less is kept, beside the cache, until more comes."""
LIMIT = int(os.environ.get("UPLOAD_MIB", "16")) * 2**20
"""Bytes of all buffers."""
PATIENCE = float(os.environ.get("UPLOAD_PATIENCE", "2"))
"""Seconds that an upload waits for a buffer; then the client is told to come again."""
FOLDER = Path(os.environ.get("UPLOAD_FOLDER", tempfile.gettempdir()))


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write, which has its name once it is whole, and is gone if it fails."""
    part = path.with_suffix(".part")
    part.touch()
    try:
        yield part
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


async def store(request: Request, path: Path) -> int:
    """Write the body to a file. Returns its size."""
    pieces: aslab.Cache[memoryview] = request.state.pieces
    end, rest = 0, b""
    async with contextlib.aclosing(request.stream()) as messages:  # trio wants generators closed
        async for message in messages:  # waits for the client, and holds no buffer; the last message is empty
            rest += message
            if message and len(rest) < ENOUGH:
                continue
            for start in range(0, len(rest), PIECE):
                piece = rest[start : start + PIECE]
                async with pieces.lease(timeout=PATIENCE) as buf:
                    buf.view[: len(piece)] = piece
                    end += await aslab.io.write_from(path, buf, end, len(piece))
            rest = b""
    return end


async def upload(request: Request) -> JSONResponse:
    """Store the body under a new name."""
    path = FOLDER / uuid.uuid4().hex
    try:
        with new_file(path) as part:
            size = await store(request, part)
    except (TimeoutError, aslab.TooManyWaiting):
        await drop(request)
        raise HTTPException(503, "no memory for now", {"Retry-After": "1"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the rest of the body did not come") from None  # for the log; nobody reads it
    return JSONResponse({"name": path.name, "bytes": size}, 201)


async def drop(request: Request) -> None:
    """Read on for a while: many clients read no answer before all is sent, and servers may hang up on them."""
    with anyio.move_on_after(1), contextlib.suppress(ClientDisconnect):
        async for _ in request.stream():
            pass


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
    """Open the allocator for as long as the server runs. What is yielded is ``request.state``."""
    async with aslab.open_allocator(limit=LIMIT) as kmem:
        yield {"pieces": kmem.create_cache("pieces", PIECE, max_waiting=1000)}


app = Starlette(routes=[Route("/files", upload, methods=["POST"])], lifespan=lifespan)
