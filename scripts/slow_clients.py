"""Uploads while most clients are slow: ways to bound what a server holds, in turns, each in a process of its own.

    python scripts/slow_clients.py [--slow 50] [--fast 20] [--seconds 4] [--rounds 3] [--mib 64]

Slow clients send 64 KiB of their 4 MiB, and then a KiB ten times a second. Fast ones upload 4 MiB, again and
again. Each body is written to a file, and each way may hold as many MiB as given; after a wait of 2 s the answer
is 503. Memory is the peak of the server's process above what it had after one upload.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import aslab
import aslab.io

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "recipes"))
import starlette_uploads as recipe

MIB = 2**20
BODY = 4 * MIB
PIECE = recipe.PIECE
BOUNDARY = "boundary-of-the-form"
WAYS = {
    "a lease for each piece (the recipe)": "piece",
    "a lease for each request": "request",
    "a semaphore round each write": "write",
    "a semaphore and a bytearray for each request": "bytearray",
    "`UploadFile`": "upload-file",
}
Store = Callable[[Request, Path], Awaitable[int]]


async def lease_for_each_request(request: Request, path: Path) -> int:
    """Hold one buffer for the whole body, until it is written."""
    async with request.state.bodies.lease(timeout=recipe.PATIENCE) as buf:
        end = 0
        async for message in request.stream():
            buf.view[end : end + len(message)] = message
            end += len(message)
        return await aslab.io.write_from(path, buf, 0, end)


def write_all(fd: int, data: bytes | bytearray, offset: int) -> int:
    """Write to a file, and return how much."""
    end = 0
    while end < len(data):
        end += os.pwrite(fd, memoryview(data)[end:], offset + end)
    return end


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor to write to."""
    fd = os.open(path, os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


async def semaphore_round_each_write(request: Request, path: Path) -> int:
    """As the recipe, with a semaphore instead of a cache: what came is written from where it lies."""
    end, rest = 0, b""
    with opened(path) as fd:
        async for message in request.stream():
            rest += message
            if message and len(rest) < recipe.ENOUGH:
                continue
            async with turn(request):
                end += await to_thread.run_sync(write_all, fd, rest, end)
            rest = b""
    return end


async def bytearray_for_each_request(request: Request, path: Path) -> int:
    """Gather the body in one bytearray, and write it."""
    async with turn(request):
        body = bytearray()
        async for message in request.stream():
            body += message
        with opened(path) as fd:
            return await to_thread.run_sync(write_all, fd, body, 0)


@contextlib.asynccontextmanager
async def turn(request: Request) -> AsyncIterator[None]:
    """Hold the semaphore; raise TimeoutError if that takes too long."""
    with anyio.fail_after(recipe.PATIENCE):
        await request.state.turns.acquire()
    try:
        yield
    finally:
        request.state.turns.release()


async def upload_file(request: Request, path: Path) -> int:
    """Let the framework spool a form to its own file, and copy that."""

    def copy(file: UploadFile) -> int:
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
            return target.tell()

    async with request.form() as form:
        file = form["file"]
        assert isinstance(file, UploadFile)
        return await to_thread.run_sync(copy, file)


STORES: dict[str, Store] = {
    "piece": recipe.store,
    "request": lease_for_each_request,
    "write": semaphore_round_each_write,
    "bytearray": bytearray_for_each_request,
    "upload-file": upload_file,
}


def serve(kind: str, limit: int) -> None:
    """One way, on a port that is printed, until SIGTERM."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        async with aslab.open_allocator(limit=limit) as kmem:
            yield {
                "pieces": kmem.create_cache("pieces", PIECE),
                "bodies": kmem.create_cache("bodies", BODY),
                "turns": anyio.Semaphore(limit // (PIECE if kind == "write" else BODY), fast_acquire=True),
            }

    async def upload(request: Request) -> JSONResponse:
        path = recipe.FOLDER / uuid.uuid4().hex
        try:
            with recipe.new_file(path) as part:
                size = await STORES[kind](request, part)
        except TimeoutError:
            await recipe.drop(request)
            raise HTTPException(503) from None
        path.unlink()
        return JSONResponse(size, 201)

    app = Starlette(routes=[Route("/files", upload, methods=["POST"])], lifespan=lifespan)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, loop="asyncio", http="h11", log_level="critical")).run([listener])


@contextlib.contextmanager
def serving(kind: str, limit: int, folder: str) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its process ID and port."""
    command = [sys.executable, __file__, "--serve", kind, "--mib", f"{limit // MIB}"]
    env = {**os.environ, "UPLOAD_FOLDER": folder, "TMPDIR": folder}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def peak(pid: int) -> int:
    """The most bytes that a process had resident since `forget`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def forget(pid: int) -> int:
    """Let the peak start from now. Returns what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def processor_time(pid: int) -> float:
    """Seconds that a process has spent so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request_of(kind: str) -> bytes:
    """A whole request: head and body."""
    body, kind_of_body = bytes(BODY), "application/octet-stream"
    if kind == "upload-file":
        kind_of_body = f"multipart/form-data; boundary={BOUNDARY}"
        start = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        body = start.encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind_of_body}\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


async def slow_client(port: int, request: bytes) -> None:
    """Send some, and then hardly anything, for as long as it may."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request[: 64 * 1024])
        for start in range(64 * 1024, len(request), 1024):
            await asyncio.sleep(0.1)
            writer.write(request[start : start + 1024])
            await writer.drain()
    except ConnectionError:  # it was told to come again
        pass
    finally:
        writer.close()


async def fast_client(port: int, request: bytes) -> tuple[int, float]:
    """Upload, and return the status and the seconds that it took."""
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for start in range(0, len(request), 2**18):
            writer.write(request[start : start + 2**18])
            await writer.drain()
        answer = await reader.read()
    except ConnectionError:  # it was told to go, and not listening
        return 0, time.perf_counter() - begin
    finally:
        writer.close()
    return int(answer.split()[1]), time.perf_counter() - begin


async def load(pid: int, port: int, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """All clients at once. Returns what was measured."""
    request = request_of(kind)
    assert (await fast_client(port, request))[0] == 201
    before = forget(pid)
    slow = [asyncio.create_task(slow_client(port, request)) for _ in range(options.slow)]
    await asyncio.sleep(0.5)  # they have all begun
    found: list[tuple[int, float]] = []
    until = time.perf_counter() + options.seconds

    async def again_and_again() -> None:
        while time.perf_counter() < until:
            found.append(await fast_client(port, request))

    begin, spent = time.perf_counter(), processor_time(pid)
    await asyncio.gather(*(again_and_again() for _ in range(options.fast)))
    seconds, spent = time.perf_counter() - begin, processor_time(pid) - spent
    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    served = [took for status, took in found if status == 201]
    return {
        "uploads/s": len(served) / seconds,
        "CPU": spent / len(served) * 1000 if served else float("nan"),
        "503": len(found) - len(served),
        "longest": max(served, default=float("nan")),
        "MiB": (peak(pid) - before) / MIB,
    }


def main() -> None:
    """Measure all ways in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", type=int, default=50)
    parser.add_argument("--fast", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--serve", choices=STORES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.mib * MIB)
        return
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for way, kind in WAYS.items():
                with serving(kind, options.mib * MIB, folder) as (pid, port):
                    results[way].append(asyncio.run(load(pid, port, kind, options)))
    print("| way | uploads a second | CPU ms each | told 503 | longest upload, s | peak, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, found in results.items():
        middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
        print(
            f"| {way} | {middle['uploads/s']:.3g} | {middle['CPU']:.3g} | {middle['503']:.0f} "
            f"| {middle['longest']:.2g} | {middle['MiB']:.0f} |".replace(" nan ", " - ")
        )


if __name__ == "__main__":
    main()
