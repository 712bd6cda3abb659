"""What does a service reply while its memory is stuck? Your own ASGI app, in simulated time, on both loops.

The app is called as a server would call it, with its lifespan, but without a socket: the other end of one would be
in real time. httpx is the client. What is stuck, and when, is up to you; here it is the memory for buffers.
"""

import contextlib
import functools
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock

import anyio
import httpx
import starlette_uploads as service
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

import aslab
from aslab import lab
from aslab.emulation import Kmalloc, PhysicalMemory, Vmalloc
from aslab.faults import Switch


@contextlib.asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app of Starlette or FastAPI, which runs in this process."""
    async with app.router.lifespan_context(app) as state:

        async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://lab") as client:
            yield client


async def scenario() -> None:
    memory = PhysicalMemory(16384)  # 64 MiB in pages of 4 KiB
    slabs, emergency = Switch(Vmalloc(memory)), Switch(Kmalloc(memory))
    faulty = functools.partial(aslab.open_allocator, slabs=slabs, emergency=emergency)
    with mock.patch.object(aslab, "open_allocator", faulty):
        async with serving(service.app) as client:
            slabs.stick()
            response, seconds = await upload(client)
            print(f"growth is stuck: {response.status_code} after {seconds:.1f} s")
            assert response.status_code == 201  # by an emergency object

            emergency.stick()
            await anyio.sleep(1)  # what was freed is kept for the next caller, but not for a second
            response, seconds = await upload(client)
            print(f"no memory at all: {response.status_code} after {seconds:.1f} s")
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            assert seconds == service.PATIENCE

            slabs.heal()
            emergency.heal()
            await anyio.sleep(float(response.headers["Retry-After"]))
            response, seconds = await upload(client)
            print(f"it is back: {response.status_code} after {seconds:.1f} s")
            assert response.status_code == 201


async def upload(client: httpx.AsyncClient) -> tuple[httpx.Response, float]:
    """Upload a MiB. Returns the response, and the simulated seconds that it took."""
    begin = anyio.current_time()
    response = await client.post("/files", content=bytes(2**20))
    return response, anyio.current_time() - begin


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        service.FOLDER = Path(folder)
        for loop in ("asyncio", "trio"):
            lab.run(scenario, seed=1, loop=loop)
