"""The other process of the first act: it takes in frames, by two ways, and says whether each came in its turn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

from ... import share

CHANNEL = "frames"
NUMBER = 8
"""Bytes at the begin of a frame: its number, from 0."""


class Intake:
    """Takes in every byte of each frame, at the speed of memory."""

    def __init__(self) -> None:
        self.frames = 0
        self.in_order = True
        self._own = bytearray()

    def take(self, frame: memoryview) -> None:
        """Copy it, and look at its number."""
        if len(self._own) != len(frame):
            self._own = bytearray(len(frame))
        memoryview(self._own)[:] = frame
        self.in_order &= int.from_bytes(self._own[:NUMBER], "little") == self.frames
        self.frames += 1


def consume(pipe: Connection, path: str) -> None:
    """Read a channel of `aslab.share` at ``path``, and segments whose names come through the pipe.

    For each segment it answers True, when it has removed it. After None, and the end of the channel, it says
    whether all came in order.
    """
    pooled, fresh = Intake(), Intake()
    other = threading.Thread(target=_take_fresh, args=(pipe, fresh.take), daemon=True)
    other.start()
    with contextlib.suppress(share.DisconnectedError), share.connect_blocking(path) as client:
        for claim in client.receiver(CHANNEL):
            with claim:
                pooled.take(claim.view)
    other.join()
    pipe.send(pooled.in_order and fresh.in_order)
    pipe.recv()  # to end now would be to end early


def _take_fresh(pipe: Connection, take: Callable[[memoryview], None]) -> None:
    while (name := _received(pipe)) is not None:
        segment = SharedMemory(name)
        assert segment.buf is not None
        take(segment.buf)
        segment.close()
        segment.unlink()
        pipe.send(True)


def _received(pipe: Connection) -> str | None:
    try:
        name: str | None = pipe.recv()
    except (EOFError, ConnectionError):  # the first process is gone
        return None
    return name
