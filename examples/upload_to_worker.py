"""Uploads that land in shared memory and are processed in another process, which reads them where they lie.

Run it to see it serve clients of its own, and what happens when the worker hangs and is killed. Give a port to
serve others: ``curl --data-binary @FILE localhost:PORT`` replies with the checksum of the file, of up to 1 MiB.

Each body goes into one buffer. The service and the worker both hold it; it is free when both have let go, or died.
There are `BUFFERS` of them and no more: an upload that gets none in time is told 503, and may come again. A client
that asks first, as curl does for large files (``Expect: 100-continue``), has sent nothing of its body until then.
"""

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import aslab
from aslab import share
from aslab.backends import SharedMemory

LARGEST = 2**20
BUFFERS = 4
PATIENCE = 1.0
"""Seconds that an upload has for getting a buffer and filling it."""
TRIES = 3
PROCESSES = multiprocessing.get_context("spawn")


def work(path: str, pipe: Connection) -> None:
    """The worker: in a process of its own, one body at a time."""
    with share.connect_blocking(path) as client, contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            with client.attach(pipe.recv()) as claim:
                answer = hashlib.sha256(claim.view).hexdigest()
            pipe.send(answer)


class Worker:
    """Keeps one worker running, and asks it."""

    def __init__(self) -> None:
        self._turn = anyio.Lock()
        self.path = ""
        self.process: multiprocessing.process.BaseProcess | None = None

    def _start(self) -> None:
        self._pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=work, args=(self.path, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends our recv

    def _ask(self, descriptor: share.Descriptor) -> str:
        for _ in range(TRIES):
            if self.process is None:
                self._start()
            try:
                self._pipe.send(descriptor)
                return str(self._pipe.recv())
            except (EOFError, OSError):  # it died: the buffer is still ours, so another may try
                self.stop()
        raise ChildProcessError(f"{TRIES} workers died of this body")

    async def checksum(self, descriptor: share.Descriptor) -> str:
        """Have a shared buffer read. If the worker dies, another does it."""
        async with self._turn:
            return await to_thread.run_sync(self._ask, descriptor)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self._pipe.close()
            self.process = None


async def upload(request: Request) -> PlainTextResponse:
    """Receive a body into a shared buffer, and reply with what the worker makes of it."""
    bodies: aslab.Cache[memoryview] = request.state.bodies
    if not 0 < int(request.headers.get("content-length", 0)) <= LARGEST:
        return PlainTextResponse(f"1 to {LARGEST} bytes, and say how many", 413)
    try:
        with anyio.fail_after(PATIENCE):
            buf, n = await anext(aslab.gather(request.receive, bodies))
    except TimeoutError:
        return PlainTextResponse("busy", 503, {"Retry-After": "1"})
    with request.state.service.share(buf, n) as shared:
        return PlainTextResponse(await request.state.worker.checksum(shared.descriptor))


def make_app(worker: Worker) -> Starlette:
    """The service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        memory = SharedMemory()
        async with aslab.open_allocator(slabs=memory, emergency=memory, limit=BUFFERS * LARGEST) as kmem:
            bodies = kmem.create_cache("bodies", LARGEST, objects_per_slab=1, max_emergency=0)
            await bodies.prefill(BUFFERS)
            with tempfile.TemporaryDirectory() as folder:
                worker.path = str(Path(folder, "socket"))
                async with share.serve(bodies, worker.path) as service:
                    yield {"bodies": bodies, "service": service, "worker": worker}
                    worker.stop()
            stats = bodies.stats()
            print(f"{stats.obj_held} of {stats.obj_total} buffers still held")

    return Starlette(routes=[Route("/", upload, methods=["POST"])], lifespan=lifespan)


async def client(port: int) -> str:
    """Upload something. Returns ``right``, or what else the service replied."""
    body = os.urandom(LARGEST)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    writer.write(head.encode() + b"Expect: 100-continue\r\n\r\n")
    answer = await reader.readuntil(b"\r\n\r\n")
    if answer.startswith(b"HTTP/1.1 100 "):  # there is a buffer for it
        writer.write(body)
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    text = answer.decode()
    return "right" if text.endswith(hashlib.sha256(body).hexdigest()) else text.partition("\r\n")[0]


async def show(worker: Worker, port: int) -> None:
    """A client for each buffer, all well. Then the worker hangs, and there is one client more."""
    answers = await asyncio.gather(*(client(port) for _ in range(BUFFERS)))
    print(f"{answers.count('right')} of {len(answers)} uploads answered with the right checksum")
    assert worker.process is not None
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(client(port)) for _ in range(BUFFERS + 1)]
    done, late = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    print("the worker hangs:", *(task.result() for task in done))
    worker.process.kill()
    answers = await asyncio.gather(*late)
    print(f"it is killed: another answers {answers.count('right')} of {len(answers)} rightly")


async def main(port: int) -> None:
    worker = Worker()
    server = uvicorn.Server(uvicorn.Config(make_app(worker), log_level="warning"))
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        if not port:
            await show(worker, listener.getsockname()[1])
            server.should_exit = True
        await serving


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
