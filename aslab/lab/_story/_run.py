"""The story of 2012, run: four processes swap to a zvol, on machines that grow their caches in different ways.

Nobody injects the deadlock. It arises from its parts: a slab needs page tables, page tables need memory,
memory is freed by writing to swap, swap is written by ZFS, and ZFS waits for the slab.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ... import open_allocator
from ..._cache import pool_of
from ...backends import Backend
from ...emulation import AddressSpace, Kmalloc, PhysicalMemory, Vmalloc
from ...emulation._memory import PF_MEMALLOC
from .._scenario._machine import seed_for
from .._scenario._recording import Span
from .._simulation._run import current, housekeeping
from .._simulation._run import run as run_simulated
from .._simulation._waits import WaitGraph
from ._buffers import AslabBuffers, SplBuffers, Traced, caches_of
from ._compaction import Compaction
from ._computer import CLUSTER, Computer
from ._disk import Disk
from ._machines import Aslab, Machine
from ._spl import Growth, SplCache, SplQueue
from ._swap import Anonymous, hog
from ._zfs import Buffers, Zfs

LOOK_EVERY = 1.0
"""Simulated seconds between checks that the run is not stuck."""
COUNT_EVERY = 0.02
"""Simulated seconds between points of the curves."""


@dataclass(slots=True)
class Chapter:
    """The result of one machine with one seed."""

    machine: str
    seed: int
    finished: bool = False
    time: float = 0.0
    """Simulated seconds until the last process finished, or everything was stuck."""
    cycle: tuple[str, ...] = ()
    """Who waits on whom, if it is stuck."""
    longest_txg_sync: float = 0.0
    longest_wait: float = 0.0
    emergency_max: int = 0
    emergency_left: int = 0
    deadlocks: int = 0
    failed_by_order: list[int] = field(default_factory=list)
    lowest_free_pages: int = 0
    va_lock_time: float = 0.0
    starved: int = 0
    """Times the disk driver got no page for a request."""
    swapped: int = 0
    """Pages written to swap."""
    file_blocks: int = 0
    """Blocks written by the file writers."""
    rows_made: int = 0
    """Contiguous blocks that kcompactd made."""
    pages_moved: int = 0
    """Pages that it moved to make them."""
    spans: list[Span] = field(default_factory=list)
    counters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def tell(machine: Machine, computer: Computer, seed: int, *, loop: str = "asyncio") -> Chapter:
    """Run one machine with one seed. Blocks until it has finished, is stuck, or is given up."""
    chapter = Chapter(machine.name, seed)
    run_simulated(_Telling(machine, computer, seed, chapter).run, seed=seed, loop=loop, until=computer.until)
    return chapter


class _Telling:
    """One run."""

    def __init__(self, machine: Machine, computer: Computer, seed: int, chapter: Chapter) -> None:
        self._machine = machine
        self._computer = computer
        self._seed = seed
        self._chapter = chapter
        self._waits = WaitGraph()
        self._reserve = computer.reserve if machine.reserve else 0
        self._since = 0.0
        self._zfs: Zfs | None = None

    async def run(self) -> None:
        """Run until all processes are done and everything is written. Records results even if cut off."""
        computer, machine = self._computer, self._machine
        self._memory = PhysicalMemory(computer.pages, min=computer.min, low=computer.low, high=computer.high)
        self._memory.fragment(computer.pinned)
        self._space = AddressSpace()
        vmalloc = Vmalloc(
            self._memory,
            per_page=computer.per_page,
            lock=computer.lock,
            honour_gfp=machine.honour_gfp,
            space=self._space,
        )
        single = Kmalloc(self._memory, per_page=computer.per_page, vmap=machine.single_pages)
        try:
            if isinstance(machine.growth, Aslab):
                await self._tell_aslab(machine.growth, vmalloc, single)
            else:
                await self._tell_spl(machine.growth, vmalloc, single)
        finally:
            if self._zfs is not None:
                self._zfs.close()

    async def _tell_aslab(self, aslab: Aslab, vmalloc: Backend, single: Backend) -> None:
        computer = self._computer
        options = {"movable": True, "objects_per_slab": computer.slab_objects, **aslab.cache}
        slabs = Traced(vmalloc, self._waits, "growth worker", high=aslab.high)
        async with open_allocator(slabs=slabs, emergency=single, **aslab.allocator) as kmem:
            kept = self._reserve or aslab.kept
            caches = [
                kmem.create_cache(name, computer.block, **options | {"memalloc_reserve": objects})
                for name, objects in zip(caches_of(computer), (None, kept), strict=True)
            ]
            if aslab.beside is not None:
                for cache in caches:
                    pool_of(cache).handover.beside = aslab.beside  # only for this experiment
            await caches[0].prefill(computer.arc_buffers)
            await kmem.ready()
            buffers = [AslabBuffers(cache, aslab, self._waits) for cache in caches]

            async def shrink() -> bool:
                return await kmem.reap() > 0

            def note() -> None:
                stats = [cache.stats() for cache in caches]
                self._chapter.deadlocks = sum(one.obj_deadlock for one in stats)
                self._chapter.emergency_max = max(one.obj_emergency_max for one in stats)
                self._chapter.emergency_left = sum(one.obj_emergency for one in stats)
                self._chapter.longest_wait = max(one.longest_wait for one in buffers)

            try:
                async with anyio.create_task_group() as tasks:
                    await self._swap(tasks, buffers[0], buffers[1], shrink, note)
                    tasks.cancel_scope.cancel()
            finally:
                for one in buffers:
                    one.free_all()

    async def _tell_spl(self, growth: Growth, vmalloc: Backend, single: Backend) -> None:
        computer, waits = self._computer, self._waits
        async with anyio.create_task_group() as tasks:
            queue = SplQueue(waits)
            tasks.start_soon(queue.run)
            caches = [
                SplCache(
                    name,
                    computer.block,
                    growth,
                    slabs=Traced(vmalloc, waits, None),
                    emergency=single,
                    queue=queue,
                    magazine=computer.magazine or None,
                    objects=computer.slab_objects,
                    retry=computer.retry,
                    reserve=objects,
                )
                for name, objects in zip(caches_of(computer), (0, self._reserve), strict=True)
            ]

            async def shrink() -> bool:
                return any([await cache.shrink() for cache in caches])

            def note() -> None:
                self._chapter.deadlocks = sum(cache.deadlocks for cache in caches)
                self._chapter.emergency_max = max(cache.emergency_max for cache in caches)
                self._chapter.emergency_left = sum(cache.emergency for cache in caches)
                self._chapter.longest_wait = max(cache.longest_wait for cache in caches)

            await caches[0].prefill(computer.arc_buffers)
            await caches[1].prefill(self._reserve)
            arc, zio = (SplBuffers(cache, tasks) for cache in caches)
            await self._swap(tasks, arc, zio, shrink, note)
            tasks.cancel_scope.cancel()

    async def _swap(
        self,
        tasks: TaskGroup,
        arc: Buffers,
        zio: Buffers,
        shrink: Callable[[], Awaitable[bool]],
        note: Callable[[], None],
    ) -> None:
        computer, memory, waits = self._computer, self._memory, self._waits
        disk = Disk(memory, self._drawing("disk", computer.disk), computer.depth, retry=computer.retry)
        zfs = self._zfs = Zfs(disk, arc, zio, waits, self._drawing("cpu", computer.cpu), computer.zfs)
        anonymous = Anonymous(memory, waits, zfs.write, shrink, kswapd_writes=computer.kswapd_writes)
        anonymous.scatter(computer.scattered, computer.cluster)
        compaction = Compaction(
            memory,
            anonymous.movable,
            waits,
            scan=computer.compact_scan,
            move=computer.compact_move,
            spare=min(computer.pages, int(computer.min * computer.compact_spare)),
        )
        try:
            if self._machine.memalloc:
                PF_MEMALLOC.set(True)  # inherited by the tasks started now
            zfs.start(tasks)
            PF_MEMALLOC.set(False)
            tasks.start_soon(anonymous.run_kswapd, name="kswapd")
            tasks.start_soon(compaction.run, name="kcompactd")
            tasks.start_soon(self._watch, tasks.cancel_scope)
            tasks.start_soon(self._count, memory, anonymous, note)
            for _ in range(computer.writers):
                tasks.start_soon(self._write_files, zfs, name="dd")
            async with anyio.create_task_group() as hogs:
                for number in range(computer.hogs):
                    fill = self._drawing(f"hog-{number}", computer.fill, computer.cluster / CLUSTER)
                    dirty = partial(hog, pages=computer.cluster, retry=computer.retry)
                    hogs.start_soon(dirty, anonymous, computer.clusters, fill, name=f"hog-{number}")
            self._chapter.finished = True
            self._chapter.time = current().time()
            await zfs.drain()
        finally:
            zfs.note()
            note()
            chapter = self._chapter
            chapter.time = chapter.time or current().time()
            name = chapter.machine
            chapter.longest_txg_sync = max((end - begin for begin, end in zfs.syncs), default=0.0)
            chapter.spans = [Span(name, "txg sync", begin, end) for begin, end in zfs.syncs]
            if not chapter.finished:
                chapter.spans.append(Span(name, "stuck", self._since, chapter.time))
            chapter.failed_by_order = list(memory.failures_by_order)
            chapter.lowest_free_pages = memory.lowest_free
            chapter.va_lock_time = self._space.lock_wait_total + self._space.lock_held_total
            chapter.starved = disk.starved
            chapter.swapped = anonymous.written
            chapter.rows_made, chapter.pages_moved = compaction.made, compaction.moved

    async def _write_files(self, zfs: Zfs) -> None:
        """Write like dd from /dev/zero: one block after another, as fast as the pool accepts them."""
        self._waits.be("dd")
        await anyio.sleep(self._computer.writers_from)
        while not self._chapter.finished:
            await zfs.write_file()
            self._chapter.file_blocks += 1

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Once everything is stuck, record why, and end the run."""
        housekeeping()
        while not current().stuck():  # noqa: ASYNC110  (what it looks for is that nothing happens)
            await anyio.sleep(LOOK_EVERY)
        self._since = current().time() - LOOK_EVERY
        self._chapter.cycle = self._waits.cycle()
        scope.cancel()

    async def _count(self, memory: PhysicalMemory, anonymous: Anonymous, note: Callable[[], None]) -> None:
        """Record the curves at intervals."""
        housekeeping()
        while True:
            note()
            now = current().time()
            values = {
                "free pages": memory.free_pages,
                "swapped pages": anonymous.written,
                "emergency": self._chapter.emergency_left,
            }
            for what, value in values.items():
                self._chapter.counters.setdefault(what, []).append((now, value))
            await anyio.sleep(COUNT_EVERY)

    def _drawing(self, what: str, between: tuple[float, float], times: float = 1.0) -> Callable[[], float]:
        draw = random.Random(seed_for(self._seed, what))
        return lambda: draw.uniform(*between) * times
