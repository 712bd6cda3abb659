"""Regions in and out: what a backend gives is checked, what it gets back is queued.

`free` of an emergency object is synchronous and comes from any thread, a backend's ``release`` is
not and may be slow. So releases go through a queue and one task, and a cancelled caller of `reap`
leaves nothing half done. After the allocator is closed, a thread with a small event loop of its own
does it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import anyio

from ._bell import Bell
from ._errors import BackendError
from ._flags import GFP
from .backends._protocol import Backend, Region

log = logging.getLogger("aslab")

Done = Callable[[], object]


class Supply:
    """The allocator's dealings with its backends."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._queue: deque[tuple[Backend, Region, Done]] = deque()
        self._more = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._releasing = False
        self.closed: bool = False

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

    def release(self, backend: Backend, region: Region, done: Done = lambda: None) -> None:
        """Give a region back, some time; ``done`` is called on the event loop after. Any thread, no lock."""
        self._queue.append((backend, region, done))
        self._bell.ring()
        if self.closed:
            self._release_in_threads()

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
                backend, region, done = self._queue.popleft()
                self._releasing = True
                try:
                    await backend.release(region)
                except Exception:
                    log.exception("%r failed to release a region", backend)
                self._releasing = False
                done()
            self._more = anyio.Event()
            self._idle.set()

    async def idle(self) -> None:
        """Suspend until everything that was queued has been released."""
        self.attend()
        await self._idle.wait()

    def close(self) -> int:
        """From here on releases go to threads; answers how many were still to be done."""
        self.closed = True
        return self._release_in_threads() + self._releasing

    def _release_in_threads(self) -> int:
        begun = 0
        while self._queue:
            try:
                backend, region, _ = self._queue.popleft()
            except IndexError:  # another thread was quicker
                break
            begun += 1
            try:
                threading.Thread(target=_release_late, args=(backend, region), name="aslab late release").start()
            except RuntimeError:  # the interpreter is shutting down: its end releases the memory
                log.debug("no thread for a late release: %r", backend)
        return begun

    def _checked(self, backend: Backend, region: object, nbytes: int, align: int) -> Region:
        if not isinstance(region, Region):
            raise BackendError(f"{backend!r} returned {region!r}; allowed is an aslab.backends.Region")
        memory: object = region.memory
        if not isinstance(memory, memoryview):
            fault = f"memory of type {type(memory).__name__}; allowed is a memoryview"
        elif memory.readonly or not memory.c_contiguous or memory.format != "B" or memory.ndim != 1:
            fault = "a view that is not writable, contiguous, flat bytes"
        elif memory.nbytes < nbytes:
            fault = f"{memory.nbytes} bytes; allowed is at least the {nbytes} asked for"
        elif region.address % align:
            fault = f"memory at {region.address:#x}; allowed is a multiple of the alignment {align}"
        else:
            return region
        self.release(backend, region)
        raise BackendError(f"{backend!r} returned {fault}")


def _unexpected(backend: Backend, call: str, exc: Exception) -> BackendError:
    return BackendError(f"{backend!r}.{call} raised {exc!r}; allowed is MemoryError when there is no memory")


def _release_late(backend: Backend, region: Region) -> None:
    try:
        anyio.run(backend.release, region)
    except Exception:
        log.exception("%r failed to release a region after its allocator was closed", backend)
