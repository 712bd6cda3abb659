"""Uploads of any size, streamed to disk through a bounded pool of buffers: aiohttp.

    python aiohttp_uploads.py 8000
    curl --data-binary @FILE localhost:8000/files

A buffer is taken once bytes of the body are there, and kept while they are written. So the disk decides how long
it is held, and not the client: clients that send slowly, or nothing, hold none.
"""

import contextlib
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import StreamReader, web

import aslab
import aslab.io

PIECE = 256 * 2**10
"""Bytes of a buffer."""
ENOUGH = 64 * 2**10
"""Bytes that are worth a write. Less is kept, beside the cache, until more comes."""
LIMIT = int(os.environ.get("UPLOAD_MIB", "16")) * 2**20
"""Bytes of all buffers."""
PATIENCE = float(os.environ.get("UPLOAD_PATIENCE", "2"))
"""Seconds that an upload waits for a buffer; then the client is told to come again."""
FOLDER = Path(os.environ.get("UPLOAD_FOLDER", tempfile.gettempdir()))
PIECES = web.AppKey("pieces", aslab.Cache[memoryview])


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


async def pieces_of(body: StreamReader) -> AsyncIterator[bytes]:
    """The body in pieces that fit into a buffer, and are worth it."""
    rest = b""
    async for data in body.iter_chunked(PIECE - ENOUGH):
        rest += data
        if len(rest) >= ENOUGH:
            yield rest
            rest = b""
    if rest:
        yield rest


async def upload(request: web.Request) -> web.Response:
    """Store the body under a new name."""
    path, end = FOLDER / uuid.uuid4().hex, 0
    try:
        with new_file(path) as part:
            async for piece in pieces_of(request.content):  # waits for the client, and holds no buffer
                async with request.app[PIECES].lease(timeout=PATIENCE) as buf:
                    buf.view[: len(piece)] = piece
                    end += await aslab.io.write_from(part, buf, end, len(piece))
    except (TimeoutError, aslab.TooManyWaiting):
        raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"}, text="no memory for now") from None
    except ConnectionResetError:
        raise web.HTTPBadRequest(text="the rest of the body did not come") from None  # nobody reads it
    return web.json_response({"name": path.name, "bytes": end}, status=201)


async def allocator(app: web.Application) -> AsyncIterator[None]:
    """Open the allocator for as long as the server runs."""
    async with aslab.open_allocator(limit=LIMIT) as kmem:
        app[PIECES] = kmem.create_cache("pieces", PIECE, max_waiting=1000)
        yield


app = web.Application()
app.cleanup_ctx.append(allocator)
app.router.add_post("/files", upload)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
