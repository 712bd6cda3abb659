"""Work left by a closed allocator: done in a thread with an event loop of its own.

What it comes from may be a free by the garbage collector, which runs anywhere: also within `threading`, which then
holds a lock that each new `threading.Thread` takes before its `start` returns. So no free waits for one. It starts
a thread that `threading` does not know, and that starts the other.

Always true: whatever has to be done is done by one thread at a time; or else, once the interpreter starts no
threads any more, by the main thread as it ends. A child made by fork does none of its parent's.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
from collections.abc import Awaitable, Callable

import anyio

unfinished: set[LateWork] = set()
"""What has a thread, or was to have one."""


class LateWork:
    """Work that a thread does, whenever there is some.

    :param left: whether there is some
    :param do: does all there is
    """

    def __init__(self, left: Callable[[], object], do: Callable[[], Awaitable[object]]) -> None:
        self._left = left
        self._do = do
        self._busy = threading.Lock()

    @property
    def under_way(self) -> bool:
        """Whether it has a thread, or is about to."""
        return self._busy.locked()

    def begin(self) -> None:
        """Have it done, unless it is being done already. Returns at once. Any thread; takes no lock."""
        if sys.is_finalizing():
            return  # the end of the process releases all memory
        if self._left() and self._busy.acquire(blocking=False):
            unfinished.add(self)
            try:
                _thread.start_new_thread(self._start, ())
            except (RuntimeError, MemoryError):  # there is none to be had now, or ever
                self._busy.release()

    def _start(self) -> None:
        try:
            # Else a daemon, as this thread counts as one; and a fork of multiprocessing ends without `_finish`.
            threading.Thread(target=self._run, name="aslab late releases", daemon=False).start()
        except (RuntimeError, MemoryError):
            self._busy.release()

    def _run(self) -> None:
        try:
            anyio.run(self._do)
            unfinished.discard(self)  # if there was no loop to be had, the main thread has a last try
        finally:
            self._busy.release()
        self.begin()  # what has come while this thread was ending

    def finish(self) -> None:
        """Do what no thread was started for. Main thread only, as the interpreter ends."""
        with self._busy:
            if self._left():
                anyio.run(self._do)


def _finish() -> None:
    for work in list(unfinished):
        work.finish()


atexit.register(_finish)
os.register_at_fork(after_in_child=unfinished.clear)
