"""The machines of the story of the staging buffers: one server, each with a different pool of pinned memory.

They differ only in the pool; every constant is in `SERVER`. docs/staging.md says where a constant was measured,
or why it was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..._flags import KM

FINISHING = KM.MEMALLOC
"""The flag for allocations that free memory once they are served."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with one kind of pool."""

    name: str
    about: str
    ends: Literal["stuck", "finished"]
    """How it is expected to end: stuck with some seeds, or finished with all."""
    pool: Literal["retry", "semaphore", "lines", "caller", "aslab"]
    """Callers that retry, that queue, that queue by priority, that pin for themselves, or this package."""
    bounded: bool = True
    """Whether the amount of pinned memory is limited."""
    careful: bool = False
    """Whether aslab is told which requests need two buffers and which free memory, with a reserve for these."""


MACHINES: tuple[Machine, ...] = (
    Machine(
        "busy_retry",
        "A request that finds no free buffer sleeps for 0.1 s and retries. A daemon pins more, up to the limit.",
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
        "As semaphore, but requests that free memory are served first, with two buffers reserved for them.",
        "finished",
        "lines",
    ),
    Machine(
        "pin_in_caller",
        "A request that finds no free buffer pins one itself. There is no limit.",
        "finished",
        "caller",
        bounded=False,
    ),
    Machine(
        "pin_bounded",
        "As pin_in_caller, up to the limit; after that, first come, first served.",
        "stuck",
        "caller",
    ),
    Machine(
        "aslab_naive",
        "This package, asked for one buffer at a time, with no hint about who will free memory.",
        "stuck",
        "aslab",
    ),
    Machine(
        "aslab",
        "This package: two buffers are requested at once if that is known; requests that free memory say so, and "
        "some buffers are reserved for them.",
        "finished",
        "aslab",
        careful=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Server:
    """What all machines run on. Times are in seconds, lowest and highest; sizes are in bytes."""

    buffer: int = 8 * 2**20
    """One staging buffer: a chunk of 256 or 512 tokens."""
    piece: int = 8
    """Buffers pinned per call of the daemon, 64 MiB."""
    started: int = 8
    """Buffers pinned before the first request."""
    limit: int = 32
    """Most buffers that may be pinned, 256 MiB."""
    reserve: int = 2
    """Of those, buffers reserved if the pool supports it: for one store, and for one that decodes."""
    places: int = 12
    """Requests whose data fits on the GPU."""
    requests: int = 200
    between: float = 0.016
    """Average seconds between requests: for three seconds, more than the GPU can compute."""
    new: float = 0.3
    """Share of requests with nothing to retrieve."""
    encoded: float = 0.3
    """Share of retrieved data that has to be decoded into a second buffer."""
    told: float = 0.5
    """Share of these for which the index says so; for the others only the data does."""
    load: tuple[float, float] = (0.02, 0.08)
    """Loading a buffer from the tier below."""
    decode: tuple[float, float] = (0.005, 0.02)
    copy: float = 0.0004
    """Copying between a pinned buffer and the GPU, at 20 GiB/s."""
    pageable: int = 4
    """How many times longer that takes if the buffer is not pinned."""
    compute: tuple[float, float] = (0.1, 0.4)
    write: tuple[float, float] = (0.01, 0.05)
    """Writing a buffer to the tier below."""
    pin: float = 0.5 / 2**30
    """Pinning one byte."""
    neighbour_rests: tuple[float, float] = (0.5, 2.0)
    neighbour_pins: tuple[float, float] = (1.0, 4.0)
    """How long another process leaves the driver's lock alone, and how long it then holds it."""


SERVER = Server()
