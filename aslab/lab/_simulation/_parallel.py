"""Many runs, in one process or in several; Ctrl-C ends all of them."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def for_each(
    once: Callable[..., T], runs: Collection[tuple[Any, ...]], jobs: int, note: Callable[[T], object]
) -> None:
    """Call ``once`` with each of the tuples. Blocks until all are done.

    :param jobs: so many processes at once; with 1, it is this one
    :param note: called here with what came of each, as they come; what it raises ends all of it
    """
    if jobs == 1:
        for run in runs:
            note(once(*run))
        return
    done: SimpleQueue[Future[T]] = SimpleQueue()
    with _processes(jobs) as pool:
        with _interrupts_wait():
            for run in runs:
                pool.submit(once, *run).add_done_callback(done.put)
        for _ in runs:
            note(_next(done))


def _next(done: SimpleQueue[Future[T]]) -> T:
    """The next to end. Takes no lock of a job that is under way: Ctrl-C would leave it taken."""
    return done.get().result()


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, gone at the end of the block; in the middle of their work, where that is an exception."""
    others = multiprocessing.active_children()
    # Failures of pages are part of the story, and counted; its caller decides what to log, so not here.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=logging.disable)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C comes at the end of the block; to processes that are started in it, never.

    A terminal sends it to them as well, in the middle of their imports or of a run. Who ends them is their parent.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
