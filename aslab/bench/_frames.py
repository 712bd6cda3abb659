"""How fast do frames go from one process to another? Compared with what people build themselves.

The producer fills each frame with one copy, as a driver or a decoder does; the consumer reads it with one copy,
too, so that no work hides what the way costs. At most eight frames are on their way. The ways run interleaved,
each with a consumer process of its own. Its start, and the first eight frames, are not timed. Ours has
the default options, but for a magazine that holds as many frames as there are.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from anyio import to_thread

import aslab
from aslab import backends, share

from ._app import command
from ._measured import Bench, Quantity, Turn, Values

SIZES = {"1080p, 6.2 MB": 1920 * 1080 * 3, "25 MB": 25_000_000}
FLIGHT = 8
FRAMES = Quantity("frames", "1/s", more_is_better=True)
CPU = Quantity("CPU of a frame", "ms")
Way = Callable[[bytes, int], Values]
"""Sends so many frames, each a copy of these bytes."""
OURS, FRESH, RING = "aslab.share", "a fresh SharedMemory each", f"ring of {FLIGHT}, by hand"
CONTEXT = multiprocessing.get_context("forkserver")
_own = bytearray()
"""Of the consumer: where it copies frames to."""


def read(frame: Any) -> None:
    """Take in every byte, at the speed of memory."""
    if len(_own) != len(frame):
        _own[:] = bytes(len(frame))
    memoryview(_own)[:] = frame


class Consumer:
    """A process that reads frames, and the times of what it did."""

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=target, args=(theirs, *args))
        self._process.start()
        theirs.close()
        self._began = self._cpu = 0.0

    def warm(self) -> None:
        """Wait until it has read the frames that are not timed."""
        self._cpu = -self._pipe.recv() - time.process_time()
        self._began = time.perf_counter()

    def end(self, frames: int) -> Values:
        """Wait until it has read all."""
        self._cpu += self._pipe.recv()
        seconds = time.perf_counter() - self._began
        self._process.join()
        self._pipe.close()
        return {FRAMES: frames / seconds, CPU: (self._cpu + time.process_time()) / frames * 1e3}


def memory(segment: SharedMemory) -> memoryview:
    """The bytes of an open segment."""
    assert segment.buf is not None
    return segment.buf


def tell(pipe: Any, frames: Iterable[object]) -> None:
    """In the consumer: say what its CPU time was after the first frames, and after all."""
    for number, _ in enumerate(frames, 1):
        if number == FLIGHT:
            pipe.send(time.process_time())
    pipe.send(time.process_time())


def _read_queue(pipe: Any, queue: Any, frames: int) -> None:
    def one(_: int) -> None:
        read(queue.get())

    tell(pipe, map(one, range(frames)))


def by_queue(source: bytes, frames: int) -> Values:
    """multiprocessing.Queue: pickled through a pipe. Spares the producer's own copy."""
    queue = CONTEXT.Queue(FLIGHT)
    consumer = Consumer(_read_queue, queue, FLIGHT + frames)
    for number in range(FLIGHT + frames):
        if number == FLIGHT:
            consumer.warm()
        queue.put(source)
    found = consumer.end(frames)
    queue.close()
    queue.join_thread()
    return found


def _read_fresh(pipe: Any, names: Any, room: Any, frames: int) -> None:
    def one(_: int) -> None:
        segment = SharedMemory(names.recv())
        read(memory(segment))
        segment.close()
        segment.unlink()
        room.release()

    tell(pipe, map(one, range(frames)))


def by_fresh(source: bytes, frames: int) -> Values:
    """A segment for each frame, whose name goes through a pipe; the consumer removes it."""
    theirs, names = CONTEXT.Pipe(duplex=False)
    room = CONTEXT.Semaphore(FLIGHT)
    consumer = Consumer(_read_fresh, theirs, room, FLIGHT + frames)
    for number in range(FLIGHT + frames):
        if number == FLIGHT:
            consumer.warm()
        room.acquire()
        segment = SharedMemory(create=True, size=len(source))
        memory(segment)[: len(source)] = source
        names.send(segment.name)
        segment.close()
    found = consumer.end(frames)
    theirs.close()
    names.close()
    return found


def _read_ring(pipe: Any, name: str, size: int, semaphores: Any, frames: int) -> None:
    ring, (free, full) = SharedMemory(name), semaphores

    def one(number: int) -> None:
        full.acquire()
        start = number % FLIGHT * size
        with memory(ring)[start : start + size] as frame:
            read(frame)
        free.release()

    tell(pipe, map(one, range(frames)))
    ring.close()


def by_ring(source: bytes, frames: int) -> Values:
    """One segment for eight frames, and two semaphores: nothing is faster, and one consumer is all it serves."""
    size = len(source)
    ring = SharedMemory(create=True, size=FLIGHT * size)
    free, full = CONTEXT.Semaphore(FLIGHT), CONTEXT.Semaphore(0)
    consumer = Consumer(_read_ring, ring.name, size, (free, full), FLIGHT + frames)
    for number in range(FLIGHT + frames):
        if number == FLIGHT:
            consumer.warm()
        free.acquire()
        start = number % FLIGHT * size
        memory(ring)[start : start + size] = source
        full.release()
    found = consumer.end(frames)
    ring.close()
    ring.unlink()
    return found


def _read_ours(pipe: Any, path: str) -> None:
    with share.connect_blocking(path) as client:

        def one(claim: share.Claim) -> None:
            with claim:
                read(claim.view)

        tell(pipe, map(one, client.receiver("frames")))


def by_ours(source: bytes, frames: int) -> Values:
    """Buffers of a cache, sent by a `Sender`."""
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(_send_ours, source, frames, str(Path(folder, "socket")))


async def _send_ours(source: bytes, frames: int, path: str) -> Values:
    async with aslab.open_allocator(slabs=backends.SharedMemory(), emergency=backends.SharedMemory()) as kmem:
        cache = kmem.create_cache(
            "frames", len(source), max_objects=FLIGHT, objects_per_slab=1, magazine_size=FLIGHT
        )
        async with share.serve(kmem, path) as service:
            consumer = Consumer(_read_ours, path)
            sender = share.Sender(service, "frames", window=FLIGHT - 1)  # one more is being filled
            await cache.prefill(FLIGHT)
            for number in range(FLIGHT + frames):
                if number == FLIGHT:
                    await to_thread.run_sync(consumer.warm)
                buf = await cache.alloc()
                buf.view[:] = source
                await sender.send(buf)
            sender.close()
            return await to_thread.run_sync(consumer.end, frames)


WAYS: dict[str, Way] = {
    "multiprocessing.Queue": by_queue,
    FRESH: by_fresh,
    RING: by_ring,
    OURS: by_ours,
}


@command("frames", rounds=3, quick={"rounds": 1, "number": 40})
def frames(
    mb: Annotated[list[float] | None, typer.Option(help="Size of a frame in MB; default: 1080p, and 25.")] = None,
    number: Annotated[int, typer.Option("--frames", help="Frames per round.", min=1)] = 100,
) -> Bench:
    """Frames a second from one process to another, compared with other ways. Takes half a minute."""
    sizes = {f"{size:g} MB": int(size * 1e6) for size in mb} if mb else SIZES
    CONTEXT.set_forkserver_preload([__name__])
    turns = [
        Turn(size, way, partial(_measure, measure, nbytes, number), against=FRESH)
        for size, nbytes in sizes.items()
        for way, measure in WAYS.items()
    ]
    return Bench("frames from one process to another", turns, "CPU: of both processes.")


def _measure(measure: Way, nbytes: int, number: int) -> Values:
    return measure(bytes(nbytes), number)
