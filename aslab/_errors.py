"""All errors of aslab, under one base class; each says whose fault it is."""

from __future__ import annotations

import copy
import traceback
from typing import Any

import anyio


class SlabError(Exception):
    """Base of all errors that aslab raises."""


class ConfigError(SlabError, ValueError):
    """The caller passed something that is not allowed; nothing was changed.

    The message names the field and the value, and says what the value must be: ``allowed`` is a clause such as
    "it must be True or False". A ``message`` takes the place of all that, where
    the caller did not name the field.
    """

    def __init__(self, field: str, given: object, allowed: str, message: str = "") -> None:
        super().__init__(message or f"{field}: {given!r} is not allowed; {allowed}")
        self.field = field
        self.given = given
        self.allowed = allowed


class BufferFreedError(SlabError, ValueError):
    """The caller used a `Buffer` after freeing it, or freed it twice. No other buffer is affected."""


class DoubleFreeError(BufferFreedError):
    """The caller freed a buffer twice, in a cache with debug letter F. Says who freed it first. No harm done."""


class WrongCacheError(SlabError, ValueError):
    """The caller gave a buffer to a cache that did not allocate it. The buffer stays allocated."""


class CacheClosedError(SlabError, anyio.ClosedResourceError):
    """The cache is closed, or was closed while the caller waited."""


class TooManyWaiting(SlabError):
    """As many callers wait as ``max_waiting`` allows: the service is asked for more than it can do now.

    Nothing was allocated. A server answers such a request with 503 and lets the client try again.
    """


class SealedError(SlabError):
    """The caller asked a sealed allocator for something that takes growth."""


class CorruptionError(SlabError):
    """A debug letter found damage: by code that wrote where it must not, or by a bug of aslab. Base of the kinds.

    The first line of the message is all of it in short; a hex dump, and who allocated and freed, follow. It is
    raised by the operation that found it, not by the code that did the damage. By then the bytes are as they were,
    so nothing is lost, and the next operation goes on.
    """

    def __init__(self, message: str, cache: str, address: int | None = None, restored: str = "") -> None:
        super().__init__(message)
        self.cache = cache
        """The name of the cache."""
        self.address = address
        """Of the buffer; None if it is about none."""
        self.restored = restored
        """What was restored, in a line; "" if nothing was."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.cache, self.address, self.restored)


class RedZoneError(CorruptionError):
    """Somebody wrote past the end of a buffer, or before its start (letter Z)."""


class PoisonError(CorruptionError):
    """Somebody wrote to a buffer after it was freed (letter P). Nothing was allocated."""


class ConsistencyError(CorruptionError):
    """The books of a cache do not add up (letter F): a bug in aslab, please report it."""


class BackendError(SlabError):
    """A backend broke its contract: too little memory, a wrong type, or an unexpected exception.

    A backend that is out of memory raises `MemoryError` instead, and growth is retried. The backend's own
    exception, if any, is the ``__cause__``.
    """


class ConstructorError(SlabError):
    """The ``ctor`` of a cache raised; its exception is the ``__cause__``. Objects built so far were destroyed."""


class ImpossibleTransition(SlabError, RuntimeError):
    """A cache received an event that its state does not allow: a bug in aslab, please report it."""


def copy_for_raise(error: Exception) -> Exception:
    """A copy of the error for another task to raise: tasks must not share one traceback."""
    try:
        again = copy.copy(error)
    except Exception:  # a subclass whose constructor asks for more than its args
        again = error
    again.__cause__ = error.__cause__
    return again


def clear_frames(error: BaseException | None, older: BaseException | None = None) -> None:
    """Clear the local variables of the frames in an error's traceback: they may keep memory in use.

    Frames that are still running keep theirs, and so does the error itself. The chain of contexts is followed up
    to ``older``, the exception that was already being handled before.
    """
    seen = {older}
    while error is not None and error not in seen:
        seen.add(error)
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
