"""Regions in and out: what a backend gives is checked, what it gets back is queued.

`free` of an emergency object is synchronous and comes from any thread, a backend's ``release`` is
not and may be slow. So releases go through a queue and one task, and a cancelled caller of `reap`
leaves nothing half done. After the allocator is closed one thread does it, with a small event loop of
its own.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable

import anyio
import anyio.lowlevel

from ._bell import Bell
from ._errors import BackendError
from ._flags import GFP
from ._views import address_of
from .backends._protocol import Backend, Region

log = logging.getLogger("aslab")

Done = Callable[[], object]


class Supply:
    """The allocator's dealings with its backends."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._queue: deque[tuple[Backend, Region, Done, Iterable[object]]] = deque()
        self._more = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._releasing = False
        self.closed: bool = False
        self._late = threading.Lock()  # held while a thread does late releases

    async def acquire(self, backend: Backend, nbytes: int, align: int, gfp: GFP) -> Region:
        """A checked region.

        :raises MemoryError: if the backend has none now
        :raises BackendError: if it breaks its contract
        """
        try:
            region = await backend.acquire(nbytes, align, gfp)
        except (MemoryError, BackendError):
            raise
        except Exception as exc:
            raise _unexpected(backend, "acquire", exc) from exc
        return self._checked(backend, region, nbytes, align)

    def acquire_nowait(self, backend: Backend, nbytes: int, align: int, gfp: GFP) -> Region:
        """As `acquire`; `anyio.WouldBlock` if it would. Any thread."""
        try:
            region = backend.acquire_nowait(nbytes, align, gfp)
        except (MemoryError, anyio.WouldBlock, BackendError):
            raise
        except Exception as exc:
            raise _unexpected(backend, "acquire_nowait", exc) from exc
        return self._checked(backend, region, nbytes, align)

    def release(
        self, backend: Backend, region: Region, done: Done = lambda: None, before: Iterable[object] = ()
    ) -> None:
        """Give a region back, some time; ``done`` is called on the event loop after. Any thread, no lock.

        :param before: steps that come first, each as short as other tasks can wait for
        """
        self._queue.append((backend, region, done, iter(before)))
        self._bell.ring()
        if self.closed:
            self._release_late()

    def attend(self) -> None:
        """The bell rang: look whether there is something to release."""
        if self._queue:
            self._idle = anyio.Event() if self._idle.is_set() else self._idle
            self._more.set()

    async def run(self) -> None:
        """Release what is queued, one after the other, until cancelled."""
        while True:
            await self._more.wait()
            while self._queue:
                item = backend, region, done, before = self._queue.popleft()
                self._releasing = True
                try:
                    for _ in before:
                        await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class():
                    self._queue.appendleft(item)
                    if self.closed:
                        self._release_late()
                    raise
                try:
                    await backend.release(region)
                except Exception:
                    log.exception("%r failed to release a region", backend)
                except anyio.get_cancelled_exc_class():
                    if self.closed:
                        raise
                    log.exception("%r cancelled its release of a region", backend)
                self._releasing = False
                done()
            self._more = anyio.Event()
            self._idle.set()

    async def idle(self) -> None:
        """Suspend until everything that was queued has been released."""
        self.attend()
        await self._idle.wait()

    def close(self) -> int:
        """From here on a thread releases; answers how many regions were still to be released."""
        self.closed = True
        left = len(self._queue) + self._releasing
        self._release_late()
        return left

    def _release_late(self) -> None:
        """Have one thread release what is queued, with an event loop of its own, unless one does already."""
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
        while self._queue:
            backend, region, _, before = self._queue.popleft()
            for _ in before:
                pass
            try:
                await backend.release(region)
            except Exception:
                log.exception("%r failed to release a region after its allocator was closed", backend)

    def _checked(self, backend: Backend, region: object, nbytes: int, align: int) -> Region:
        if not isinstance(region, Region):
            raise BackendError(f"{backend!r} returned {region!r}; allowed is an aslab.backends.Region")
        try:
            fault = _fault(region, nbytes, align)
        except Exception as exc:  # a released view, an address that is no number, ...
            fault = f"a region that cannot be used: {exc}"
        if not fault:
            return region
        self.release(backend, region)
        raise BackendError(f"{backend!r} returned {fault}")


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


def _unexpected(backend: Backend, call: str, exc: Exception) -> BackendError:
    return BackendError(f"{backend!r}.{call} raised {exc!r}; allowed is MemoryError when there is no memory")
