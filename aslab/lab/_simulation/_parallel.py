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
    """Call ``once`` with each of the tuples. Blocks until all calls have returned.

    :param jobs: how many processes at once; 1 means this process
    :param note: called in this process with each result as it arrives; an exception from it ends everything
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
    """The next result. Takes no lock of a running job, which Ctrl-C would leave locked."""
    return done.get().result()


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that ends with the block; if that raises, its processes are terminated."""
    others = multiprocessing.active_children()
    # Page allocation failures are part of the story, and counted; whether to log them is up to the caller.
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
    """Ctrl-C is delivered at the end of the block, and never to processes started in it.

    A terminal signals them too, in the middle of an import or a run; but it is their parent that ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
