"""One long blocking call on a range of memory, cut into pieces: several threads share them, and each can stop.

A thread inside a system call cannot be stopped, but between two pieces it can. So a cancelled caller leaves at
once, every thread stops after the piece it is at, and the last of them undoes what was done. Memory is never
unmapped while a thread still works on it.

The threads are those of `run_blocking` and count against its limit. One thread is enough to finish: if the system
has no more, or the limit is reached, the others are not missed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import anyio

from ._threads import NoThread, in_thread, run_blocking

Piece = tuple[int, int]
"""Address and number of bytes."""


def cut(address: int, nbytes: int, size: int) -> Iterator[Piece]:
    """Pieces of ``size`` bytes; the last one may be shorter."""
    for offset in range(0, nbytes, size):
        yield address + offset, min(size, nbytes - offset)


async def each_piece(
    pieces: list[Piece],
    call: Callable[[int, int], object],
    *,
    undo: Callable[[list[Piece]], object],
    threads: int = 1,
) -> None:
    """Call ``call(address, nbytes)`` for each piece, in up to ``threads`` threads at once. All or nothing.

    If a call raises, no more are begun, and what it raised comes out after ``undo(done)`` was called in a thread,
    with the pieces that were done. If cancelled, ``undo`` is called by the thread that ends last.

    :raises NoThread: if not a single thread can be started
    """
    team = _Team(pieces, call, undo)
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(min(threads, len(pieces))):
                tasks.start_soon(_member, team, tasks.cancel_scope)
    except BaseException:
        team.abandon()
        raise
    if team.complete:
        return
    await run_blocking(partial(undo, team.done))
    raise team.error or NoThread("no thread can be started")


async def _member(team: _Team, others: anyio.CancelScope) -> None:
    try:
        await run_blocking(team.work, undo=_nothing)
    except NoThread:
        return
    if team.over:  # those that still wait for a thread are not needed
        others.cancel()


def _nothing(result: None) -> None:
    """Undo nothing: the team does it."""


class _Team:
    """The pieces that threads take one after the other."""

    def __init__(
        self, pieces: list[Piece], call: Callable[[int, int], object], undo: Callable[[list[Piece]], object]
    ) -> None:
        self.done: list[Piece] = []
        self.error: BaseException | None = None
        self._left = deque(pieces)
        self._call = call
        self._undo = undo
        self._lock = threading.Lock()
        self._running = 0
        self._abandoned = False

    @property
    def complete(self) -> bool:
        """Whether every piece is done."""
        with self._lock:
            return not self._left and not self._running and self.error is None

    @property
    def over(self) -> bool:
        """Whether no thread has anything left to do."""
        with self._lock:
            return not self._running and (not self._left or self.error is not None)

    def work(self) -> None:
        """Take pieces until none is left, one has failed, or the caller has gone."""
        while (piece := self._take()) is not None:
            error = None
            try:
                self._call(*piece)
            except BaseException as exc:
                error = exc
            self._ended(piece, error)

    def abandon(self) -> None:
        """Begin no more, and undo: at once in a new thread, or by the thread that ends last."""
        with self._lock:
            self._abandoned = True
            idle = not self._running
        if idle:
            in_thread("aslab undo", partial(self._undo, self.done))

    def _take(self) -> Piece | None:
        with self._lock:
            if self._abandoned or self.error is not None or not self._left:
                return None
            self._running += 1
            return self._left.popleft()

    def _ended(self, piece: Piece, error: BaseException | None) -> None:
        with self._lock:
            self._running -= 1
            if error is None:
                self.done.append(piece)
            elif self.error is None:
                self.error = error
            last = self._abandoned and not self._running
        if last:
            self._undo(self.done)
