"""Making emergency objects for waiters.

A task of the allocator makes each object. If its caller goes away, the attempt stays charged until it ends, and
the object goes to the pool. Once the backend has none, only the first in line tries, after a pause; when it gets
one, the next may try. So waiters do not all ask the backend in vain, and those whose progress frees memory come
first.

Always true: each object that room was set aside for ends up with its waiter, with the pool, or is not made; if it
is not made, its room is given up.

Event loop's thread only.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from .._clients import keep_interrupt
from .._errors import BackendError
from .._fastpath import Slot
from ._pool import Pool
from ._waiters import Waiter

T = TypeVar("T")


class Attempt(Generic[T]):
    """An emergency object in the making, for a waiter that may go away."""

    def __init__(self) -> None:
        self.wanted: bool = True
        self.over: bool = False
        self.slot: Slot[T] | None = None
        self.error: BaseException | None = None


async def make(pool: Pool[T], waiter: Waiter[T], objects: int) -> list[Slot[T]]:
    """Make ``objects``, for which room is set aside; fewer if the backend has no more, or the waiter is served.

    Room that is not used is given up. Suspends; if cancelled, the objects made go back to the pool.

    :raises BackendError: if the backend breaks its contract
    :raises ConstructorError: if the cache's ``ctor`` raises
    """
    emergency, clock = pool.emergency, pool.arena.clock
    made: list[Slot[T]] = []
    tried = 0
    try:
        while tried < objects and waiter.slots is None and waiter.error is None:
            tried += 1
            slot = await _one(pool, waiter)
            if slot is None:
                break
            made.append(slot)
    except MemoryError:
        emergency.backoff.failed(waiter.level, clock())
    except BaseException:
        put_back(pool, made)
        raise
    else:
        if made and emergency.backoff.failing:
            emergency.backoff.succeeded()
    finally:
        if tried < objects:
            emergency.uncharge(objects - tried)
    return made


def put_back(pool: Pool[T], made: list[Slot[T]]) -> None:
    """Give objects that the waiter does not need back to the pool."""
    if made:
        pool.emergency.in_hand -= len(made)
        pool.give_back(made)


async def _one(pool: Pool[T], waiter: Waiter[T]) -> Slot[T] | None:
    """Suspend until one object is made. Returns None if the waiter is served first.

    :raises MemoryError: if the backend has none
    """
    attempt: Attempt[T] = Attempt()
    tasks = pool.arena.tasks
    assert tasks is not None, "callers wait while the allocator runs"
    tasks.start_soon(_make, pool, attempt, waiter)
    try:
        while not (attempt.over or waiter.slots is not None or waiter.error is not None):
            await waiter.suspend(pool.look(waiter), counts=False)
    except BaseException:
        attempt.wanted = False
        if attempt.slot is not None:
            put_back(pool, [attempt.slot])
        raise
    attempt.wanted = False
    if attempt.error is not None:
        raise attempt.error
    return attempt.slot


async def _make(pool: Pool[Any], attempt: Attempt[Any], waiter: Waiter[Any]) -> None:
    try:
        slot = await pool.emergency.make(waiter.flags)
    except BaseException as exc:
        attempt.error = exc
        if isinstance(exc, GeneratorExit):
            raise
        if not isinstance(exc, Exception):  # client code must not end this task; or the allocator is stopping
            keep_interrupt(exc)
            attempt.error = BackendError(f"making an emergency object was ended by {exc!r}")
    else:
        if attempt.wanted:
            attempt.slot = slot
            pool.emergency.in_hand += 1
        else:
            pool.give_back([slot])
    finally:
        attempt.over = True
        waiter.wake()
