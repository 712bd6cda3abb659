"""An allocation that finds no free object: it waits, and there are four ways out.

    a free, or a grow that ends    all the objects that the first in line needs, at once
    growth is late                 emergency objects, if the cache may make them, new or just freed
    an error                       the cache was closed, or a backend broke its contract
    cancellation                   objects handed over meanwhile go to the next in line

Each caller is a small state machine: its states and transitions are `WAITS` in _waiters.py, and docs/states.md
draws them.

Always true, between calls:

    1. a sleeping caller stands in line, and whatever ends its state wakes it
    2. a caller decides anew each time it wakes, from what is true then; none polls
    3. `handover.busy` is False: the line is not being changed

Only the backend can be late, never the event loop. A caller at the limit, or whose slab has arrived and is being
built, waits without a timer: its time starts with growth, and again with each slab (as in SPL). When the time is
up, the loop first gets some turns, in which whatever a thread brought while the loop was busy is delivered.

A caller that tries for an emergency object stays in line, and takes what comes first. One refused by
``max_emergency`` or ``emergency_limit`` is woken with its permit when there is room.

Event loop's thread only, except `learn`, `at_hand` and `get_now`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from .._errors import copy_for_raise
from .._fastpath import Slot
from .._flags import FINISHES, KM, LEVEL, ORDINARY
from .._stats import Counters
from ._attempts import make, put_back
from ._frees import unpark
from ._holders import LONG, Member
from ._invariants import take_step
from ._pool import Pool
from ._snapshot import one_too_many, situation
from ._state import Mark
from ._waiters import Wait, Waiter, go

T = TypeVar("T")

TURNS = 10
"""Turns of the event loop before growth counts as late; a thread needs up to eight to start and report back."""
_GROWING = Mark.GROWING.value
_DEADLOCKED = Mark.DEADLOCKED.value


def learn(pool: Pool[Any], objects: int, level: int) -> None:
    """Note that a caller of ``level`` asks for ``objects`` at once, which may change the reserve. Any thread."""
    if level == FINISHES:
        pool.arena.permits.finishing = True
    kept = pool.reserve.kept
    pool.reserve.learn(objects, level, pool.growth.most)
    if pool.reserve.kept != kept:
        pool.arena.attend(pool, pool.handover.note)


def at_hand(pool: Pool[T], flags: KM, counters: Counters, *, runs: bool = False) -> Slot[T] | None:
    """Take a free object, or None, and count a hit or a miss. Any thread.

    :param runs: the caller is a running task or callback of the loop, and so may pass waiters for a moment
    :raises ConsistencyError: with debug letter F, at a miss, if the books do not add up; nothing was taken
    """
    if pool.debug is not None:
        pool.debug.used()
    level = LEVEL[flags]
    if level == FINISHES:
        learn(pool, 1, FINISHES)
    first = pool.waiters.first
    if first is None:
        try:
            slot = pool.magazine.pop()
        except IndexError:
            pass
        else:
            counters.hits += 1
            return slot
    elif runs and (passing := pool.handover.take_running(level)):
        counters.hits += 1
        return passing
    counters.misses += 1
    if pool.debug is not None and (error := take_step(pool)) is not None:
        raise error
    if pool.parking:
        unpark(pool)
    if pool.waiters.first is not None:
        return None
    depot = pool.depot
    found = (depot.take() if depot.magazine or depot.slabs.partial else None) or _take_set_aside(pool, level)
    return found or (depot.lingering.take() if depot.lingering else None)


def _take_set_aside(pool: Pool[T], level: int) -> Slot[T] | None:
    """Take an object from the reserve or a spare emergency object, or None. Any thread.

    From then on frees refill the reserve. Growth is asked for all the same.
    """
    if not (pool.reserve or pool.emergency.spares or pool.emergency.lingering):
        return None
    slot = pool.handover.take_set_aside(level)
    if slot is None:
        return None
    if slot.slab is None and not pool.marks.bits & _GROWING:
        pool.growth.missed = True
    pool.arena.attend(pool, pool.ask if slot.slab is None else pool.attend)
    return slot


def get_now(pool: Pool[T], flags: KM, member: Member) -> Slot[T]:
    """Make an emergency object for a caller that cannot wait and found no free object. Any thread.

    :raises anyio.WouldBlock: if none can be made at once
    :raises BackendError: if the backend breaks its contract
    :raises ConstructorError: if the cache's ``ctor`` raises
    """
    level = LEVEL[flags]
    pool.growth.missed = True
    pool.arena.attend(pool, pool.ask)
    if pool.growth.limit_reached:
        member.counters.sealed += pool.arena.budget.sealed
        why = "its limit is reached"
    elif not pool.emergency.try_charge(1, level):
        pool.arena.permits.clear_spares()  # makes room for the next caller that asks
        why = "there is no room for another emergency object"
    else:
        try:
            return pool.emergency.make_nowait(flags)
        except MemoryError:
            why = "the backend has no memory for an emergency object"
        except anyio.WouldBlock:
            why = "an emergency object cannot be made without waiting"
    raise anyio.WouldBlock(f"{situation(pool, member.name, member.counters)}: no object is free, and {why}")


async def wait(
    pool: Pool[T], flags: KM, need: int, counters: Counters, timeout: float | None = None
) -> list[Slot[T]]:
    """Join the line and suspend until there are ``need`` objects, whichever way they come first.

    If cancelled, objects handed over meanwhile go to the next in line.

    :raises Expired: after ``timeout`` seconds
    :raises TooManyWaiting, CacheClosedError, BackendError, ConstructorError: like `Cache.alloc`
    """
    arena, handover, most = pool.arena, pool.handover, pool.config.max_waiting
    if most is not None and counters.waiters >= most and LEVEL[flags] == ORDINARY:
        raise one_too_many(pool, counters, most)
    now = arena.clock()
    waiter: Waiter[T] = Waiter(arena.alarms, flags, next(arena.tickets), need, counters, now)
    if timeout is not None:
        waiter.deadline = now + timeout
    counters.waiters += 1
    handover.busy = True
    pool.waiters.join(waiter)
    handover.busy = False
    if pool.waiters.first is waiter:  # behind others it changes nothing
        pool.line_changed()
    state, served = Wait.LOOKING, False
    try:
        while True:
            state = go(state, _decide(pool, waiter))
            if waiter.slots is not None:
                if pool.reserve.objects and pool.reserve.short:
                    pool.ask()
                handover.given -= need
                served = True
                return waiter.slots
            if state is Wait.FAILED and waiter.error is not None:
                raise copy_for_raise(waiter.error)
            if state is Wait.JUDGING:
                await _judge(pool, waiter)
            elif state is Wait.MAKING:
                made = await _make(pool, waiter)
                if made is not None:
                    state, served = go(state, Wait.SERVED), True
                    return made
            else:
                until = waiter.until if waiter.beside is None else min(waiter.until, handover.kept_from(waiter))
                while True:
                    await waiter.suspend(until, idle=True)
                    waiter.idle = False
                    if not waiter.told or _has_some(pool, waiter):  # else another was quicker
                        break
                if waiter.untimed:
                    _has_timer(pool, waiter)
            state = go(state, Wait.LOOKING)
    except BaseException:
        if waiter.slots is not None:  # handed over, but cancelled before it ran
            handover.given -= need
            pool.give_back(waiter.slots)
        raise
    finally:
        _leave(pool, waiter, served)


def _has_some(pool: Pool[T], waiter: Waiter[T]) -> bool:
    """Whether the object that ``waiter`` was told of is still free; if not, frees tell it again from now on."""
    handover, level = pool.handover, pool.handover.standing(waiter)
    if handover.at_hand(level):
        return True
    handover.note()
    return handover.at_hand(level) > 0  # by another thread, before frees were watched for


def _leave(pool: Pool[T], waiter: Waiter[T], served: bool) -> None:
    waiter.counters.waiters -= 1
    waited = pool.arena.clock() - waiter.since
    waiter.counters.wait_times.note(waited)
    if served and waited >= LONG:
        waiter.counters.waited_long = True
    if waiter.untimed:
        _has_timer(pool, waiter)
    if waiter.alarm is not None:
        pool.arena.alarms.forget(waiter)
    if waiter.slots is None:  # else it left the line when it was served
        pool.handover.busy = True
        pool.waiters.leave(waiter)
        pool.handover.busy = False
        if pool.waiters.ended is not None:
            pool.waiters.wake_next()
        pool.line_changed()
        pool.serve()  # objects too few for this waiter may suffice for the next
    first = pool.waiters.first
    if first is not None and (pool.emergency.backoff.failing or pool.growth.unwell):
        first.wake()  # it may now be its turn to have an emergency object made
    if waiter.refused_by is not None or waiter.seen is not None:
        pool.admission.withdraw(waiter)


def _has_timer(pool: Pool[T], waiter: Waiter[T]) -> None:
    waiter.untimed = False
    pool.waiters.untimed -= 1


def _decide(pool: Pool[T], waiter: Waiter[T]) -> Wait:
    """Return the next state, from what is true now."""
    first = pool.waiters.first
    if first is waiter:  # only the first in line is told of frees, so only it looks
        pool.look(waiter)
    if waiter.slots is not None:
        return Wait.SERVED
    if waiter.error is None:
        waiter.error = pool.waiters.ended  # woken by something else, before its turn to be sent away
    if waiter.error is not None:
        return Wait.FAILED
    growth, at_limit = pool.growth, False
    if not pool.marks.bits & _GROWING:
        behind = first is not None and first is not waiter and first.error is None
        at_limit = behind and growth.at_most  # no need to ask: the first has, and nobody else can make room
        if not at_limit and not pool.ask():
            at_limit = growth.at_limit
    if at_limit or growth.arrived:  # only a free can help, a new grow, or the slab that is being built
        state = Wait.UNTIMED
        waiter.timed_from, waiter.until = None, math.inf
        if not waiter.untimed:
            waiter.untimed = True
            pool.waiters.untimed += 1
        if at_limit:
            growth.reports.at_limit()
            if pool.arena.budget.sealed and not waiter.sealed:
                waiter.sealed = True
                waiter.counters.sealed += 1
    else:
        state, now = Wait.TIMED, pool.arena.clock()
        if waiter.timed_from is None:
            waiter.timed_from = now
        late = waiter.late_from == growth.due_from
        due = max(waiter.timed_from, growth.due_from) + growth.patience.of[waiter.level]
        if now >= due and not late:
            return Wait.JUDGING
        waiter.until = math.inf if late else due
        if late or pool.marks.bits & _DEADLOCKED:
            return _try_emergency(pool, waiter, now)
    if waiter.refused_by is not None or waiter.seen is not None:
        pool.admission.withdraw(waiter)
    return state


def _try_emergency(pool: Pool[T], waiter: Waiter[T], now: float) -> Wait:
    """Return the next state now that growth is late."""
    backoff = pool.emergency.backoff
    first = pool.waiters.first is waiter
    if waiter.permitted or not backoff.failing or (first and now >= backoff.retry_at(waiter.level)):
        waiter.granted = pool.admission.apply(waiter)
        return Wait.MAKING if waiter.granted else Wait.REFUSED
    if first:
        waiter.until = min(waiter.until, backoff.retry_at(waiter.level))
    return Wait.BACKING_OFF


async def _judge(pool: Pool[T], waiter: Waiter[T]) -> None:
    """Find out whether growth is late, and not just the event loop, now that its time is up."""
    if await _found_late(pool, waiter, pool.arena.clock() - waiter.until):
        waiter.late_from = pool.growth.due_from
        waiter.counters.timeouts += 1
        pool.growth.late()


async def _make(pool: Pool[T], waiter: Waiter[T]) -> list[Slot[T]] | None:
    """Make one attempt at emergency objects; objects handed over in line meanwhile are preferred."""
    made = await make(pool, waiter, waiter.granted)
    slots: list[Slot[T]] | None = None
    if len(made) == waiter.granted and waiter.slots is None and waiter.error is None:
        need, handover = waiter.need - waiter.granted, pool.handover
        slots = handover.collect(need, handover.standing(waiter)) if need else []
    if slots is None:
        put_back(pool, made)
        return None
    pool.emergency.in_hand -= len(made)
    return slots + made


async def _found_late(pool: Pool[Any], waiter: Waiter[Any], lag: float) -> bool:
    """Whether growth is late, rather than the event loop late in hearing of it.

    On a busy loop, a waiter whose time is up knows little: the thread that brings its slab may have finished long
    ago. So the loop first gets time to catch up: as long as it was late in waking this waiter, since all else was
    as late, and then some turns to deliver what has come. One waiter does this for all whose time is up; the
    others sleep until it has finished.

    :param lag: seconds by which the waiter was woken late
    """
    growth = pool.growth
    if growth.found_late == growth.due_from:
        return True
    if growth.judging:
        waiter.undecided = True
        try:
            await waiter.suspend(math.inf)
        finally:
            waiter.undecided = False
        return False
    growth.judging = True
    try:
        if lag > 0:
            await waiter.suspend(pool.arena.clock() + lag)
        for _ in range(TURNS):
            if _is_well(pool, waiter):
                return False
            await anyio.lowlevel.checkpoint()
        if _is_well(pool, waiter):
            return False
        growth.found_late = growth.due_from
        return True
    finally:
        growth.judging = False
        pool.waiters.wake_undecided()


def _is_well(pool: Pool[Any], waiter: Waiter[Any]) -> bool:
    if waiter.slots is not None or waiter.error is not None or pool.growth.arrived:
        return True
    return not pool.marks.bits & _GROWING and pool.growth.at_limit


async def fill(pool: Pool[T], objects: int, counters: Counters) -> None:
    """Grow and suspend until ``objects`` are free.

    :raises CacheClosedError, BackendError, ConstructorError: like `Cache.alloc`
    """
    await _until(pool, objects, counters, lambda: pool.depot.free >= objects)


async def ready(pool: Pool[T]) -> None:
    """Grow and suspend until the reserve is full. Raises like `fill`."""
    await _until(pool, 0, pool.arena.counters, lambda: not pool.reserve.short)


async def _until(pool: Pool[T], objects: int, counters: Counters, done: Callable[[], bool]) -> None:
    arena = pool.arena
    filler: Waiter[T] = Waiter(arena.alarms, KM.SLEEP, next(arena.tickets), objects, counters, arena.clock())
    while not done():
        woken = filler.suspend(math.inf, counts=False)  # before it asks, as whatever that changes must wake it
        pool.waiters.begin_to_fill(filler, done)
        try:
            pool.ask()
            if not done():  # else a free on another thread came before frees were watched for
                await woken
        finally:
            pool.waiters.end_to_fill(filler)
        if filler.error is not None:
            raise copy_for_raise(filler.error)
