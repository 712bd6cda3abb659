"""What a client's code may raise, and what becomes of it.

Constructors, destructors, move and reclaim callbacks, backends and pressure sources run inside of tasks that
serve every cache. Whatever they raise ends there: an `asyncio.CancelledError` or a SystemExit that went further
would end those tasks, and all callers would wait for ever.
"""

from __future__ import annotations

import _thread
import logging

import anyio

log = logging.getLogger("aslab")


def log_failure(exc: BaseException, message: str, *args: object) -> None:
    """Log it, with its traceback."""
    log.error(message, *args, exc_info=exc)
    keep_interrupt(exc)


def must_end(exc: BaseException, *, stopping: bool) -> bool:
    """Whether what came out of a client's code is the end of the task that called it, and not the client's own."""
    return isinstance(exc, GeneratorExit) or (stopping and isinstance(exc, anyio.get_cancelled_exc_class()))


def keep_interrupt(exc: BaseException) -> None:
    """What is about to be swallowed, or wrapped for somebody else, may be Ctrl-C: have it come again."""
    if isinstance(exc, KeyboardInterrupt):
        _thread.interrupt_main()
