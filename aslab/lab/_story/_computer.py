"""The computer of the story: every constant of the machine, its disk and ZFS, in one place.

Each is a field of `Computer` whose metadata holds its meaning and its range; the command line's help,
``--set`` and the files of ``--grid`` all use these.
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
"""The number of pages that `Computer.fill` refers to, whatever the size of a block."""

Pair = tuple[float, float]


def _whole(least: int, most: int, meaning: str) -> dict[str, Any]:
    return {"kind": "whole", "least": least, "most": most, "meaning": meaning}


def _number(least: float, most: float, meaning: str) -> dict[str, Any]:
    return {"kind": "number", "least": least, "most": most, "meaning": meaning}


def _pair(meaning: str) -> dict[str, Any]:
    return {"kind": "pair", "least": 0.0, "most": 3600.0, "meaning": meaning}


@dataclass(frozen=True, slots=True)
class Computer:
    """What all machines run on. The metadata of each field says what it is; see `KEYS`."""

    pages: int = field(default=16384, metadata=_whole(512, 2**20, "all memory, in pages of 4 KiB"))
    min_share: float = field(
        default=1 / 16,
        metadata=_number(0.001, 0.25, "the watermark min as a share of all pages; low is 5/4 of it, high 3/2"),
    )
    pinned: float = field(
        default=0.0, metadata=_number(0, 0.5, "share of pages pinned, spread evenly, so that memory is fragmented")
    )
    scattered: float = field(
        default=0.0,
        metadata=_number(0, 0.5, "share of pages filled long ago, spread evenly, which can be moved"),
    )
    compact_scan: float = field(default=20e-9, metadata=_number(0, 1, "seconds for kcompactd to inspect a page"))
    compact_move: float = field(default=5e-6, metadata=_number(0, 1, "seconds for kcompactd to move a page"))
    compact_spare: float = field(
        default=0.5,
        metadata=_number(
            0, 16, "free pages that kcompactd leaves, as a multiple of min; the write path leaves 0.5"
        ),
    )
    hogs: int = field(default=4, metadata=_whole(1, 256, "processes that fill memory"))
    overcommit: float = field(
        default=4.0, metadata=_number(0.1, 1000, "how much the hogs fill in total, as a multiple of all memory")
    )
    fill: Pair = field(default=(0.00005, 0.00015), metadata=_pair("seconds to fill 32 pages, lowest and highest"))
    kswapd_writes: int = field(default=8, metadata=_whole(1, 1024, "blocks that kswapd writes out at once"))
    block: int = field(
        default=128 * 1024, metadata=_whole(16 * 1024, 2**20, "bytes in a buffer, and in a write; a power of two")
    )
    disk: Pair = field(default=(0.02, 0.06), metadata=_pair("seconds to write one block, lowest and highest"))
    depth: int = field(default=10, metadata=_whole(1, 1024, "writes that the disk handles at once"))
    txg_timeout: float = field(
        default=5.0,
        metadata=_number(0.001, 3600, "seconds after which a partial transaction group is written"),
    )
    txg_blocks: int = field(default=64, metadata=_whole(1, 65536, "blocks in a full transaction group"))
    queue_depth: int = field(
        default=4, metadata=_whole(1, 1024, "queued disk writes at which no more are started")
    )
    zvol_tasks: int = field(default=4, metadata=_whole(1, 256, "tasks that accept writes to the zvol"))
    issue_tasks: int = field(default=8, metadata=_whole(1, 256, "z_wr_iss tasks, which start writes to the disk"))
    unconverted: int = field(
        default=0,
        metadata=_whole(0, 256, "z_wr_iss tasks that still allocate buffers with KM_SLEEP"),
    )
    writers: int = field(
        default=0, metadata=_whole(0, 256, "processes that write files to the pool while the hogs run")
    )
    writers_from: float = field(
        default=0.0, metadata=_number(0, 3600, "seconds until those processes start writing")
    )
    interrupt_tasks: int = field(default=1, metadata=_whole(1, 256, "z_wr_int tasks, which complete the writes"))
    arc_groups: float = field(
        default=2.0,
        metadata=_number(0, 1000, "free data buffers at the start, left from earlier work, in transaction groups"),
    )
    reserve: int = field(
        default=2,
        metadata=_whole(1, 1024, "buffers that a machine with a reserve sets aside; one write needs two"),
    )
    slab_objects: int = field(default=8, metadata=_whole(1, 64, "buffers per slab"))
    magazine: int = field(
        default=0,
        metadata=_whole(
            0,
            256,
            "free buffers in the per-CPU magazine of an SPL cache; 0 means SPL's own choice for the block size",
        ),
    )
    cpu: Pair = field(default=(0.00001, 0.0001), metadata=_pair("seconds per pipeline step, lowest and highest"))
    per_page: float = field(default=1e-6, metadata=_number(0, 1, "seconds per page in vmalloc and kmalloc"))
    lock: float = field(default=20e-6, metadata=_number(0, 1, "seconds that vmalloc holds the address space lock"))
    retry: float = field(
        default=0.01,
        metadata=_number(0.0001, 10, "seconds until a caller that may not fail retries"),
    )
    until: float = field(
        default=60.0, metadata=_number(0.1, 86400, "simulated seconds after which a run is given up")
    )

    @property
    def min(self) -> int:
        """Free pages that only urgent requests may use."""
        return int(self.pages * self.min_share)

    @property
    def low(self) -> int:
        """Free pages below which kswapd wakes up."""
        return self.min * 5 // 4

    @property
    def high(self) -> int:
        """Free pages at which kswapd goes back to sleep."""
        return self.min * 3 // 2

    @property
    def cluster(self) -> int:
        """Pages in one block, which are written to swap together."""
        return self.block // PAGE_SIZE

    @property
    def clusters(self) -> int:
        """Clusters that each hog fills."""
        return int(self.pages * self.overcommit) // self.hogs // self.cluster

    @property
    def arc_buffers(self) -> int:
        """Free data buffers at the start."""
        return math.ceil(self.arc_groups * self.txg_blocks)

    @property
    def zfs(self) -> ZfsOptions:
        """The options for ZFS."""
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
        """Refuse combinations that make no sense: such a computer could not work with any machine.

        :raises ConfigError: with one of the fields
        """
        room, held = self.pages - self.high, self._held()
        if held > room // 2:
            allowed = f"it must let ZFS fit in {room // 2} pages, half of those above high; it needs {held}"
            raise ConfigError("txg_blocks", self.txg_blocks, allowed)
        if held > room - int(self.pages * self.pinned):
            raise ConfigError("pinned", self.pinned, f"it must leave {held} pages for ZFS")
        if self.min // 2 < 2 * self.cluster:
            least = 4 * self.cluster / self.pages
            allowed = f"it must be at least {least:g}, so that half of min holds the two buffers of one write"
            raise ConfigError("min_share", self.min_share, allowed)
        if not self.clusters:
            raise ConfigError("hogs", self.hogs, "it must leave at least one block for each")
        slowest = self.clusters * self.hogs * self.disk[1] / self.depth
        if 2 * slowest > self.until:
            allowed = f"it must be at least {2 * slowest:.4g}, twice what the disk may take"
            raise ConfigError("until", self.until, allowed)

    def _held(self) -> int:
        """The most pages that ZFS may hold: two groups or the initial free buffers, and the pipeline's slabs."""
        slab = self.slab_objects * self.cluster
        slab += math.ceil(slab / PAGES_PER_TABLE)
        buffers = max(2 * self.txg_blocks, self.arc_buffers)
        return slab * (math.ceil(buffers / self.slab_objects) + math.ceil(self.reserve / self.slab_objects))


COMPUTER = Computer()

KEYS = {one.name: one for one in dataclasses.fields(Computer)}
"""The fields that can be set, by name."""


def check_value(key: str, given: object) -> Any:
    """Check a value for a field, as read from a file: a list stands for a pair.

    :raises ValueError: with what the value must be
    """
    about = KEYS[key].metadata
    least, most = about["least"], about["most"]
    if key == "block" and not (_is_whole(given, least, most) and given & (given - 1) == 0):  # type: ignore[operator]
        raise ValueError(f"it must be a power of two from {least} to {most}")
    if about["kind"] == "whole" and not _is_whole(given, least, most):
        raise ValueError(f"it must be a whole number from {least} to {most}")
    if about["kind"] == "number" and not _is_number(given, least, most):
        raise ValueError(f"it must be a number from {least:g} to {most:g}")
    if about["kind"] == "number":
        return float(given)  # type: ignore[arg-type]  # so that 3 and 3.0 compare equal as text
    if about["kind"] == "whole":
        return given
    if (
        not isinstance(given, (list, tuple))
        or len(given) != 2
        or not all(_is_number(x, least, most) for x in given)
    ):
        raise ValueError("it must be two numbers of seconds, such as [0.02, 0.06]")
    low, high = given
    if low > high:
        raise ValueError("it must be two numbers of seconds, the smaller one first")
    return float(low), float(high)


def computer_with(given: Mapping[str, object], *, base: Computer = COMPUTER) -> Computer:
    """A computer with some fields changed.

    :raises ConfigError: for an unknown key or a wrong value. Whether the fields make sense together is
        checked by `Computer.check`
    """
    values = {}
    for key, value in given.items():
        if key not in KEYS:
            raise ConfigError(key, value, f"unknown key; known keys are {', '.join(KEYS)}")
        try:
            values[key] = check_value(key, value)
        except ValueError as exc:
            raise ConfigError(key, value, str(exc)) from None
    return dataclasses.replace(base, **values)


def settings(computer: Computer) -> dict[str, Any]:
    """The fields that differ from the default, as `computer_with` takes them, ready for JSON."""
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
