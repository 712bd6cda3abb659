"""Another process, for the acts that need one. It ends with its block, whatever happens; signals are for us."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import anyio
from anyio import to_thread

OURS_ALONE = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""They come to all processes of a terminal at once. The other process is killed when ours has ended its work."""


class Lost(Exception):
    """The other process ended too early."""


class Other:
    """Another process, at the end of a pipe. Made by `other`."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe: Connection = pipe

    async def hear(self) -> Any:
        """What it says next."""
        return await self.call(self.pipe.recv)

    async def ask(self, question: object) -> Any:
        """Its answer."""
        await self.call(self.pipe.send, question)
        return await self.hear()

    async def call(self, function: Callable[..., Any], *args: object, abandon: bool = True) -> Any:
        """Call a function that uses the pipe, in a thread. If the process ends meanwhile, so does the block."""
        try:
            return await to_thread.run_sync(function, *args, abandon_on_cancel=abandon)
        except (EOFError, ConnectionError):
            await anyio.sleep_forever()


@asynccontextmanager
async def other(target: Callable[..., None], *args: object) -> AsyncIterator[Other]:
    """Run ``target(pipe, *args)`` in a new process until the end of the block, where it is killed.

    :raises Lost: if it ends earlier, whatever the block waits for
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(target, theirs, *args), daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS_ALONE)  # which new processes inherit, for good
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, OURS_ALONE)  # that has let some through again
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    ended = False
    try:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal ended
                await anyio.wait_readable(process.sentinel)
                ended = True
                group.cancel_scope.cancel()

            group.start_soon(watch)
            yield Other(ours)
            group.cancel_scope.cancel()
    except BaseExceptionGroup as group_of_one:  # the watch raises nothing
        raise group_of_one.exceptions[0] from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if ended:
        raise Lost(f"the other process ended early, with {process.exitcode}")


def _run(target: Callable[..., None], pipe: Connection, *args: object) -> None:
    with contextlib.suppress(EOFError, ConnectionError):  # the first process is gone, by SIGKILL perhaps
        target(pipe, *args)
