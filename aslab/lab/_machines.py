"""The machines of the story: the same computer, each with one way to grow a cache.

They differ in the mechanism that each is named for, and in nothing else: every constant is in `COMPUTER`,
once for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..emulation._spl import MAGAZINE, Growth

TICK = 0.01
"""Seconds: a timer tick of Linux at HZ=100, the patience of 2012."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One way to grow."""

    name: str
    about: str
    ends: Literal["stuck", "finished"]
    """What the change says of it."""
    growth: Growth | None = None
    """SPL's, in some version of it; None is aslab itself."""
    honour_gfp: bool = False
    """Whether vmalloc passes its caller's flags on to the page tables (the patch for the kernel)."""
    memalloc: bool = False
    """Whether the tasks of ZFS run with PF_MEMALLOC: all they ask for may use the last reserve."""
    single_pages: bool = False
    """Whether emergency objects are made of single pages, rather than of a block in a row."""
    reserve: bool = False
    """Whether buffers for a write are set aside before anything runs."""

    @property
    def index(self) -> str:
        """Where emergency objects are looked up; nothing where there are none."""
        if self.growth is None:
            return "hash"
        return self.growth.index if self.growth.by == "worker" else ""


MACHINES: tuple[Machine, ...] = (
    Machine(
        "original", "Callers make slabs themselves, and vmalloc ignores their flags.", "stuck", Growth("caller")
    ),
    Machine(
        "pf_memalloc",
        "As original, but the tasks of ZFS may use the last reserve for whatever they ask for.",
        "finished",
        Growth("caller"),
        memalloc=True,
    ),
    Machine(
        "kernel_patch",
        "As original, but vmalloc passes the flags on to the page tables.",
        "finished",
        Growth("caller"),
        honour_gfp=True,
    ),
    Machine(
        "emergency",
        "The change of 2012: one worker makes slabs; each caller waits a tick, then takes an emergency object.",
        "finished",
        Growth("worker", TICK),
    ),
    Machine(
        "emergency_v2",
        "Later versions: the wait is 100 ms, and the first that was in vain spares it to the others.",
        "finished",
        Growth("worker", 0.1, mark=True, index="tree", looks_again=True),
    ),
    Machine(
        "aslab",
        "This package: frees and slabs are handed to who waits; emergency objects are of single pages, and move "
        "into slabs as there is room.",
        "finished",
        single_pages=True,
    ),
    Machine(
        "aslab_reserve",
        "As aslab, with the buffers of one write set aside beforehand.",
        "finished",
        single_pages=True,
        reserve=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Computer:
    """What all machines have."""

    pages: int = 16384
    """64 MiB."""
    min: int = 1024
    low: int = 1280
    high: int = 1536
    arc_buffers: int = 128
    """Free buffers of 128 KiB that ZFS has for data from earlier work: two transaction groups' worth."""
    reserve: int = 2
    """Buffers that one write needs."""
    magazine: int = MAGAZINE
    """Free objects that a cache of SPL keeps for the processor; aslab has its own, of the same size."""
    hogs: int = 4
    overcommit: int = 4
    """The hogs together dirty so many times all pages."""
    fill: tuple[float, float] = (0.00005, 0.00015)
    """Seconds to dirty 32 pages, from and to."""
    disk: tuple[float, float] = (0.02, 0.06)
    """Seconds for a write of 128 KiB."""
    depth: int = 10
    cpu: tuple[float, float] = (0.00001, 0.0001)
    """Seconds for a step of the pipeline."""
    per_page: float = 1e-6
    """Seconds for a page of vmalloc or kmalloc."""
    lock: float = 20e-6
    """Seconds that vmalloc holds the lock of the address space."""
    pinned: float = 0.0
    """Share of the pages pinned, evenly."""
    scattered: float = 0.0
    """Share of the pages that some process has filled long ago, evenly: in the way as pinned ones, but movable."""
    compact_scan: float = 20e-9
    """Seconds for kcompactd to look at a page."""
    compact_move: float = 5e-6
    """Seconds to move one."""
    compact_spare: int = 512
    """Free pages that kcompactd leaves: as many as a request from the writing path does."""


COMPUTER = Computer()
