"""Exceptions raised by client code, and where they end.

Constructors, destructors, move and reclaim callbacks, backends and pressure sources run inside tasks that serve
every cache. Whatever they raise stops there: an `asyncio.CancelledError` or a SystemExit that got out would end
those tasks, and all callers would wait forever. No state is kept here.
"""

from __future__ import annotations

import _thread
import logging

import anyio

log = logging.getLogger("aslab")


def log_failure(exc: BaseException, message: str, *args: object) -> None:
    """Log ``exc`` as an error, with its traceback, and pass a KeyboardInterrupt on. Any thread."""
    log.error(message, *args, exc_info=exc)
    keep_interrupt(exc)


def must_end(exc: BaseException, *, stopping: bool) -> bool:
    """Whether an exception from client code is meant to end the calling task rather than raised by the client."""
    return isinstance(exc, GeneratorExit) or (stopping and isinstance(exc, anyio.get_cancelled_exc_class()))


def keep_interrupt(exc: BaseException) -> None:
    """Raise Ctrl-C again in the main thread if ``exc`` is one, as the caller is about to swallow or wrap it."""
    if isinstance(exc, KeyboardInterrupt):
        _thread.interrupt_main()
