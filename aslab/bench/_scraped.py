"""The service of ``aslab bench scrape``: a program of its own, since the threads of one share an interpreter.

    python -m aslab.bench._scraped ours|ours-interval|thread|thread-interval|loop LOAD

Its growth is stuck, and its tasks keep the event loop busy for the share LOAD of the time. It prints its port, and
serves until its input ends; then it prints the processor time of each rendering.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack

import anyio
import uvicorn
from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry, Metric, make_asgi_app, start_http_server

import aslab

from ..observe.prometheus import AllocatorCollector, serve_metrics

SIZE, CACHES, TASKS, EACH = 64 * 2**10, 4, 40, 4
INTERVAL = 0.0005


class Timed(CollectorRegistry):
    """Measures what each rendering takes of its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.took: list[float] = []

    def collect(self) -> Iterable[Metric]:
        """Give the families; between two of them the first is rendered."""
        begin = time.thread_time()
        yield from super().collect()
        self.took.append(time.thread_time() - begin)


async def work(cache: aslab.Cache[memoryview], load: float) -> None:
    """Copy into buffers, for such a share of the time that all tasks together are the load."""
    source = bytes(SIZE)
    while load:
        begin = time.thread_time()
        buffers = [await cache.alloc() for _ in range(EACH)]
        for buf in buffers:
            buf.view[:] = source
        for buf in buffers:
            buf.free()
        busy = time.thread_time() - begin
        await anyio.sleep(busy * TASKS * (1 - load) / load)


async def main(server: str, load: float) -> None:
    """Serve."""
    registry = Timed()
    async with (
        aslab.open_allocator(limit=2**28, faults=True) as kmem,
        anyio.create_task_group() as tasks,
        AsyncExitStack() as stack,
    ):
        registry.register(AllocatorCollector(kmem))
        caches = [kmem.create_cache(f"cache {number}", SIZE) for number in range(CACHES)]
        for cache in caches:
            await cache.prefill(1)
        kmem.faults.growth.stick()
        held: list[aslab.Buffer[memoryview]] = []
        for cache in caches:  # slabs that were grown ahead are used up, too
            while not held or not held[-1].emergency or held[-1].cache is not cache:
                held.append(await cache.alloc())
        for number in range(TASKS):
            tasks.start_soon(work, caches[number % CACHES], load)
        if server.startswith("ours"):
            port = await stack.enter_async_context(serve_metrics(registry, 0))
        else:
            port = serve_on_the_loop(registry, tasks) if server == "loop" else serve_in_a_thread(registry)
        if server.endswith("interval"):
            sys.setswitchinterval(INTERVAL)
        print(port, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        assert all(cache.growth_late for cache in kmem.stats().caches), "growth is stuck"
        print(json.dumps(registry.took), flush=True)
        os._exit(0)  # what is stuck stays stuck


def serve_in_a_thread(registry: CollectorRegistry) -> int:
    """Serve by prometheus_client's own server. Returns the port."""
    server, _ = start_http_server(0, "127.0.0.1", registry)
    return server.server_port


def serve_on_the_loop(registry: CollectorRegistry, tasks: TaskGroup) -> int:
    """Serve by an app of the event loop that has the load. Returns the port."""
    # Named as TCP, so that asyncio sets TCP_NODELAY: else an answer in two pieces takes 40 ms more.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(make_asgi_app(registry), http="h11", lifespan="off", log_level="warning")
    tasks.start_soon(uvicorn.Server(config).serve, [listener])
    return int(listener.getsockname()[1])


if __name__ == "__main__":
    logging.getLogger("aslab").addHandler(logging.NullHandler())  # growth is late, as it should be
    anyio.run(main, sys.argv[1], float(sys.argv[2]))
