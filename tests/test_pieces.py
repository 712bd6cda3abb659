"""Long calls cut into pieces: in several threads, undone by the last of them, never while one is at work."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest

from aslab.backends import _threads
from aslab.backends._pieces import Piece, cut, each_piece
from aslab.backends._threads import NoThread

pytestmark = pytest.mark.anyio
PIECES = list(cut(0, 8, 1))


class Work:
    """Calls that are counted, and wait at one piece until they may go on."""

    def __init__(self, *, stuck_at: int = -1, fails_at: int = -1) -> None:
        self.stuck_at, self.fails_at = stuck_at, fails_at
        self.done: list[int] = []
        self.undone: list[list[Piece]] = []
        self.threads: set[int] = set()
        self.undone_while_at_work = False
        self.at_work = 0
        self.stuck, self.go, self.over = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def call(self, address: int, nbytes: int) -> None:
        with self._lock:
            self.at_work += 1
            self.threads.add(threading.get_ident())
        try:
            if address == self.stuck_at:
                self.stuck.set()
                assert self.go.wait(60)
            if address == self.fails_at:
                raise MemoryError("as it is")
            with self._lock:
                self.done.append(address)
        finally:
            with self._lock:
                self.at_work -= 1

    def undo(self, done: list[Piece]) -> None:
        self.undone_while_at_work |= self.at_work > 0
        self.undone.append(list(done))
        self.over.set()


async def until(told: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not told():
            await anyio.sleep(0.001)


def test_cut_covers_everything_once() -> None:
    assert list(cut(100, 10, 4)) == [(100, 4), (104, 4), (108, 2)]
    assert list(cut(100, 8, 8)) == [(100, 8)]


@pytest.mark.parametrize("threads", [1, 2, 20])
async def test_each_piece_is_done_once(threads: int) -> None:
    work = Work()
    await each_piece(PIECES, work.call, undo=work.undo, threads=threads)
    assert sorted(work.done) == list(range(8))
    assert len(work.threads) <= threads
    assert not work.undone


async def test_a_second_thread_goes_on_while_one_is_stuck() -> None:
    work = Work(stuck_at=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: each_piece(PIECES, work.call, undo=work.undo, threads=2))
        await until(lambda: len(work.done) == 7)
        work.go.set()
    assert sorted(work.done) == list(range(8))
    assert len(work.threads) == 2


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_failure_stops_the_others_and_is_undone_before_it_comes_out(threads: int) -> None:
    work = Work(fails_at=2)
    with pytest.raises(MemoryError, match=r"^as it is$"):
        await each_piece(PIECES, work.call, undo=work.undo, threads=threads)
    assert len(work.done) < 8
    assert [sorted(done) for done in work.undone] == [[(address, 1) for address in sorted(work.done)]]


@pytest.mark.parametrize("threads", [1, 2])
async def test_cancelled_it_returns_at_once_and_the_last_thread_undoes(threads: int) -> None:
    work = Work(stuck_at=3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: each_piece(PIECES, work.call, undo=work.undo, threads=threads))
        await until(work.stuck.is_set)
        tasks.cancel_scope.cancel()
    assert not work.undone
    work.go.set()
    await until(work.over.is_set)
    assert not work.undone_while_at_work
    assert [sorted(done) for done in work.undone] == [[(address, 1) for address in sorted(work.done)]]
    if threads == 1:
        assert work.done == [0, 1, 2, 3]


async def test_cancelled_before_it_began_it_is_undone_all_the_same() -> None:
    work = Work()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await each_piece(PIECES, work.call, undo=work.undo, threads=2)
    await until(work.over.is_set)
    assert len(work.undone) == 1
    assert not work.undone_while_at_work


async def test_it_does_with_the_threads_that_the_limiter_has() -> None:
    limiter = anyio.CapacityLimiter(1)
    _threads._limiter.set(limiter)
    work = Work()
    with anyio.fail_after(60):
        await each_piece(PIECES, work.call, undo=work.undo, threads=4)
    assert len(work.threads) == 1
    await until(lambda: limiter.borrowed_tokens == 0)  # of a thread that found nothing left to do


async def test_no_thread_at_all_is_undone_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(call: Callable[[], object], *, undo: object = None) -> None:
        if undo is not None:
            raise NoThread("none")
        call()

    monkeypatch.setattr("aslab.backends._pieces.run_blocking", refuse)
    work = Work()
    with pytest.raises(NoThread):
        await each_piece(PIECES, work.call, undo=work.undo, threads=3)
    assert work.undone == [[]]
