"""Files in batches, opened, read and hashed in a thread.

Handing a call to a thread and back costs more than to hash a small file. So one call does as much as fits into
`CALL` seconds: many small files, or many pieces of a large one, each read into the same buffer. It ends then, even
in the middle of a file, so that there is progress to show, others get the buffer, and Ctrl-C never waits long.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._errors import why
from ._files import File, Unreadable

if TYPE_CHECKING:
    from hashlib import _Hash

CALL = 0.05
"""Seconds after which a call ends, at the end of a piece."""
FILES_MOST = 64
"""Files of one batch."""
BYTES_MOST = 4 * 2**20
"""Bytes of the files of one batch, unless it is one file."""
SHARES = 4
"""At least as many batches for each task, so that all end at about the same time."""


def batches(files: Sequence[File], tasks: int) -> Iterator[list[File]]:
    """Neighbours together, as many as a task takes at a time."""
    most = max(1, min(FILES_MOST, len(files) // (tasks * SHARES)))
    batch: list[File] = []
    nbytes = 0
    for file in files:
        if batch and (len(batch) == most or nbytes + file.size > BYTES_MOST):
            yield batch
            batch, nbytes = [], 0
        batch.append(file)
        nbytes += file.size
    if batch:
        yield batch


@dataclass(slots=True)
class Done:
    """What one call has done."""

    sums: dict[str, str] = field(default_factory=dict)
    """Of the files it has finished: SHA-256 in hexadecimal, by path."""
    unreadable: list[Unreadable] = field(default_factory=list)
    nbytes: int = 0
    """Bytes read."""
    over: bool = False
    """Whether the batch is finished."""


class Batch:
    """A batch that is being hashed. Not for two threads at once. Close it when it is not to be finished."""

    def __init__(self, files: Sequence[File]) -> None:
        self._files = iter(files)
        self._path = ""
        self._fd: int | None = None
        self._digest: _Hash = hashlib.sha256()

    def go_on(self, view: memoryview) -> Done:
        """Hash through ``view``, for `CALL` seconds or to the end of the batch. Blocks; call it in a thread."""
        done = Done()
        until = time.monotonic() + CALL
        while not done.over:
            try:
                if self._fd is None:
                    self._next(done)
                else:
                    self._read(self._fd, view, done)
            except OSError as exc:
                done.unreadable.append(Unreadable(self._path, why(exc)))
                self.close()
            if time.monotonic() > until:
                break
        return done

    def close(self) -> None:
        """Close the file that is open, if any."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _next(self, done: Done) -> None:
        file = next(self._files, None)
        if file is None:
            done.over = True
        else:
            self._path, self._digest = file.path, hashlib.sha256()
            self._fd = _open(file.path)

    def _read(self, fd: int, view: memoryview, done: Done) -> None:
        nbytes = _read_and_hash(fd, view, self._digest)
        done.nbytes += nbytes
        if nbytes < len(view):
            done.sums[self._path] = self._digest.hexdigest()
            self.close()


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _read_and_hash(fd: int, view: memoryview, digest: _Hash) -> int:
    """Fill the view, or reach the end of the file. Releases each slice, which would keep the buffer in use."""
    filled = 0
    while filled < len(view):
        with view[filled:] as rest:
            nbytes = os.readv(fd, [rest])
        if not nbytes:
            break
        filled += nbytes
    with view[:filled] as part:
        digest.update(part)
    return filled
