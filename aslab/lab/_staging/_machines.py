"""The machines of the story of the staging buffers: one server, each machine with another pool of pinned memory.

They differ in the pool, and in nothing else: every constant is in `SERVER`, once for all. Where a constant is
measured, or what it was chosen for, is in docs/staging.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..._flags import KM

FINISHING = KM.MEMALLOC
"""What aslab is told of a request that gives memory back once it is served."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One pool."""

    name: str
    about: str
    ends: Literal["stuck", "finished"]
    """What is foretold of it: stuck with some seeds, or finished with all."""
    pool: Literal["retry", "semaphore", "lines", "caller", "aslab"]
    """Who looks again and again, who queues, who queues in two lines, who pins for itself, or this package."""
    bounded: bool = True
    """Whether there is a limit to what is pinned."""
    careful: bool = False
    """Whether aslab is told who needs two buffers and who gives memory back, and sets some aside for these."""


MACHINES: tuple[Machine, ...] = (
    Machine(
        "busy_retry",
        "Who finds no free buffer sleeps for 0.1 s and tries again. A daemon pins more, up to the limit.",
        "stuck",
        "retry",
    ),
    Machine(
        "semaphore",
        "A counting semaphore and a list: first come, first served. The same daemon.",
        "stuck",
        "semaphore",
    ),
    Machine(
        "two_lines",
        "As semaphore, but who gives memory back is served first, and two buffers are kept for these.",
        "finished",
        "lines",
    ),
    Machine(
        "pin_in_caller",
        "Who finds no free buffer pins one itself. There is no limit.",
        "finished",
        "caller",
        bounded=False,
    ),
    Machine(
        "pin_bounded",
        "As pin_in_caller, up to the limit; from there on first come, first served.",
        "stuck",
        "caller",
    ),
    Machine(
        "aslab_naive",
        "This package, asked for one buffer after the other, and told nothing of who gives memory back.",
        "stuck",
        "aslab",
    ),
    Machine(
        "aslab",
        "This package: two buffers are asked for at once where that is known; who gives memory back says so, and "
        "some buffers are set aside for these.",
        "finished",
        "aslab",
        careful=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Server:
    """What all machines have. Times are in seconds, from and to; sizes in bytes."""

    buffer: int = 8 * 2**20
    """One staging buffer: a chunk of 256 or 512 tokens."""
    piece: int = 8
    """Buffers that are pinned at once, 64 MiB."""
    started: int = 8
    """Buffers that are pinned before the first request."""
    limit: int = 32
    """Buffers that may be pinned at most, 256 MiB."""
    reserve: int = 2
    """Buffers set aside, of those, where the pool can do that: for one store, and for one that decodes."""
    places: int = 12
    """Requests whose data the GPU has room for."""
    requests: int = 200
    between: float = 0.016
    """Seconds from one request to the next, on average: for three seconds, more than the GPU can compute."""
    new: float = 0.3
    """Share of requests with nothing to retrieve."""
    encoded: float = 0.3
    """Share of what is retrieved that has to be decoded, into a second buffer."""
    told: float = 0.5
    """Share of these of which the index says so; of the others only the data does."""
    load: tuple[float, float] = (0.02, 0.08)
    """To load a buffer from the tier below."""
    decode: tuple[float, float] = (0.005, 0.02)
    copy: float = 0.0004
    """Between a pinned buffer and the GPU: 20 GiB/s."""
    pageable: int = 4
    """So many times longer it takes where the buffer is not pinned."""
    compute: tuple[float, float] = (0.1, 0.4)
    write: tuple[float, float] = (0.01, 0.05)
    """To write a buffer to the tier below."""
    pin: float = 0.5 / 2**30
    """For a byte, to pin it."""
    neighbour_rests: tuple[float, float] = (0.5, 2.0)
    neighbour_pins: tuple[float, float] = (1.0, 4.0)
    """Another process holds the driver's lock for so long, then lets go of it for so long, and again."""


SERVER = Server()
