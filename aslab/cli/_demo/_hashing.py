"""Files opened, read and hashed in a thread.

Handing a call to a thread and back costs more than to hash a small file. So one call does as much as fits into
`CALL` seconds: many small files, or many pieces of a large one, each read into the same buffer. It ends then, even
in the middle of a file, so that there is progress to show, others get the buffer, and Ctrl-C never waits long.

All threads take their next file from one list, so that they end at about the same time, whatever the sizes.
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

if TYPE_CHECKING:
    from hashlib import _Hash

CALL = 0.5
"""Seconds after which a call ends, at the end of a piece."""
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


class Hasher:
    """Hashes files, one after another. Not for two threads at once. Close it when it is not to be finished.

    :param paths: what is left to do, shared by several of them, in several threads
    """

    def __init__(self, paths: deque[str]) -> None:
        self._paths = paths
        self._path = ""
        self._fd: int | None = None
        self._digest: _Hash = hashlib.sha256()

    @property
    def within(self) -> bool:
        """Whether the last call ended within a file."""
        return self._fd is not None

    def go_on(self, view: memoryview) -> Done:
        """Hash through ``view`` for `CALL` seconds, or until no file is left. Blocks; call it in a thread."""
        done = Done()
        until = time.monotonic() + CALL
        whole = [view]
        while True:
            try:
                if self._fd is None:
                    self._path, self._digest = self._paths.popleft(), hashlib.sha256()
                    self._fd = _open(self._path)
                self._read(self._fd, view, whole, done)
            except IndexError:
                return done
            except OSError as exc:
                done.unreadable.append(Unreadable(self._path, why(exc)))
                self.close()
            if time.monotonic() > until:
                return done

    def close(self) -> None:
        """Close the file that is open, if any."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _read(self, fd: int, view: memoryview, whole: list[memoryview], done: Done) -> None:
        """Read a piece and hash it. Slices are released, or they would keep the buffer in use."""
        nbytes = os.readv(fd, whole)
        if nbytes == len(view):
            _read_ahead(fd)
        done.nbytes += nbytes
        with view[:nbytes] as part:
            self._digest.update(part)
        if not nbytes:  # only that is the end of a file: some file systems give less than there is
            done.sums[self._path] = self._digest.hexdigest()
            self.close()


def _read_ahead(fd: int) -> None:
    """Have the kernel read ahead twice as far, where it can be told so."""
    if ADVISES:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _open(path: str) -> int:
    return os.open(path, FLAGS)
