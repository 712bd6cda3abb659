"""Work in several processes, for very many files: where those are small, one process is held up by its GIL.

They are forks, made before there is a loop, a thread or an allocator. So each has its own of these, with its share
of the limit, as the workers of a web server do.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

PLACE = 4
"""Bytes of a place in a list."""
FITS = 2**10
"""Places that fit into a pipe, which may be as small as a page."""


class Lost(Exception):
    """One of the processes ended too early."""


class Shared:
    """Files for several processes, which all take the next ones from one list, as threads do from a deque.

    Places in the list are in a pipe from the beginning, and the system gives each to one process. Make it before
    the forks, and close it. Its methods are for any thread.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._few = max(1, -(-len(files) // FITS))
        self._taken: deque[str] = deque()
        self._pipe, write = os.pipe()
        with open(write, "wb") as pipe:  # noqa: PTH123
            pipe.writelines(place.to_bytes(PLACE, "little") for place in range(0, len(files), self._few))
        self._ended = not files

    def __len__(self) -> int:
        """At most so many are left."""
        return len(self._taken) if self._ended else len(self._files)

    def popleft(self) -> str:
        """Take the next one.

        :raises IndexError: if none is left
        """
        while not self._ended:
            with contextlib.suppress(IndexError):
                return self._taken.popleft()
            place = os.read(self._pipe, PLACE)
            if place:
                first = int.from_bytes(place, "little")
                self._taken.extend(self._files[first : first + self._few])
            else:
                self._ended = True
        return self._taken.popleft()

    def close(self) -> None:
        """Close the pipe, in this process."""
        os.close(self._pipe)


def in_processes(number: int, work: Callable[[], T]) -> list[T]:
    """Do the work here and in forks of this process; return what each has returned. No thread may run.

    If it fails here, the others are killed.

    :raises Lost: if one of the others ended early
    """
    forks: list[_Fork[T]] = []
    try:
        while len(forks) < number - 1:
            forks.append(_Fork(work))
        return [work(), *(one.result() for one in forks)]
    finally:
        for one in forks:
            one.end()


class _Fork(Generic[T]):
    """A fork of this process that works. End it."""

    def __init__(self, work: Callable[[], T]) -> None:
        read, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _work_and_exit(work, write)
        os.close(write)
        self._pipe = open(read, "rb")  # noqa: PTH123, SIM115

    def result(self) -> T:
        """What its work has returned, when it has."""
        try:
            result: T = pickle.load(self._pipe)
        except (EOFError, pickle.UnpicklingError):
            raise Lost("one of its processes ended early") from None
        return result

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _work_and_exit(work: Callable[[], object], write: int) -> NoReturn:
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # it comes to all of a terminal; the first one tells
        with open(write, "wb") as pipe:
            pickle.dump(work(), pipe, pickle.HIGHEST_PROTOCOL)
    except BrokenPipeError:  # the first one is gone, by SIGKILL perhaps
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)  # what is still to be flushed, or to be done at exit, is the first one's
