"""The computer of the story: every constant of the machine, of its disk and of ZFS, in one place.

Each is a field of `Computer`, whose metadata says what it means and what is allowed: the command line's help,
``--set`` and the files of ``--grid`` are all made from that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..._errors import ConfigError
from ...backends._libc import PAGE_SIZE
from ...emulation._vmalloc import PAGES_PER_TABLE
from ._zfs import ZfsOptions

CLUSTER = 32
"""Pages whose filling `Computer.fill` is about, whatever the size of a block."""

Pair = tuple[float, float]


def _whole(least: int, most: int, meaning: str) -> dict[str, Any]:
    return {"kind": "whole", "least": least, "most": most, "meaning": meaning}


def _number(least: float, most: float, meaning: str) -> dict[str, Any]:
    return {"kind": "number", "least": least, "most": most, "meaning": meaning}


def _pair(meaning: str) -> dict[str, Any]:
    return {"kind": "pair", "least": 0.0, "most": 3600.0, "meaning": meaning}


@dataclass(frozen=True, slots=True)
class Computer:
    """What all machines have. See the metadata of each field for what it is, and `KEYS`."""

    pages: int = field(default=16384, metadata=_whole(512, 2**20, "all memory, in pages of 4 KiB"))
    min_share: float = field(
        default=1 / 16,
        metadata=_number(0.001, 0.25, "share of the pages that is the mark min; low is 5/4 of it, high 3/2"),
    )
    pinned: float = field(
        default=0.0, metadata=_number(0, 0.5, "share of the pages pinned, evenly, so that memory is fragmented")
    )
    scattered: float = field(
        default=0.0,
        metadata=_number(0, 0.5, "share of the pages that were filled long ago, evenly, and can be moved"),
    )
    compact_scan: float = field(default=20e-9, metadata=_number(0, 1, "seconds for kcompactd to look at a page"))
    compact_move: float = field(default=5e-6, metadata=_number(0, 1, "seconds for kcompactd to move a page"))
    compact_spare: float = field(
        default=0.5,
        metadata=_number(
            0, 16, "free pages that kcompactd leaves, in times of min; 0.5 is what the writing path leaves"
        ),
    )
    hogs: int = field(default=4, metadata=_whole(1, 256, "processes that fill memory"))
    overcommit: float = field(
        default=4.0, metadata=_number(0.1, 1000, "times all memory that the hogs fill, together")
    )
    fill: Pair = field(default=(0.00005, 0.00015), metadata=_pair("seconds to fill 32 pages, from and to"))
    kswapd_writes: int = field(default=8, metadata=_whole(1, 1024, "blocks that kswapd writes out at once"))
    block: int = field(
        default=128 * 1024, metadata=_whole(16 * 1024, 2**20, "bytes of a buffer, and of a write; a power of two")
    )
    disk: Pair = field(default=(0.02, 0.06), metadata=_pair("seconds for a write of one block, from and to"))
    depth: int = field(default=10, metadata=_whole(1, 1024, "writes that the disk takes at once"))
    txg_timeout: float = field(
        default=5.0,
        metadata=_number(0.001, 3600, "seconds after which a transaction group is written that is not full"),
    )
    txg_blocks: int = field(default=64, metadata=_whole(1, 65536, "blocks of a full transaction group"))
    queue_depth: int = field(
        default=4, metadata=_whole(1, 1024, "writes in the queue of the disk at which no further one is started")
    )
    zvol_tasks: int = field(default=4, metadata=_whole(1, 256, "tasks that take writes to the zvol"))
    issue_tasks: int = field(default=8, metadata=_whole(1, 256, "tasks z_wr_iss, which start writes to the disk"))
    unconverted: int = field(
        default=0,
        metadata=_whole(0, 256, "tasks z_wr_iss that still ask for buffers with KM_SLEEP, as anybody would"),
    )
    writers: int = field(
        default=0, metadata=_whole(0, 256, "processes that write files to the pool for as long as the hogs run")
    )
    writers_from: float = field(
        default=0.0, metadata=_number(0, 3600, "seconds until those processes begin to write")
    )
    interrupt_tasks: int = field(default=1, metadata=_whole(1, 256, "tasks z_wr_int, which end them"))
    arc_groups: float = field(
        default=2.0,
        metadata=_number(0, 1000, "free buffers for data at the start, from earlier work, in transaction groups"),
    )
    reserve: int = field(
        default=2,
        metadata=_whole(1, 1024, "buffers that a machine with a reserve sets aside; one write needs two"),
    )
    slab_objects: int = field(default=8, metadata=_whole(1, 64, "buffers of a slab"))
    magazine: int = field(
        default=0,
        metadata=_whole(
            0,
            256,
            "free buffers that a cache of SPL keeps for the processor; 0 is as many as SPL does for the block",
        ),
    )
    cpu: Pair = field(default=(0.00001, 0.0001), metadata=_pair("seconds for a step of the pipeline, from and to"))
    per_page: float = field(
        default=1e-6, metadata=_number(0, 1, "seconds that vmalloc and kmalloc take for a page")
    )
    lock: float = field(
        default=20e-6, metadata=_number(0, 1, "seconds that vmalloc holds the lock of the address space")
    )
    retry: float = field(
        default=0.01,
        metadata=_number(0.0001, 10, "seconds until who found no memory, and may not fail, tries again"),
    )
    until: float = field(
        default=60.0, metadata=_number(0.1, 86400, "simulated seconds after which a run is given up")
    )

    @property
    def min(self) -> int:
        """Free pages that only the urgent may take."""
        return int(self.pages * self.min_share)

    @property
    def low(self) -> int:
        """Free pages below which kswapd is woken."""
        return self.min * 5 // 4

    @property
    def high(self) -> int:
        """Free pages at which kswapd is content."""
        return self.min * 3 // 2

    @property
    def cluster(self) -> int:
        """Pages of one block: so many are written to swap together."""
        return self.block // PAGE_SIZE

    @property
    def clusters(self) -> int:
        """So many of them each hog fills."""
        return int(self.pages * self.overcommit) // self.hogs // self.cluster

    @property
    def arc_buffers(self) -> int:
        """Free buffers for data at the start."""
        return math.ceil(self.arc_groups * self.txg_blocks)

    @property
    def zfs(self) -> ZfsOptions:
        """ZFS' own part of it."""
        return ZfsOptions(
            txg_timeout=self.txg_timeout,
            txg_blocks=self.txg_blocks,
            queue_depth=self.queue_depth,
            zvol_tasks=self.zvol_tasks,
            issue_tasks=self.issue_tasks,
            interrupt_tasks=self.interrupt_tasks,
            unconverted=self.unconverted,
        )

    def check(self) -> None:
        """Refuse what makes no sense together: such a computer could not work with any machine.

        :raises ConfigError: naming one of the fields
        """
        room, held = self.pages - self.high, self._held()
        if held > room // 2:
            allowed = (
                f"allowed is what leaves ZFS with {room // 2} pages, half of those above high; it needs {held}"
            )
            raise ConfigError("txg_blocks", self.txg_blocks, allowed)
        if held > room - int(self.pages * self.pinned):
            raise ConfigError("pinned", self.pinned, f"allowed is what leaves {held} pages to ZFS")
        if self.min // 2 < 2 * self.cluster:
            least = 4 * self.cluster / self.pages
            allowed = f"allowed is from {least:g} on: half of min has to hold the two buffers of one write"
            raise ConfigError("min_share", self.min_share, allowed)
        if not self.clusters:
            raise ConfigError("hogs", self.hogs, "allowed is what leaves at least one block to each of them")
        slowest = self.clusters * self.hogs * self.disk[1] / self.depth
        if 2 * slowest > self.until:
            allowed = f"allowed is from {2 * slowest:.4g} on, twice what the disk may take"
            raise ConfigError("until", self.until, allowed)

    def _held(self) -> int:
        """Pages that ZFS may come to hold: two groups, or what is free at the start, and the pipeline's slabs."""
        slab = self.slab_objects * self.cluster
        slab += math.ceil(slab / PAGES_PER_TABLE)
        buffers = max(2 * self.txg_blocks, self.arc_buffers)
        return slab * (math.ceil(buffers / self.slab_objects) + math.ceil(self.reserve / self.slab_objects))


COMPUTER = Computer()

KEYS = {one.name: one for one in dataclasses.fields(Computer)}
"""What can be set, by name."""


def check_value(key: str, given: object) -> Any:
    """A value for a field, as it comes from a file: a list stands for a pair.

    :raises ValueError: that says what is allowed
    """
    about = KEYS[key].metadata
    least, most = about["least"], about["most"]
    if key == "block" and not (_is_whole(given, least, most) and given & (given - 1) == 0):  # type: ignore[operator]
        raise ValueError(f"allowed are powers of two, from {least} to {most}")
    if about["kind"] == "whole" and not _is_whole(given, least, most):
        raise ValueError(f"allowed are whole numbers from {least} to {most}")
    if about["kind"] == "number" and not _is_number(given, least, most):
        raise ValueError(f"allowed are numbers from {least:g} to {most:g}")
    if about["kind"] == "number":
        return float(given)  # type: ignore[arg-type]  # so that 3 and 3.0 are the same to who compares text
    if about["kind"] == "whole":
        return given
    if (
        not isinstance(given, (list, tuple))
        or len(given) != 2
        or not all(_is_number(x, least, most) for x in given)
    ):
        raise ValueError("allowed are two numbers of seconds, such as [0.02, 0.06]")
    low, high = given
    if low > high:
        raise ValueError("allowed are two numbers of seconds, the smaller one first")
    return float(low), float(high)


def computer_with(given: Mapping[str, object], *, base: Computer = COMPUTER) -> Computer:
    """A computer with some fields of its own.

    :raises ConfigError: for a key that is none, or a value that is not allowed; not for what only makes no
        sense together, see `Computer.check`
    """
    values = {}
    for key, value in given.items():
        if key not in KEYS:
            raise ConfigError(key, value, f"unknown key, allowed are {', '.join(KEYS)}")
        try:
            values[key] = check_value(key, value)
        except ValueError as exc:
            raise ConfigError(key, value, str(exc)) from None
    return dataclasses.replace(base, **values)


def settings(computer: Computer) -> dict[str, Any]:
    """The fields that are not as by default, as `computer_with` takes them, and JSON has them."""
    found = {key: getattr(computer, key) for key in KEYS}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in found.items()
        if value != getattr(COMPUTER, key)
    }


def _is_whole(given: object, least: int, most: int) -> bool:
    return type(given) is int and least <= given <= most


def _is_number(given: object, least: float, most: float) -> bool:
    return type(given) in (int, float) and least <= given <= most  # type: ignore[operator]
