"""Files opened, read and hashed in a thread.

Handing a call to a thread and back costs more than to hash a small file. So one call does as much as fits into
`CALL` seconds: many small files, or many pieces of a large one, each read into the same buffer. It ends then, even
in the middle of a file, so that there is progress to show, others get the buffer, and Ctrl-C never waits long.

All threads take their next file from one list, so that they end at about the same time, whatever the sizes.

How many threads are worth it depends on the files. A thread gives the GIL away at each system call, and takes it
back. Alone it does so within nanoseconds; two threads that do little else wake each other each time, and together
take several times as long. So one thread goes first, alone. Others join it where its pieces are large, as hashing
those needs no GIL, or where it waits for the disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._errors import why
from ._files import Unreadable
from ._processes import FileQueue

if TYPE_CHECKING:
    from hashlib import _Hash

CALL = 0.5
"""Seconds after which a call ends, at the end of a piece."""
SMALL = 64 * 2**10
"""Bytes of a piece, on average, up to which a thread spends less time hashing than with system calls."""
QUICK = 100e-6
"""Seconds for a small piece, on average, up to which it cannot have come from a disk."""
ALONE, WAITING, TOGETHER = 0.5e-3, 5e-3, 50e-3
"""Seconds of a call after which it looks whether pieces are large, whether they come from a disk, and whether one
thread might be faster again."""
ADVISES = hasattr(os, "posix_fadvise")
FLAGS = os.O_RDONLY | os.O_CLOEXEC


@dataclass(slots=True)
class Done:
    """What one call has done."""

    sums: dict[str, str] = field(default_factory=dict)
    """Of the files it has finished: SHA-256 in hexadecimal, by path."""
    unreadable: list[Unreadable] = field(default_factory=list)
    nbytes: int = 0
    """Bytes read."""
    pieces: int = 0
    """How many times a buffer was filled, or a file ended before it was full."""
    several: bool | None = None
    """Whether several threads should go on from here, or one alone; None for as many as before."""


class Hasher:
    """Hashes files, one after another. Not for two threads at once. Close it when it is not to be finished.

    :param paths: what is left to do, shared by several of them, in several threads
    """

    def __init__(self, paths: deque[str] | FileQueue) -> None:
        self._paths = paths
        self._path = ""
        self._fd: int | None = None
        self._digest: _Hash = hashlib.sha256()
        self._advised = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: no file, and no rest of one."""
        return self._fd is None and not self._paths

    def go_on(self, view: memoryview, *, alone: bool = False) -> Done:
        """Hash through ``view`` for `CALL` seconds, or until no file is left. Blocks; call it in a thread.

        :param alone: whether this is the only thread at work; it ends earlier where that should change
        """
        done = Done()
        whole = [view]
        began = time.monotonic()
        while not self.finished and done.several is None:
            try:
                self._read(view, whole, done)
            except IndexError:  # another thread has taken the last one
                break
            except OSError as exc:
                done.unreadable.append(Unreadable(self._path, why(exc)))
                self.close()
            passed = time.monotonic() - began
            if _should_change(alone, passed, done):
                done.several = alone
            elif passed > CALL:
                break
        return done

    def close(self) -> None:
        """Close the file that is open, if any."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _read(self, view: memoryview, whole: list[memoryview], done: Done) -> None:
        """Read a piece and hash it. Slices are released, or they would keep the buffer in use."""
        if self._fd is None:
            self._path, self._digest, self._advised = self._paths.popleft(), hashlib.sha256(), False
            self._fd = _open(self._path)
        done.pieces += 1
        for _ in range(2):  # what is in a small file, and its end
            nbytes = os.readv(self._fd, whole)
            if not nbytes:  # only that is the end of a file: some file systems give less than there is
                done.sums[self._path] = self._digest.hexdigest()
                self.close()
                return
            done.nbytes += nbytes
            with view[:nbytes] as part:
                self._digest.update(part)
            if nbytes == len(view):
                break
        if not self._advised:
            self._advised = True
            _read_ahead(self._fd)


def _should_change(alone: bool, passed: float, done: Done) -> bool:
    """Whether several threads should go on where one was alone, or one alone where several were together."""
    large = done.nbytes > done.pieces * SMALL
    if alone:
        return (large and passed > ALONE) or passed > max(WAITING, done.pieces * QUICK)
    return passed > TOGETHER and not large


def _read_ahead(fd: int) -> None:
    """Have the kernel read ahead twice as far, where it can be told so."""
    if ADVISES:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _open(path: str) -> int:
    return os.open(path, FLAGS)
