"""Work in several processes, for very many files: where those are small, one process is held up by its GIL.

They are forks, made before there is a loop, a thread or an allocator. So each has its own of these, with its share
of the limit, as the workers of a web server do. The first process does no work itself: it waits for all of them at
once, so it knows soon when one was killed, and it alone is ended by signals. The others end with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Generic, NoReturn, TypeVar

T = TypeVar("T")

PLACE = 4
"""Bytes of a place in a list."""
FITS = 2**10
"""Places that fit into a pipe, which may be as small as a page."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command, and that come to all of its processes from a terminal or a service manager."""


class Lost(Exception):
    """One of the processes ended too early. The message is one line."""


class FileQueue:
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
    """Do the work in so many forks, in fewer if the system refuses more, here if it refuses all.

    Returns what each has returned. Blocks; no thread may run. None is left when this ends, however it does.

    :raises Lost: as soon as one of them was killed, or has failed
    """
    workers: list[_Worker[T]] = []
    life = os.pipe()
    try:
        with _signals_wait(), contextlib.suppress(OSError):
            while len(workers) < number:
                workers.append(_Worker(work, life))
        return _results(workers) if workers else [work()]
    finally:
        for one in workers:
            one.end()
        for end in life:
            os.close(end)


class _Worker(Generic[T]):
    """A fork of this process that works. End it.

    :param life: a pipe of the first process, whose end is that of the pipe
    :raises OSError: if the system refuses it
    """

    def __init__(self, work: Callable[[], T], life: tuple[int, int]) -> None:
        read, write = os.pipe()
        self.pipe: IO[bytes] = open(read, "rb")  # noqa: PTH123, SIM115
        with open(write, "wb") as pipe:  # noqa: PTH123
            try:
                self._pid = os.fork()
            except OSError:
                self.pipe.close()
                raise
            if self._pid == 0:
                _work_and_exit(work, pipe, life)

    def result(self) -> T:
        """What its work has returned. Blocks until that is there.

        :raises Lost: if it was killed, or has failed
        """
        try:
            result: list[T] = pickle.load(self.pipe)
        except (EOFError, pickle.UnpicklingError):
            raise Lost("a worker process was killed") from None
        if not result:
            raise Lost("a worker process failed")
        return result[0]

    def end(self) -> None:
        """Kill it, if it still runs."""
        self.pipe.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _results(workers: Sequence[_Worker[T]]) -> list[T]:
    results: list[T] = []
    with selectors.DefaultSelector() as selector:
        for one in workers:
            selector.register(one.pipe, selectors.EVENT_READ, one)
        while selector.get_map():
            for key, _ in selector.select():
                selector.unregister(key.fileobj)
                results.append(key.data.result())
    return results


def _work_and_exit(work: Callable[[], T], pipe: IO[bytes], life: tuple[int, int]) -> NoReturn:
    """What a fork does. The signals that waited for it to be made never come to it."""
    result: list[T] = []
    try:
        first_is_there, ours = life
        os.close(ours)
        threading.Thread(target=_exit_with_the_first, args=(first_is_there,), daemon=True).start()
        try:
            result.append(work())
        except BaseException:
            traceback.print_exc()
        pickle.dump(result, pipe, pickle.HIGHEST_PROTOCOL)
        pipe.flush()
    finally:
        os._exit(0)  # what is still to be flushed, or to be done at exit, is the first one's


def _exit_with_the_first(first_is_there: int) -> None:
    os.read(first_is_there, 1)  # nothing is ever written
    os._exit(1)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that end this process are delivered at the end of the block, and never to forks made in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
