"""The machines of the story: the same computer, each with its own way to grow a cache.

They differ only in the mechanism that each is named after; every constant is in `Computer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..._flags import KM
from ._spl import Growth

TICK = 0.01
"""In seconds: a timer tick of Linux at HZ=100, which is how long callers waited in 2012."""


@dataclass(frozen=True, slots=True)
class Aslab:
    """How a machine uses aslab, where it differs from the default."""

    allocator: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of `aslab.open_allocator`, such as ``grow_timeout``."""
    cache: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of `Allocator.create_cache`, for both caches."""
    starts: KM = KM.PUSHPAGE
    """The flags of allocations that start a write: the zvol's copy of the data, and z_wr_iss's."""
    finishes: KM = KM.MEMALLOC
    """The flags of allocations that need only one more buffer to free two."""
    kept: int = 1
    """Buffers kept for those alone, on machines without a reserve."""
    high: bool = False
    """Whether slabs for urgent callers may use part of the memory reserve, as SPL's may."""
    beside: float | None = None
    """Seconds for which others may pass the first waiter, if not the default."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One way to grow a cache."""

    name: str
    about: str
    ends: Literal["stuck", "finished"]
    """How it ends according to the change of 2012."""
    growth: Growth | Aslab = field(default_factory=Aslab)
    """As in some version of SPL, or aslab itself."""
    honour_gfp: bool = False
    """Whether vmalloc passes its caller's flags on to page table allocations (the kernel patch)."""
    memalloc: bool = False
    """Whether the tasks of ZFS run with PF_MEMALLOC: all their allocations may use the last reserve."""
    single_pages: bool = False
    """Whether emergency objects are made of single pages rather than one contiguous block."""
    reserve: bool = False
    """Whether the buffers for a write are set aside at the start and never reclaimed."""

    @property
    def index(self) -> str:
        """How emergency objects are looked up; empty if there are none."""
        if isinstance(self.growth, Aslab):
            return "hash"
        return self.growth.index if self.growth.by == "worker" else ""


MACHINES: tuple[Machine, ...] = (
    Machine(
        "original", "Callers make slabs themselves, and vmalloc ignores their flags.", "stuck", Growth("caller")
    ),
    Machine(
        "pf_memalloc",
        "As original, but the tasks of ZFS may use the last reserve for every allocation.",
        "finished",
        Growth("caller"),
        memalloc=True,
    ),
    Machine(
        "kernel_patch",
        "As original, but vmalloc passes the flags on to page table allocations.",
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
        "Later versions: the wait is 100 ms, and after the first wait in vain nobody else waits.",
        "finished",
        Growth("worker", 0.1, mark=True, index="tree", looks_again=True),
    ),
    Machine(
        "aslab",
        "This package: allocations that finish a write come first, with one buffer kept for them; emergency "
        "objects are made of single pages, and move into slabs when there is room.",
        "finished",
        single_pages=True,
    ),
    Machine(
        "aslab_reserve",
        "As aslab, with the buffers of one write set aside.",
        "finished",
        single_pages=True,
        reserve=True,
    ),
)

_BY_NAME = {machine.name: machine for machine in MACHINES}


def _control(name: str, of: str, about: str, **changes: Any) -> Machine:
    """A machine that differs from another one only in these fields."""
    return replace(_BY_NAME[of], name=name, about=about, **changes)


CONTROLS: tuple[Machine, ...] = (
    _control(
        "emergency_single",
        "emergency",
        "As emergency, with emergency objects made of single pages.",
        single_pages=True,
    ),
    _control(
        "emergency_v2_single",
        "emergency_v2",
        "As emergency_v2, with emergency objects made of single pages.",
        single_pages=True,
    ),
    _control(
        "emergency_reserve", "emergency", "As emergency, with the buffers of one write set aside.", reserve=True
    ),
    _control(
        "emergency_v2_reserve",
        "emergency_v2",
        "As emergency_v2, with the buffers of one write set aside.",
        reserve=True,
    ),
    _control(
        "emergency_single_reserve",
        "emergency",
        "As emergency, with emergency objects made of single pages and the buffers of one write set aside.",
        single_pages=True,
        reserve=True,
    ),
    _control(
        "emergency_v2_single_reserve",
        "emergency_v2",
        "As emergency_v2, with emergency objects made of single pages and the buffers of one write set aside.",
        single_pages=True,
        reserve=True,
    ),
    _control(
        "emergency_v2_all",
        "emergency_v2",
        "As emergency_v2, with everything that needs no flags of aslab: single pages, buffers set aside, and "
        "slabs that leave the memory reserve alone.",
        single_pages=True,
        reserve=True,
        growth=Growth("worker", 0.1, mark=True, index="tree", looks_again=True, high=False),
    ),
    _control(
        "emergency_noio",
        "emergency",
        "As emergency, with emergency objects allocated without I/O for every caller, as the change describes it.",
        growth=Growth("worker", TICK, noio=True),
    ),
    _control(
        "aslab_spl_flags",
        "aslab",
        "As aslab, with only the flags of SPL: finishing a write is no more urgent than starting one, and no "
        "buffer is kept.",
        growth=Aslab(finishes=KM.PUSHPAGE, kept=0),
    ),
    _control(
        "aslab_fixed_timeout",
        "aslab",
        "As aslab, with SPL's 100 ms for every wait instead of a learned timeout.",
        growth=Aslab(allocator={"grow_timeout": 0.1}),
    ),
    _control(
        "aslab_nothing_kept",
        "aslab",
        "As aslab, with no buffer kept for finishing a write.",
        growth=Aslab(kept=0),
    ),
    _control(
        "aslab_high_slabs",
        "aslab",
        "As aslab, with slabs that may use part of the memory reserve, as SPL's may.",
        growth=Aslab(high=True),
    ),
    _control(
        "aslab_handed_over",
        "aslab",
        "As aslab, with each freed buffer handed over at once: nobody passes a waiter.",
        growth=Aslab(beside=0.0),
    ),
    _control(
        "aslab_rows", "aslab", "As aslab, with emergency objects made of contiguous pages.", single_pages=False
    ),
)
"""Machines that show what each part of the others contributes. They only run on request."""
