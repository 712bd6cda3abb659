"""Every error of aslab, under one base; each says whose fault it is."""

from __future__ import annotations

import copy
import traceback

import anyio


class SlabError(Exception):
    """Base of all errors that aslab raises."""


class ConfigError(SlabError, ValueError):
    """The caller passed something that is not allowed; nothing was changed.

    The message names the field, what was given, and what is allowed.
    """

    def __init__(self, field: str, given: object, allowed: str) -> None:
        super().__init__(f"{field}: {given!r} is not allowed; {allowed}")
        self.field = field
        self.given = given
        self.allowed = allowed


class BufferFreedError(SlabError, ValueError):
    """The caller used a `Buffer` after freeing it, or freed it twice. Nobody else is harmed."""


class WrongCacheError(SlabError, ValueError):
    """The caller gave a buffer to a cache that it was not allocated from; it stays allocated."""


class CacheClosedError(SlabError, anyio.ClosedResourceError):
    """The caller used a cache that is closed, or it was closed while the caller waited."""


class SealedError(SlabError):
    """The caller asked a sealed allocator for what only growth can give."""


class BackendError(SlabError):
    """A backend broke its contract: too little memory, a wrong type, or an unexpected exception.

    Want of memory is not this: a backend says that with `MemoryError`, and growth is tried again.
    The backend's own exception, if there was one, is the ``__cause__``.
    """


class ConstructorError(SlabError):
    """The ``ctor`` of a cache raised; its exception is the ``__cause__``. What it had built was destroyed."""


class ImpossibleTransition(SlabError, RuntimeError):
    """A cache was told an event that its state does not allow: a bug in aslab, please report it."""


def copy_for_raise(error: Exception) -> Exception:
    """The same error again, to be raised in another task: a traceback belongs to one."""
    try:
        again = copy.copy(error)
    except Exception:  # a subclass whose constructor asks for more than its args
        again = error
    again.__cause__ = error.__cause__
    return again


def clear_frames(error: BaseException | None, older: BaseException | None = None) -> None:
    """Have the frames that an error went through let go of what they hold: memory that is to go back.

    Frames that still run keep theirs, and so does the error itself. From ``older`` on, which was being handled
    before, its context is none of our business.
    """
    seen = {older}
    while error is not None and error not in seen:
        seen.add(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
