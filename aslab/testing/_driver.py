"""A driver of page locking that locks nothing: as slow, as stuck and as short of memory as a test wants it."""

from __future__ import annotations

import threading
import time

from ..backends._libc import PAGE_SIZE


class FakeDriver:
    """A `aslab.backends.Driver` for tests of services that use `aslab.backends.Pinned`, where there is no GPU.

    Like CUDA it refuses to lock a page twice, or to unlock what is not locked. Usable from any thread.

    :param latency: seconds that each registration takes
    :param stuck_at: which call of `register` is stuck until `let_go`, counted from 1
    :param most: bytes that can be locked at a time; above it is a `MemoryError`
    """

    def __init__(self, *, latency: float = 0.0, stuck_at: int | None = None, most: int | None = None) -> None:
        self.latency = latency
        self.stuck_at = stuck_at
        self.most = most
        self.registered: dict[int, int] = {}
        """Bytes by address, of what is locked now."""
        self.calls: int = 0
        """How often `register` was called."""
        self.stuck: threading.Event = threading.Event()
        """Set while a call is stuck."""
        self._go = threading.Event()
        self._lock = threading.Lock()

    def let_go(self) -> None:
        """Let the stuck call go on."""
        self._go.set()

    def register(self, address: int, nbytes: int) -> None:
        """Lock whole pages, or pretend to.

        :raises MemoryError: above ``most``
        :raises RuntimeError: if these are no whole pages, or some are locked already
        """
        with self._lock:
            self.calls += 1
            stuck = self.calls == self.stuck_at
        if stuck:
            self.stuck.set()
            self._go.wait()
            self.stuck.clear()
        time.sleep(self.latency)
        with self._lock:
            if address % PAGE_SIZE or nbytes % PAGE_SIZE or not nbytes:
                raise RuntimeError(f"{nbytes} bytes at {address:#x} are no whole pages")
            if any(start < address + nbytes and address < start + size for start, size in self.registered.items()):
                raise RuntimeError(f"pages at {address:#x} are locked already")
            if self.most is not None and sum(self.registered.values()) + nbytes > self.most:
                raise MemoryError(f"no more than {self.most} bytes can be locked")
            self.registered[address] = nbytes

    def unregister(self, address: int) -> None:
        """Unlock what was registered at this address.

        :raises RuntimeError: if nothing was
        """
        with self._lock:
            if self.registered.pop(address, None) is None:
                raise RuntimeError(f"nothing is locked at {address:#x}")
