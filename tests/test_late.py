"""Work left by a closed allocator, where threads or memory are short."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from aslab._kmem._late import LateWork, unfinished


def once_over(work: LateWork) -> None:
    end = time.monotonic() + 60
    while work.under_way and time.monotonic() < end:
        time.sleep(0.001)


def refuse(*_: object) -> NoReturn:
    raise MemoryError


def test_its_thread_is_awaited_where_no_exit_handlers_run_as_in_a_fork_of_multiprocessing() -> None:
    left, daemons = [1], []

    async def do() -> None:
        left.clear()
        daemons.append(threading.current_thread().daemon)

    work = LateWork(lambda: left, do)
    work.begin()
    once_over(work)
    assert daemons == [False]


@pytest.mark.parametrize("where", [_thread, threading.Thread])
def test_a_free_without_memory_for_a_thread_leaves_the_work_to_the_next_one(
    where: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1]

    async def do() -> None:
        left.clear()

    work = LateWork(lambda: left, do)
    with monkeypatch.context() as patch:
        patch.setattr(where, "start_new_thread" if where is _thread else "start", refuse)
        work.begin()
        once_over(work)
        assert work in unfinished
    work.begin()
    once_over(work)
    assert (left, work in unfinished) == ([], False)


def test_what_its_thread_failed_to_do_is_done_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    left, tries = [1], []

    async def do() -> None:
        tries.append(threading.current_thread())
        if len(tries) == 1:
            raise OSError("too many open files")
        left.clear()

    ignore: Callable[[threading.ExceptHookArgs], None] = lambda _: None  # noqa: E731
    monkeypatch.setattr(threading, "excepthook", ignore)
    work = LateWork(lambda: left, do)
    work.begin()
    once_over(work)
    assert work in unfinished
    work.finish()
    unfinished.discard(work)
    assert (left, tries[1]) == ([], threading.main_thread())
