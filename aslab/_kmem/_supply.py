"""Regions in and out: what a backend gives is checked, what it gets back is queued.

Always true: a region that was asked for is outstanding until its backend has it back, or never gave it; then
``gone`` of that acquire or release is called, once. The bounds are kept by that alone. A region in the queue
belongs to nobody else.

A free of an emergency object is synchronous and comes from any thread; a backend's ``release`` is async and may
be slow. So releases go through a queue and one task, and a cancelled caller of `reap` leaves nothing half done.
Slabs and emergency objects have a queue each, so that single objects do not wait behind slabs. After the
allocator is closed a thread releases, with a small event loop of its own.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

import anyio
import anyio.lowlevel

from .._clients import log_failure, must_end
from .._errors import BackendError
from .._flags import GFP
from ..backends._libc import address_of
from ..backends._protocol import Backend, Region
from ._wakeup import Wakeup, WorkQueue

log = logging.getLogger("aslab")

Gone = Callable[[], object]
"""Told that the backend has nothing outstanding of it any more: on the loop's thread, or on that which called
`acquire_nowait`. Not after the allocator is closed."""


class Supply:
    """The allocator's dealings with one of its backends."""

    def __init__(self, backend: Backend, wakeup: Wakeup) -> None:
        self.backend: Backend = backend
        self._wakeup = wakeup
        self._queue: WorkQueue[tuple[Region, Gone, Iterator[object]]] = WorkQueue()
        self._idle = anyio.Event()
        self._idle.set()
        self._releasing = False
        self.closed: bool = False
        self._late = threading.Lock()  # held while a thread releases

    async def acquire(self, nbytes: int, align: int, gfp: GFP, gone: Gone) -> Region:
        """A checked region; ``gone`` is called if there is none in the end.

        :raises MemoryError: if the backend has none now
        :raises BackendError: if it breaks its contract
        """
        try:
            region = await self.backend.acquire(nbytes, align, gfp)
        except BaseException as exc:
            gone()
            if isinstance(exc, (MemoryError, BackendError)) or not isinstance(exc, Exception):
                raise
            raise self._unexpected("acquire", exc) from exc
        return self._checked(region, nbytes, align, gone)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP, gone: Gone) -> Region:
        """As `acquire`; `anyio.WouldBlock` if it would. Any thread."""
        try:
            region = self.backend.acquire_nowait(nbytes, align, gfp)
        except BaseException as exc:
            gone()
            if isinstance(exc, (MemoryError, anyio.WouldBlock, BackendError)) or not isinstance(exc, Exception):
                raise
            raise self._unexpected("acquire_nowait", exc) from exc
        return self._checked(region, nbytes, align, gone)

    def release(self, region: Region, gone: Gone = lambda: None, before: Iterable[object] = ()) -> None:
        """Give a region back, some time. Any thread, no lock.

        :param before: steps that come first, each as short as other tasks can wait for
        """
        self._queue.leave((region, gone, iter(before)))
        self._wakeup.wake()
        if self.closed:
            self._release_late()

    def attend(self) -> None:
        """The event loop was woken: begin to release what was queued."""
        if self._queue:
            self._idle = anyio.Event() if self._idle.is_set() else self._idle
            self._queue.wake()

    async def run(self) -> None:
        """Release what is queued, one after the other, until cancelled."""
        while True:
            item = region, gone, before = await self._queue.take()
            self._idle = anyio.Event() if self._idle.is_set() else self._idle
            self._releasing = True
            try:
                for _ in before:
                    await anyio.lowlevel.checkpoint()
            except anyio.get_cancelled_exc_class():
                self._queue.return_first(item)
                self._releasing = False  # it is in the queue again
                if self.closed:
                    self._release_late()
                raise
            try:
                await self.backend.release(region)
            except BaseException as exc:  # of a client's code: this task goes on
                if must_end(exc, stopping=self.closed):
                    raise
                log_failure(exc, "%r failed to release a region", self.backend)
            self._releasing = False
            del item, region, before
            gone()
            if not self._queue:
                self._idle.set()

    async def idle(self) -> None:
        """Suspend until everything that was queued has been released."""
        self.attend()
        await self._idle.wait()

    def close(self) -> int:
        """From here on a thread releases. Returns the number of regions still to be released."""
        self.closed = True
        left = len(self._queue) + self._releasing
        self._release_late()
        return left

    def _release_late(self) -> None:
        """Release what is queued in a thread with an event loop of its own, unless one does already."""
        if sys.is_finalizing():
            return  # no thread would start any more; the end of the process releases all memory
        if self._queue and self._late.acquire(blocking=False):
            try:
                threading.Thread(target=self._run_late, name="aslab late releases").start()
            except RuntimeError:  # as above, told by newer Pythons
                self._late.release()

    def _run_late(self) -> None:
        try:
            anyio.run(self._release_queued)
        finally:
            self._late.release()
        self._release_late()  # for what was queued while this thread ended

    async def _release_queued(self) -> None:
        while (late := self._queue.take_nowait()) is not None:
            region, _, before = late
            for _ in before:
                pass
            try:
                await self.backend.release(region)
            except BaseException as exc:
                log_failure(exc, "%r failed to release a region after its allocator was closed", self.backend)

    def _checked(self, region: object, nbytes: int, align: int, gone: Gone) -> Region:
        if not isinstance(region, Region):
            gone()
            raise BackendError(f"{self.backend!r} returned {region!r}; allowed is an aslab.backends.Region")
        try:
            fault = _fault(region, nbytes, align)
        except Exception as exc:  # a released view, an address that is no number, ...
            fault = f"a region that cannot be used: {exc}"
        if not fault:
            return region
        self.release(region, gone)
        raise BackendError(f"{self.backend!r} returned {fault}")

    def _unexpected(self, call: str, exc: Exception) -> BackendError:
        return BackendError(
            f"{self.backend!r}.{call} raised {exc!r}; allowed is MemoryError when there is no memory"
        )


def _fault(region: Region, nbytes: int, align: int) -> str:
    memory: object = region.memory
    if not isinstance(memory, memoryview):
        return f"memory of type {type(memory).__name__}; allowed is a memoryview"
    if memory.readonly or not memory.c_contiguous or memory.format != "B" or memory.ndim != 1:
        return "a view that is not writable, contiguous, flat bytes"
    if memory.nbytes < nbytes:
        return f"{memory.nbytes} bytes; allowed is at least the {nbytes} asked for"
    if region.address % align:
        return f"memory at {region.address:#x}; allowed is a multiple of the alignment {align}"
    if region.address != address_of(memory):
        return f"the address {region.address:#x} for memory at {address_of(memory):#x}"
    return ""
