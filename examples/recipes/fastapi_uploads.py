"""Uploads of any size, streamed to disk through a bounded pool of buffers, with figures and health: FastAPI.

    uvicorn fastapi_uploads:app
    WEB_CONCURRENCY=4 uvicorn fastapi_uploads:app        (four workers share UPLOAD_MIB)

    curl --data-binary @FILE localhost:8000/files
    curl localhost:8000/health
    curl localhost:8000/metrics

A buffer is taken once bytes of the body are there, and kept while they are written. So the disk decides how long
it is held, and not the client: clients that send slowly, or nothing, hold none.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import ClientDisconnect

import aslab
import aslab.io
from aslab.observe.prometheus import AllocatorCollector

PIECE = 256 * 2**10
"""Bytes of a buffer. uvicorn hands out bodies in messages of up to 320 KiB."""
ENOUGH = 64 * 2**10
"""Bytes that are worth a write. Less is kept, beside the cache, until more comes."""
WORKERS = int(os.environ.get("WEB_CONCURRENCY", "1"))
LIMIT = int(os.environ.get("UPLOAD_MIB", "16")) * 2**20 // WORKERS
"""Bytes of the buffers of this worker: each has an allocator of its own."""
PATIENCE = float(os.environ.get("UPLOAD_PATIENCE", "2"))
"""Seconds that an upload waits for a buffer; then the client is told to come again."""
FOLDER = Path(os.environ.get("UPLOAD_FOLDER", tempfile.gettempdir()))


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    """Open the allocator for as long as the worker serves. What is yielded is ``request.state``."""
    async with aslab.open_allocator(limit=LIMIT) as kmem:
        registry = CollectorRegistry()
        registry.register(AllocatorCollector({f"worker-{os.getpid()}": kmem}))
        pieces = kmem.create_cache("pieces", PIECE, max_waiting=1000)
        yield {"kmem": kmem, "pieces": pieces, "registry": registry}


def the_pieces(request: Request) -> aslab.Cache[memoryview]:
    """The cache, as a dependency."""
    pieces: aslab.Cache[memoryview] = request.state.pieces
    return pieces


Pieces = Annotated[aslab.Cache[memoryview], Depends(the_pieces)]
app = FastAPI(lifespan=lifespan)


@app.post("/files", status_code=201)
async def upload(request: Request, pieces: Pieces) -> dict[str, str | int]:
    """Store the body under a new name."""
    path, end, rest = FOLDER / uuid.uuid4().hex, 0, b""
    try:
        with new_file(path) as part:
            async for message in request.stream():  # waits for the client, and holds no buffer
                rest += message
                if message and len(rest) < ENOUGH:  # the last message is empty
                    continue
                for start in range(0, len(rest), PIECE):
                    piece = rest[start : start + PIECE]
                    async with pieces.lease(timeout=PATIENCE) as buf:
                        buf.view[: len(piece)] = piece
                        end += await aslab.io.write_from(part, buf, end, len(piece))
                rest = b""
    except (TimeoutError, aslab.TooManyWaiting):
        await drop(request)
        raise HTTPException(503, "no memory for now", {"Retry-After": "1"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "the rest of the body did not come") from None  # for the log; nobody reads it
    return {"name": path.name, "bytes": end}


@app.get("/health")
def health(request: Request, response: Response) -> dict[str, str | list[str]]:
    """Whether uploads get buffers, and if not, why. 503 takes the worker out of a load balancer."""
    found = request.state.kmem.health()
    if found.state == "stuck":
        response.status_code = 503
    return {"state": found.state, "reasons": list(found.reasons)}


@app.get("/metrics")
def metrics(request: Request) -> Response:
    """The figures of this worker, for Prometheus."""
    return Response(generate_latest(request.state.registry), media_type=CONTENT_TYPE_LATEST)


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


async def drop(request: Request) -> None:
    """Read on for a while: many clients read no answer before all is sent, and uvicorn may hang up on them."""
    with anyio.move_on_after(1), contextlib.suppress(ClientDisconnect):
        async for _ in request.stream():
            pass
