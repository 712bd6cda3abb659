"""As little of ZFS as is needed to model swapping to it.

    zvol      a write to swap: joins the open transaction group, and copies its data into a buffer
    txg_sync  closes the group and writes all of it; only then are its buffers freed
    z_wr_iss  starts each of these writes: it needs a buffer for the data on its way to disk
    vdev      queues the writes; each I/O needs a buffer to aggregate into
    z_wr_int  completes each write: frees its buffers, and starts the next queued I/O
    dd        a process that writes a file: joins the open group itself

All buffers hold one block and come from two caches. Group and pipeline are bounded, so each stage waits for
the next; if one of them waits for memory that only a write to swap can free, all of them do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup

from .._simulation._waits import WaitGraph
from ._disk import Disk


@dataclass(frozen=True, slots=True)
class ZfsOptions:
    """The sizes of everything. The defaults are in `Computer`."""

    txg_timeout: float
    """Seconds after which a partial group is closed."""
    txg_blocks: int
    """Blocks in a full group."""
    queue_depth: int
    """Queued vdev writes at which no more are started."""
    zvol_tasks: int
    issue_tasks: int
    interrupt_tasks: int
    unconverted: int = 0
    """How many of the issue tasks still allocate with KM_SLEEP."""


class Buffers(Protocol):
    """A machine's cache of buffers of one block."""

    async def alloc(self, *, finishes: bool, converted: bool = True) -> Any:
        """Allocate a buffer for a caller that is part of the write path.

        :param finishes: whether this is the last buffer that its write needs; on completion, the write frees
            this one and one more. Otherwise the write has only started, and will need another buffer.
        :param converted: whether the caller says that it is urgent (KM_PUSHPAGE), or not (KM_SLEEP)
        """
        ...

    def free(self, buffer: Any) -> None:
        """Free a buffer."""
        ...


class _Zio:
    """One block on its way to disk."""

    def __init__(self, block: Any, done: Callable[[], None]) -> None:
        self.block = block
        self.transformed: Any = None
        self.aggregate: Any = None
        self.done = done


class Zfs:
    """A pool of one disk with one zvol. ``cpu`` gives the seconds of each pipeline step."""

    def __init__(
        self,
        disk: Disk,
        arc: Buffers,
        zio: Buffers,
        waits: WaitGraph,
        cpu: Callable[[], float],
        options: ZfsOptions,
    ) -> None:
        self.syncs: list[tuple[float, float]] = []
        """The begin and end of writing each transaction group."""
        self._disk = disk
        self._arc = arc
        self._zio = zio
        self._waits = waits
        self._cpu = cpu
        self._options = options
        self._requests = anyio.create_memory_object_stream[anyio.Event](math.inf)
        self._issue = anyio.create_memory_object_stream[_Zio](math.inf)
        self._interrupts = anyio.create_memory_object_stream[_Zio](math.inf)
        self._vdev: deque[_Zio] = deque()
        self._in_flight = 0
        self._open: list[Any] = []
        self._joining = 0  # writes that have joined the open group but not yet copied their data
        self._changed = anyio.Event()  # set and replaced whenever the open group changes
        self._room = anyio.Event()  # in the vdev queue
        self._sync_since: float | None = None

    async def write_file(self) -> None:
        """Write one block to a file in the pool, in the calling task. Suspends until the data is copied."""
        with self._waits.on("txg_sync"):
            while len(self._open) + self._joining >= self._options.txg_blocks:
                await self._changed.wait()
        await self._join()

    async def write(self) -> None:
        """Write one block to the zvol. Suspends until the data is copied."""
        copied = anyio.Event()
        self._requests[0].send_nowait(copied)
        await copied.wait()

    def start(self, tasks: TaskGroup) -> None:
        """Start all tasks; they run until cancelled."""
        self._tasks = tasks
        for _ in range(self._options.zvol_tasks):
            tasks.start_soon(self._run_zvol, name="zvol")
        tasks.start_soon(self._run_txg_sync, name="txg_sync")
        for number in range(self._options.issue_tasks):
            tasks.start_soon(self._run_issue, number >= self._options.unconverted, name="z_wr_iss")
        for _ in range(self._options.interrupt_tasks):
            tasks.start_soon(self._run_interrupt, name="z_wr_int")

    async def drain(self) -> None:
        """Suspend until everything written to the zvol is on disk."""
        while self._open or self._joining or self._sync_since is not None:
            await self._changed.wait()

    def close(self) -> None:
        """Close its queues. Call once its tasks have ended."""
        for stream in (*self._requests, *self._issue, *self._interrupts):
            stream.close()

    def note(self) -> None:
        """Record the sync in progress."""
        if self._sync_since is not None:
            self.syncs.append((self._sync_since, anyio.current_time()))

    async def _run_zvol(self) -> None:
        self._waits.be("zvol")
        async for copied in self._requests[1]:
            while len(self._open) + self._joining >= self._options.txg_blocks:
                with self._waits.on("txg_sync"):
                    await self._changed.wait()
            await self._join()
            copied.set()

    async def _join(self) -> None:
        """Copy a block into the open group, which must have room for it."""
        self._joining += 1
        try:
            with self._waits.held("txg"):
                block = await self._arc.alloc(finishes=False)
                await anyio.sleep(self._cpu())
            self._open.append(block)
        finally:
            self._joining -= 1
            self._change()

    async def _run_txg_sync(self) -> None:
        self._waits.be("txg_sync")
        while True:
            while not self._open:
                await self._changed.wait()
            with anyio.move_on_after(self._options.txg_timeout):
                while len(self._open) < self._options.txg_blocks:
                    await self._changed.wait()
            self._sync_since = anyio.current_time()
            while self._joining:  # quiesce: writes that have joined may still finish
                with self._waits.on("txg"):
                    await self._changed.wait()
            blocks, self._open = self._open, []
            self._change()
            await self._sync(blocks)
            self.note()
            self._sync_since = None
            self._change()

    async def _sync(self, blocks: list[Any]) -> None:
        left = len(blocks)
        synced = anyio.Event()

        def done() -> None:
            nonlocal left
            left -= 1
            if not left:
                synced.set()

        for block in blocks:
            self._issue[0].send_nowait(_Zio(block, done))
        with self._waits.on("zio"):
            await synced.wait()
        for block in blocks:
            self._arc.free(block)

    async def _run_issue(self, converted: bool) -> None:
        self._waits.be("z_wr_iss")
        async for zio in self._issue[1]:
            with self._waits.held("zio"):
                while len(self._vdev) >= self._options.queue_depth:
                    self._room = anyio.Event() if self._room.is_set() else self._room
                    with self._waits.on("vdev"):
                        await self._room.wait()
                zio.transformed = await self._zio.alloc(finishes=False, converted=converted)
                await anyio.sleep(self._cpu())
                self._vdev.append(zio)
                await self._start_io(converted)

    async def _run_interrupt(self) -> None:
        self._waits.be("z_wr_int")
        async for zio in self._interrupts[1]:
            with self._waits.held("zio"):
                self._zio.free(zio.aggregate)
                self._zio.free(zio.transformed)
                await anyio.sleep(self._cpu())
                zio.done()
                self._in_flight -= 1
                await self._start_io()

    async def _start_io(self, converted: bool = True) -> None:
        """As vdev_queue_io_to_issue: issue as many queued writes as the disk accepts."""
        while self._vdev and self._in_flight < self._disk.depth:
            self._in_flight += 1
            zio = self._vdev.popleft()
            self._room.set()
            with self._waits.held("vdev"):
                zio.aggregate = await self._zio.alloc(finishes=True, converted=converted)
            self._tasks.start_soon(self._io, zio, name="disk")

    async def _io(self, zio: _Zio) -> None:
        self._waits.be("disk")
        with self._waits.held("zio"):
            await self._disk.write()
        self._interrupts[0].send_nowait(zio)

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
