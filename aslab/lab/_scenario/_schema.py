"""What a scenario file may contain. Its keys are the fields here; docs/lab.md describes them.

[memory]          physical pages, and how they are fragmented or filled
[backends.NAME]   where memory comes from; faults wrap another by its name
[allocator]       the arguments of `aslab.open_allocator`
[caches.NAME]     the arguments of `Allocator.create_cache`
[tasks.NAME]      tasks that allocate, hold and free
[[at]]            what happens at a given time
[[expect]]        what must be true of the run
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ._values import Distribution, Limit, PositiveTime, Share, Size, Time, TimeOrNever

Count = Annotated[int, Field(ge=0, le=10_000_000)]
AtLeastOne = Annotated[int, Field(ge=1, le=10_000_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,60}$")]
"""Text that tables, traces and pages can show unchanged."""


class Section(BaseModel):
    """A table of the file: unknown keys and wrong types are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True
    )


class Memory(Section):
    """The machine's pages, 4 KiB each. See `aslab.emulation.PhysicalMemory` and `PageCache`."""

    pages: Annotated[int, Field(ge=16, le=2**20)] = 65536
    min: Count | None = None
    low: Count | None = None
    high: Count | None = None
    pinned: Share = 0.0
    """Pinned from the start, spread evenly, so that free memory is fragmented."""
    clean: Count = 0
    dirty: Count = 0
    """Pages of clean and dirty data, which can be reclaimed."""
    scan: Distribution = 0.0
    writeback: Distribution = 0.0
    """What it costs to drop a clean page, and to write back a dirty one."""


class VmallocBackend(Section):
    """`aslab.emulation.Vmalloc`."""

    kind: Literal["vmalloc"]
    per_page: Distribution = 0.0
    per_call: Distribution = 0.0
    lock: Distribution = 0.0
    honour_gfp: bool = False


class KmallocBackend(Section):
    """`aslab.emulation.Kmalloc`."""

    kind: Literal["kmalloc"]
    per_page: Distribution = 0.0
    per_call: Distribution = 0.0
    vmap: bool = False


class MmapBackend(Section):
    """`aslab.backends.Mmap`: real memory, for ``--real-time``."""

    kind: Literal["mmap"]


class HeapBackend(Section):
    """`aslab.backends.Heap`: real memory, for ``--real-time``."""

    kind: Literal["heap"]


class LatencyFault(Section):
    """`aslab.faults.Latency`."""

    kind: Literal["latency"]
    of: Name
    acquire: Distribution = 0.0
    release: Distribution = 0.0


class DeadlockFault(Section):
    """`aslab.faults.Deadlock`."""

    kind: Literal["deadlock"]
    of: Name
    at: AtLeastOne = 1
    duration: PositiveTime | None = None
    probability: Percent | None = None
    window: Annotated[list[Time], Field(min_length=2, max_length=2)] | None = None


class FailslabFault(Section):
    """`aslab.faults.Failslab`."""

    kind: Literal["failslab"]
    of: Name
    probability: Percent = 0
    interval: AtLeastOne = 1
    times: Annotated[int, Field(ge=-1, le=10_000_000)] = -1
    space: Count = 0
    fail_nth: Count = 0


Fault = LatencyFault | DeadlockFault | FailslabFault
AnyBackend = Annotated[
    VmallocBackend | KmallocBackend | MmapBackend | HeapBackend | Fault, Field(discriminator="kind")
]


class AllocatorSection(Section):
    """Arguments of `aslab.open_allocator`, with backends by name."""

    slabs: Name
    emergency: Name
    grow_timeout: Time | Literal["learned"] = 0.1
    limit: Limit | None = None
    emergency_limit: Limit | None = None
    """By default, what `aslab.open_allocator` derives from the limit."""
    expire: TimeOrNever = 15.0
    growth_workers: Annotated[int, Field(ge=1, le=64)] = 1
    kick_after: TimeOrNever = 5.0
    shrinker: bool = False
    """Whether caches return memory when the machine runs low on free pages (`aslab.emulation.Shrinker`)."""


class CacheSection(Section):
    """Arguments of `Allocator.create_cache`."""

    size: Size
    align: Annotated[int, Field(ge=8, le=4096)] | None = None
    objects_per_slab: AtLeastOne | None = None
    max_slab_size: Size | None = None
    magazine_size: Annotated[int, Field(ge=2, le=256)] | None = None
    reserve: Count = 0
    memalloc_reserve: Count | None = None
    min_objects: Count = 0
    max_objects: AtLeastOne | None = None
    max_emergency: Count | None = None
    watermark: Count = 0
    movable: bool = False
    merge: bool = False
    flags: list[Literal["NOEMERGENCY"]] = []
    prefill: Count = 0
    """Objects that must be free before the tasks start; the time for that counts as part of the run."""


class TaskSection(Section):
    """A group of identical tasks: each allocates, holds, frees, and repeats."""

    cache: Name
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    flags: Literal["SLEEP", "NOSLEEP", "PUSHPAGE", "MEMALLOC"] = "SLEEP"
    start: Distribution = 0.0
    """When each of them starts."""
    arrival: Distribution = 0.0
    """The pause between a free, or a failure, and the next allocation."""
    hold: Distribution = 0.0
    spend: Distribution = 0.0
    """Processor time used before the objects are held; no other task or timer runs meanwhile."""
    objects: Annotated[int, Field(ge=1, le=10_000)] = 1
    """How many are allocated, one after the other, and held together."""
    together: bool = False
    """Whether they are allocated at once instead, by `Cache.alloc_many`."""
    times: AtLeastOne | None = None
    """The number of rounds; endless by default."""
    timeout: PositiveTime | None = None
    """The timeout of each allocation."""


class Happening(Section):
    """Something that happens to the machine at a given time."""

    time: Time
    do: Literal["let_go", "pin", "unpin", "reap", "press", "defragment", "seal"]
    every: PositiveTime | None = None
    """The interval at which it is repeated."""
    backend: Name | None = None
    """Whose deadlock ``let_go`` ends."""
    share: Share | None = None
    """The share of all pages that ``pin`` pins."""


class Expectation(Section):
    """A figure and its bounds. The figures are in `aslab.lab.scenarios.METRICS`."""

    what: str
    at_most: Any = None
    at_least: Any = None
    tasks: Name | None = None
    cache: Name | None = None


class Scenario(Section):
    """A whole file."""

    name: Name
    about: Annotated[str, Field(min_length=1, max_length=1000)]
    """What it shows, in a sentence or two."""
    duration: PositiveTime
    seed: Annotated[int, Field(ge=0, le=2**63)] = 0
    """The default; the command line may give another."""
    slack: Time = 0.1
    """How far times may exceed their bounds in real time."""
    simulated_only: bool = False
    """Whether its expectations are too exact for real time, which is then refused."""
    memory: Memory = Memory()
    backends: Annotated[dict[Name, AnyBackend], Field(min_length=1, max_length=100)]
    allocator: AllocatorSection
    caches: Annotated[dict[Name, CacheSection], Field(min_length=1)]
    tasks: Annotated[dict[Name, TaskSection], Field(min_length=1)]
    at: list[Happening] = []
    expect: Annotated[list[Expectation], Field(min_length=1)]
