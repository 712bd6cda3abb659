"""Regions in and out: each region from a backend is checked, and each on its way back is queued.

Always true, between calls:

    1. a region asked for is outstanding until its backend has it back, or has failed to deliver it; then ``gone``
       of that acquire or release is called exactly once, unless the allocator is closed. All bounds rest on this
    2. a region in the queue is used by nothing else

An emergency object is freed synchronously, in any thread, but a backend's ``release`` is async and may be slow. So
releases go through a queue and one task, and a cancelled `reap` leaves nothing half done. Slabs and emergency
objects have a queue each, so that single objects do not wait behind slabs. After the allocator is closed, a thread
releases what is left (`_late`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

import anyio
import anyio.lowlevel

from .._clients import log_failure, must_end
from .._errors import BackendError
from .._flags import GFP
from ..backends._protocol import Backend, Region, address_of, batching, owning, streaming
from ._late import LateWork
from ._wakeup import Wakeup, WorkQueue, take_turns

log = logging.getLogger("aslab")

Gone = Callable[[], object]
"""Called when a region is no longer outstanding, on the loop's thread or on the one that called `acquire_nowait`;
never after the allocator is closed."""


def _nothing() -> None:
    """What follows a release that nobody waits for."""


class Supply:
    """The allocator's dealings with one of its backends."""

    def __init__(self, backend: Backend, wakeup: Wakeup) -> None:
        self.interpose(backend)
        self._wakeup = wakeup
        self._queue: WorkQueue[tuple[object, Gone, Iterator[object]]] = WorkQueue()
        self._idle = anyio.Event()
        self._idle.set()
        self._releasing = False
        self.closed: bool = False
        self._late = LateWork(lambda: self._queue, self._release_queued)

    def interpose(self, wrapper: Backend) -> None:
        """Call a wrapper of the backend from now on. Event loop's thread only, before the first call."""
        self.backend: Backend = wrapper
        self._batching, self._streaming, self._owning = batching(wrapper), streaming(wrapper), owning(wrapper)

    async def acquire(self, nbytes: int, align: int, gfp: GFP, gone: Gone) -> Region:
        """Acquire a region and check it. If that fails, ``gone`` is called once nothing is outstanding. Suspends.

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
        return self.checked(region, nbytes, align, gone)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is on its way back, and ``gone`` was called for all that was. Loop's thread only."""
        return not (self._queue or self._releasing or self.closed)

    @property
    def batches(self) -> bool:
        """Whether one call may bring several regions."""
        return self._batching is not None

    async def acquire_many(
        self, count: int, nbytes: int, align: int, gfp: GFP, gone: Gone, within: float
    ) -> list[Region]:
        """Like `acquire`, for up to ``count`` regions, but at least one. ``gone`` is called for each missing one.

        :param within: seconds after which the backend is to begin no further one
        """
        if count == 1 or self._batching is None:
            for _ in range(count - 1):
                gone()
            return [await self.acquire(nbytes, align, gfp, gone)]
        try:
            answer: object = await self._batching.acquire_many(count, nbytes, align, gfp, within)
        except BaseException as exc:
            for _ in range(count):
                gone()
            if isinstance(exc, (MemoryError, BackendError)) or not isinstance(exc, Exception):
                raise
            raise self._unexpected("acquire_many", exc) from exc
        return self._all_checked(answer, count, nbytes, align, gone)

    @property
    def streams(self) -> bool:
        """Whether one call may bring regions one after another, for as long as they are wanted."""
        return self._streaming is not None

    async def acquire_each(self, nbytes: int, align: int, gfp: GFP, deliver: Callable[[Region], bool]) -> None:
        """Have regions passed to ``deliver``, unchecked and in any thread, until it returns False. Suspends.

        :raises MemoryError: if the backend has none for the next
        :raises BackendError: if it breaks its contract
        """
        assert self._streaming is not None, "it streams"
        try:
            await self._streaming.acquire_each(nbytes, align, gfp, deliver)
        except Exception as exc:
            if isinstance(exc, (MemoryError, BackendError)):
                raise
            raise self._unexpected("acquire_each", exc) from exc

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP, gone: Gone) -> Region:
        """Like `acquire`, without waiting. Any thread.

        :raises anyio.WouldBlock: if the backend would have to wait
        :raises MemoryError, BackendError: like `acquire`
        """
        try:
            region = self.backend.acquire_nowait(nbytes, align, gfp)
        except BaseException as exc:
            gone()
            if isinstance(exc, (MemoryError, anyio.WouldBlock, BackendError)) or not isinstance(exc, Exception):
                raise
            raise self._unexpected("acquire_nowait", exc) from exc
        return self.checked(region, nbytes, align, gone)

    def to_keep(self, region: Region, gone: Gone) -> object:
        """What to keep of a region while it is in use, and then to `release`: what owns its memory, or itself.

        :raises BackendError: if what the backend says cannot be: then the region is on its way back, with ``gone``
        """
        if self._owning is None:
            return region
        try:
            owner = self._owning.region_owner(region)
        except BaseException as exc:
            self.release(region, gone)
            if not isinstance(exc, Exception):
                raise
            raise BackendError(f"{self.backend!r}.region_owner raised {exc!r}") from exc
        if owner is None:
            return region
        if owner is region.memory.obj:
            return owner
        self.release(region, gone)
        allowed = "it must be the object that region.memory is of, or None"
        raise BackendError(f"{self.backend!r}.region_owner returned {owner!r}; {allowed}")

    def release(self, region: object, gone: Gone = _nothing, before: Iterable[object] = ()) -> None:
        """Queue a region, or what was kept of it, to be given back. Returns at once. Any thread; takes no lock.

        :param before: steps to run first, each short enough for other tasks to wait for
        """
        self._queue.leave((region, gone, iter(before)))
        self._wakeup.wake()
        if self.closed:
            self._late.begin()

    def do_soon(self, steps: Iterator[object]) -> None:
        """Queue steps alone, each short enough for other tasks to wait for. Any thread."""
        self._queue.leave((None, _nothing, steps))
        self._wakeup.wake()
        if self.closed:
            self._late.begin()

    def attend(self) -> None:
        """Wake the releasing task if regions are queued. Called after each wake-up of the event loop."""
        if self._queue:
            self._idle = anyio.Event() if self._idle.is_set() else self._idle
            self._queue.wake()

    async def run(self) -> None:
        """Release queued regions one at a time, until cancelled."""
        for number in itertools.count():
            await take_turns(number)  # a backend may release without suspending
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
                    self._late.begin()
                raise
            try:
                if isinstance(region, Region):
                    await self.backend.release(region)
            except BaseException as exc:  # raised by client code: this task goes on
                if must_end(exc, stopping=self.closed):
                    raise
                log_failure(exc, "%r failed to release a region", self.backend)
            self._releasing = False
            del item, region, before
            gone()
            if not self._queue:
                self._idle.set()

    async def idle(self) -> None:
        """Suspend until all queued regions have been released; more may have come by then."""
        self.attend()
        await self._idle.wait()

    def close(self) -> int:
        """Leave all releases to a thread from now on. Returns the number of regions still to be released."""
        self.closed = True
        left = len(self._queue) + self._releasing
        self._late.begin()
        return left

    async def _release_queued(self) -> None:
        while (late := self._queue.take_nowait()) is not None:
            region, _, before = late
            for _ in before:
                pass
            try:
                if isinstance(region, Region):
                    await self.backend.release(region)
            except BaseException as exc:
                log_failure(exc, "%r failed to release a region after its allocator was closed", self.backend)

    def checked(self, region: object, nbytes: int, align: int, gone: Gone) -> Region:
        """Return a region from the backend, if it can be used; if not, it is on its way back, with ``gone``.

        :raises BackendError: if it cannot
        """
        if not isinstance(region, Region):
            gone()
            raise BackendError(f"{self.backend!r} returned {region!r}; it must be an aslab.backends.Region")
        try:
            fault = _fault(region, nbytes, align)
        except Exception as exc:  # a released view, an address that is not a number, ...
            fault = f"an unusable region: {exc}"
        if not fault:
            return region
        self.release(region, gone)
        raise BackendError(f"{self.backend!r} returned {fault}")

    def _all_checked(self, answer: object, count: int, nbytes: int, align: int, gone: Gone) -> list[Region]:
        """All of a batch or, if anything is wrong with it, nothing: what it brought is released."""
        given: list[object] = list(answer) if isinstance(answer, (list, tuple)) else []
        once = list({id(region): region for region in given}.values())  # each is released once
        for _ in range(count - len(once)):
            gone()
        ends = [gone] * min(count, len(once)) + [_nothing] * (len(once) - count)  # there is room for `count` alone
        good: list[tuple[Region, Gone]] = []
        fault: BackendError | None = None
        for region, end in zip(once, ends, strict=True):
            try:
                good.append((self.checked(region, nbytes, align, end), end))
            except BackendError as exc:
                fault = exc
        regions = [region for region, _ in good]
        if fault is None and (wrong := _fault_of_batch(answer, given, regions, count, nbytes)):
            fault = BackendError(f"{self.backend!r}.acquire_many returned {wrong}")
        if fault is None:
            return regions
        for region, end in good:
            self.release(region, end)
        raise fault

    def _unexpected(self, call: str, exc: Exception) -> BackendError:
        return BackendError(
            f"{self.backend!r}.{call} raised {exc!r}; it must raise MemoryError when there is no memory"
        )


def _fault(region: Region, nbytes: int, align: int) -> str:
    memory: object = region.memory
    if not isinstance(memory, memoryview):
        return f"memory of type {type(memory).__name__}; it must be a memoryview"
    if memory.readonly or not memory.c_contiguous or memory.format != "B" or memory.ndim != 1:
        return "a view that is not writable, contiguous, flat bytes"
    if memory.nbytes < nbytes:
        return f"{memory.nbytes} bytes; it must be at least the {nbytes} asked for"
    if region.address % align:
        return f"memory at {region.address:#x}; it must be a multiple of the alignment {align}"
    if region.address != address_of(memory):
        return f"the address {region.address:#x} for memory at {address_of(memory):#x}"
    return ""


def _fault_of_batch(answer: object, given: list[object], regions: list[Region], count: int, nbytes: int) -> str:
    if not isinstance(answer, (list, tuple)):
        return f"{answer!r}; it must be a list of regions"
    if not given:
        return "no region; it must raise MemoryError"
    if len(given) > count:
        return f"{len(given)} regions; it must be at most the {count} asked for"
    begins = sorted(region.address for region in regions)
    if len(regions) < len(given) or any(two - one < nbytes for one, two in itertools.pairwise(begins)):
        return "the same memory twice; each region must have its own"
    return ""
