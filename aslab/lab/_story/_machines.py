"""The machines of the story: the same computer, each with one way to grow a cache.

They differ in the mechanism that each is named for, and in nothing else: every constant is in `Computer`,
once for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..._flags import KM
from ._spl import Growth

TICK = 0.01
"""Seconds: a timer tick of Linux at HZ=100, the patience of 2012."""


@dataclass(frozen=True, slots=True)
class Aslab:
    """How a machine uses aslab itself, where not as by default."""

    allocator: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of `aslab.open_allocator`, such as ``grow_timeout``."""
    cache: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further arguments of `Allocator.create_cache`, for both caches."""
    starts: KM = KM.PUSHPAGE
    """The flags of who starts a write: the zvol's copy of the data, and z_wr_iss's."""
    finishes: KM = KM.MEMALLOC
    """The flags of who needs but one buffer more, and then gives two back."""
    kept: int = 1
    """Buffers kept for such callers alone, where the machine has no reserve."""
    high: bool = False
    """Whether slabs for urgent callers may use a part of the reserve, as SPL's may."""
    beside: float | None = None
    """Seconds for which the first in line is passed by others, if not as usual."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One way to grow."""

    name: str
    about: str
    ends: Literal["stuck", "finished"]
    """What the change says of it."""
    growth: Growth | Aslab = field(default_factory=Aslab)
    """SPL's, in some version of it, or aslab itself."""
    honour_gfp: bool = False
    """Whether vmalloc passes its caller's flags on to the page tables (the patch for the kernel)."""
    memalloc: bool = False
    """Whether the tasks of ZFS run with PF_MEMALLOC: all they ask for may use the last reserve."""
    single_pages: bool = False
    """Whether emergency objects are made of single pages, rather than of a block in a row."""
    reserve: bool = False
    """Whether buffers for a write are set aside before anything runs, and nobody takes them back."""

    @property
    def index(self) -> str:
        """Where emergency objects are looked up; nothing where there are none."""
        if isinstance(self.growth, Aslab):
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
        "This package: who finishes a write comes first, and one buffer is kept for that; emergency objects are "
        "of single pages, and move into slabs as there is room.",
        "finished",
        single_pages=True,
    ),
    Machine(
        "aslab_reserve",
        "As aslab, with the buffers of one write kept for that.",
        "finished",
        single_pages=True,
        reserve=True,
    ),
)

_BY_NAME = {machine.name: machine for machine in MACHINES}


def _control(name: str, of: str, about: str, **changes: Any) -> Machine:
    """A machine that is another one, but for what is said."""
    return replace(_BY_NAME[of], name=name, about=about, **changes)


CONTROLS: tuple[Machine, ...] = (
    _control(
        "emergency_single", "emergency", "As emergency, with emergency objects of single pages.", single_pages=True
    ),
    _control(
        "emergency_v2_single",
        "emergency_v2",
        "As emergency_v2, with emergency objects of single pages.",
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
        "As emergency, with emergency objects of single pages, and the buffers of one write set aside.",
        single_pages=True,
        reserve=True,
    ),
    _control(
        "emergency_v2_single_reserve",
        "emergency_v2",
        "As emergency_v2, with emergency objects of single pages, and the buffers of one write set aside.",
        single_pages=True,
        reserve=True,
    ),
    _control(
        "emergency_v2_all",
        "emergency_v2",
        "As emergency_v2, with what needs no flags of aslab: single pages, buffers set aside, and slabs that "
        "leave the reserve alone.",
        single_pages=True,
        reserve=True,
        growth=Growth("worker", 0.1, mark=True, index="tree", looks_again=True, high=False),
    ),
    _control(
        "emergency_noio",
        "emergency",
        "As emergency, with emergency objects got without I/O whoever asks, as the text of the change has it.",
        growth=Growth("worker", TICK, noio=True),
    ),
    _control(
        "aslab_spl_flags",
        "aslab",
        "As aslab, with the flags of SPL alone: who finishes a write is no more urgent than who starts one, and "
        "nothing is kept.",
        growth=Aslab(finishes=KM.PUSHPAGE, kept=0),
    ),
    _control(
        "aslab_fixed_timeout",
        "aslab",
        "As aslab, with SPL's 100 ms for every wait instead of what grows usually take.",
        growth=Aslab(allocator={"grow_timeout": 0.1}),
    ),
    _control(
        "aslab_nothing_kept",
        "aslab",
        "As aslab, with no buffer kept for who finishes a write.",
        growth=Aslab(kept=0),
    ),
    _control(
        "aslab_high_slabs",
        "aslab",
        "As aslab, with slabs that may use a part of the reserve, as SPL's may.",
        growth=Aslab(high=True),
    ),
    _control(
        "aslab_handed_over",
        "aslab",
        "As aslab, with each buffer that comes free handed over at once: nobody passes who waits.",
        growth=Aslab(beside=0.0),
    ),
    _control(
        "aslab_rows", "aslab", "As aslab, with emergency objects of pages that lie in a row.", single_pages=False
    ),
)
"""Machines that tell what each part of the others is worth. They run where they are asked for."""
