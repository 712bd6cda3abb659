"""The first act: frames between two processes, in pooled buffers and in a fresh segment each.

The producer writes every byte of a frame, the consumer reads every byte. The ways take turns.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import anyio

from ... import Cache, backends, open_allocator, share
from ..._checks import format_size
from ._consumer import CHANNEL, NUMBER, consume
from ._other import Other, other
from ._pair import Figure, Pair
from ._words import OURS, THEIRS, LeftOut, Told, Words, rate

SIZES = (3840 * 2160 * 3, 1920 * 1080 * 3, 640 * 480 * 3)
"""Bytes of a frame; the largest that fits is used."""
FLIGHT = 4
"""Frames under way at most."""
SEGMENTS = Path("/dev/shm")
WARM = 2 * FLIGHT
"""Frames of each way that are not timed."""

PATIENCE = 60.0
"""Seconds for all that is not timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames(Told):
    """What the first act found."""

    size: int
    """Bytes of a frame."""
    pooled: float
    """Frames a second in buffers of `aslab.share`."""
    fresh: float
    """Frames a second in a fresh segment each."""
    in_order: bool
    """Whether all frames arrived, each in its turn."""

    def words(self) -> Words:
        return [
            (f"{self.size / 1e6:.1f} MB frames to another process: ", ""),
            (f"{rate(self.pooled)} a second", OURS),
            ("; a fresh segment each: ", ""),
            (rate(self.fresh), THEIRS),
        ]

    def wrong(self) -> list[str]:
        return [] if self.in_order else ["frames were lost, or came out of order"]

    def well(self) -> str:
        return "every frame arrived in its turn"


async def frames(pair: Pair, turns: int, seconds: float) -> Frames | LeftOut:
    """Send frames by both ways, in turns. Left out where segments have no room.

    :param turns: of each way
    :param seconds: of each turn
    :raises TimeoutError: if something takes far too long
    """
    room = room_for_segments()
    size = fitting_size(room)
    if size is None:
        assert room is not None
        need = 2 * FLIGHT * SIZES[-1]
        return LeftOut(
            f"frames to another process need {format_size(need)} in {SEGMENTS}, which has {format_size(room)}"
        )
    shared = backends.SharedMemory()
    with anyio.fail_after(PATIENCE + 2 * turns * seconds), tempfile.TemporaryDirectory(prefix="aslab-") as folder:
        path = str(Path(folder, "socket"))
        async with open_allocator(slabs=shared, emergency=shared) as kmem:
            cache = kmem.create_cache("frames", size, max_objects=FLIGHT, objects_per_slab=1)
            async with share.serve(kmem, path) as service, other(consume, path) as process:
                pooled = _Pooled(cache, share.Sender(service, CHANNEL, window=FLIGHT - 1), pair.ours)
                fresh = _Fresh(process, size, pair.theirs)
                await cache.prefill(FLIGHT)
                pair.note = "the other process is starting"
                await pooled.send(lambda sent: sent == WARM)
                await fresh.send(lambda sent: sent == WARM)
                pair.note = ""
                for _ in range(turns):
                    await pooled.turn(seconds)
                    await fresh.turn(seconds)
                in_order = await _end(pooled, process)
    return Frames(size=size, pooled=pooled.rate, fresh=fresh.rate, in_order=in_order)


def room_for_segments() -> int | None:
    """Bytes that segments may take in all, in containers often 64 MiB. None: not Linux, and no such bound."""
    try:
        room = os.statvfs(SEGMENTS)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize


def fitting_size(room: int | None) -> int | None:
    """The largest size of which as many frames as are under way take at most half of the room; None if none does.

    Beyond the room, writing to a segment ends a program by a signal.
    """
    if room is None:
        return SIZES[0]
    return next((size for size in SIZES if FLIGHT * size <= room // 2), None)


async def _end(pooled: _Pooled, process: Other) -> bool:
    pooled.sender.close()
    return bool(await process.ask(None))


class _Way:
    """One of the ways, and how fast it is."""

    def __init__(self, size: int, figure: Figure) -> None:
        self._source = bytearray(os.urandom(2**20) * (size // 2**20 + 1))[:size]
        self._figure = figure
        self._sent = self._timed = 0
        self._seconds = 0.0

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self._timed / self._seconds

    async def send(self, enough: Callable[[int], bool]) -> int:
        """Send frames until ``enough``, called with their number, is true and the consumer has read them."""
        raise NotImplementedError

    async def turn(self, seconds: float) -> None:
        """Send frames for so long."""
        began = time.perf_counter()

        def enough(sent: int) -> bool:
            passed = time.perf_counter() - began
            self._figure.value = (self._timed + sent) / (self._seconds + passed)
            return passed > seconds

        self._timed += await self.send(enough)
        self._seconds += time.perf_counter() - began
        self._figure.value = self.rate

    def _fill(self, frame: memoryview) -> None:
        frame[:] = self._source
        frame[:NUMBER] = self._sent.to_bytes(NUMBER, "little")
        self._sent += 1


class _Pooled(_Way):
    def __init__(self, cache: Cache[memoryview], sender: share.Sender, figure: Figure) -> None:
        super().__init__(cache.size, figure)
        self.sender = sender
        self._cache = cache

    async def send(self, enough: Callable[[int], bool]) -> int:
        before = self._sent
        while not enough(self._sent - before):
            buf = await self._cache.alloc()
            self._fill(buf.view)
            await self.sender.send(buf)
        async with self._cache.lease_many(FLIGHT):  # all are back, so all were read
            return self._sent - before


class _Fresh(_Way):
    def __init__(self, process: Other, size: int, figure: Figure) -> None:
        super().__init__(size, figure)
        self._process = process
        self._size = size

    async def send(self, enough: Callable[[int], bool]) -> int:
        sent: int = await self._process.call(self._send, enough, abandon=False)
        return sent

    def _send(self, enough: Callable[[int], bool]) -> int:
        """In a thread, which leaves no segment behind, even after Ctrl-C."""
        before, pipe = self._sent, self._process.pipe
        unread: deque[SharedMemory] = deque()
        try:
            while True:
                done = enough(self._sent - before)
                while len(unread) > (0 if done else FLIGHT - 1):
                    pipe.recv()
                    unread.popleft()
                if done:
                    return self._sent - before
                segment = SharedMemory(create=True, size=self._size)
                assert segment.buf is not None
                with segment.buf[: self._size] as frame:
                    self._fill(frame)
                unread.append(segment)
                pipe.send(segment.name)
                segment.close()
        finally:
            for segment in unread:  # there are some only if the consumer is lost
                remove(segment)


def remove(segment: SharedMemory) -> None:
    """Remove a segment that the consumer may have removed, or begun to remove when it was killed."""
    segment.close()
    try:
        segment.unlink()
    except FileNotFoundError:
        name = f"/{segment.name}"
        resource_tracker.register(name, "shared_memory")  # else it complains of what it does not know
        resource_tracker.unregister(name, "shared_memory")
