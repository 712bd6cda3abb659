"""The invariants of a pool in one place: each part recounts itself the slow way, and all must add up.

    check        everything, where no other thread uses the pool: for tests
    validate     the same, and the objects with their red zones and poison
    take_step    debug letter F, on each step of the slow path: as much as holds at that moment

No state is kept here, and nothing is changed. Suspends nowhere.
"""

from __future__ import annotations

from typing import Any

from .._clients import log
from .._errors import ConsistencyError, CorruptionError
from .._fastpath import CLOSED, REPACK, SHORT, Slot
from .._stats import Counters
from ._debug import Debug, record_of
from ._holders import Member, who_holds
from ._pool import Pool
from ._snapshot import held, in_handover
from ._state import Mark, reachable

TOLD = 10
"""The most buffers that a warning tells of."""


def check(pool: Pool[Any]) -> None:
    """Recount everything, and compare with the counters. Event loop's thread only, with no other using the pool.

    :raises AssertionError: naming what does not add up
    """
    depot, magazine, emergency = pool.depot, pool.magazine, pool.emergency
    for part in (depot, pool.waiters, pool.handover, emergency, pool.admission):
        part.check()
    shape, growing = pool.config.shape, Mark.GROWING in pool.marks
    kept = depot.slabs.slots_total // shape.objects * shape.slab_size
    pool.account.check(kept, growing=growing, at_rest=pool.arena.slabs.at_rest)
    pool.arena.budget.check()
    magazine.check(SHORT, pool.arena.budget.short and not pool.closed)
    magazine.check(CLOSED, pool.closed)
    magazine.check(CLOSED, pool.closed, detour=True)
    if pool.moving.able and not pool.moving.in_vain and any(slot.owner for slot in emergency.objects()):
        magazine.check(REPACK, holds=True)

    name = pool.config.name
    of = [member.counters for member in pool.members] if pool.config.merge else [Counters()]  # any: none is read
    held_now = sum(held(pool, one) for one in of)
    noted = sum(len(member.holders) for member in pool.members)
    if noted > held_now:
        raise AssertionError(f"cache {name!r}: {noted} buffers noted as held, and {held_now} held")
    elsewhere = len(magazine) + len(pool.reserve) + in_handover(pool)
    elsewhere += len(depot.lingering) + len(emergency.lingering)
    accounted = held_now + depot.slabs.slots_total - depot.slabs.slots_out + elsewhere
    total = depot.slabs.slots_total + len(emergency)
    if accounted != total:
        raise AssertionError(
            f"held + free + cached + reserved + in hand-over + lingering: counted {accounted}, kept {total}"
        )
    if held_now < 0:
        raise AssertionError(f"cache {name!r}: {held_now} objects held")
    if pool.marks.state not in reachable():
        raise AssertionError(f"cache {name!r}: marks {pool.marks} cannot be reached")
    over = len(magazine) > max(0, magazine.capacity) and not pool.arena.left(pool)  # else the loop will flush it
    if over and depot.lock.acquire(blocking=False):
        depot.lock.release()
        raise AssertionError(f"cache {name!r}: magazine over its capacity")


def take_step(pool: Pool[Any]) -> ConsistencyError | None:
    """Check the books between two calls, if the letter F asks for it. Any thread, but not in a finaliser.

    Where other threads use the cache as well, or an object is being moved, only the slabs are checked, under their
    lock: the rest may be between two steps. What is wrong is returned, and logged, the first time.
    """
    debug = pool.debug
    if debug is None or not debug.consistency:
        return None
    debug.used()
    try:
        with pool.depot.lock:
            pool.depot.recount()
        if not (debug.threads or pool.moving.in_hand or pool.handover.busy):
            _check_twice(pool, debug)
    except AssertionError as exc:
        text = str(exc)
    else:
        return None
    if text in debug.told:
        return None
    debug.told.add(text)
    error = ConsistencyError(f"cache {pool.config.name!r}: the books do not add up: {text}", pool.config.name)
    log.error("%s", error)
    return error


def _check_twice(pool: Pool[Any], debug: Debug[Any]) -> None:
    """Check everything. What is wrong because something came in between is not wrong at a second look.

    That may be a finaliser, or a thread: the first step of a thread is to say that it uses the cache.
    """
    for last in (False, True):
        try:
            check(pool)
        except AssertionError:
            if last and not debug.threads:
                raise
        else:
            return


def validate(pool: Pool[Any]) -> list[CorruptionError]:
    """Check everything that the debug letters allow. Returns what was wrong, which is logged and restored."""
    debug = pool.debug
    if debug is None:
        return []
    found = debug.validate(_known(pool))
    error = take_step(pool)
    return found if error is None else [*found, error]


def left_behind(pool: Pool[Any], member: Member, damaged: list[CorruptionError]) -> list[str]:
    """Return warnings for a cache that has just been closed: of buffers still held, and of what was damaged."""
    name, found = member.name, []
    if count := held(pool, member.counters):
        text = f"cache {name!r} was closed with {count} buffers still held"
        if who := _where_held(pool):
            text = "\n".join((f"{text}:", *who))
        elif who := who_holds([member.holders]):
            text = "\n".join((f"{text}, of those noted:", *who))
        found.append(text)
    if damaged:
        found.append("\n".join((f"cache {name!r} was closed with damaged memory", *map(str, damaged))))
    return found


def _where_held(pool: Pool[Any]) -> list[str]:
    """Say where the buffers that callers hold were allocated, in lines; [] without debug letter U."""
    records = [record for slot in _known(pool) if (record := record_of(slot)) and record.held and record.allocated]
    lines = [line for record in records[:TOLD] for line in (f"at {record.address:#x}:", *record.story())]
    return [*lines, *([f"and {len(records) - TOLD} more"] if len(records) > TOLD else [])]


def _known(pool: Pool[Any]) -> list[Slot[Any]]:
    """Return the slots that were ever handed out, as far as debug letters keep records."""
    if pool.debug is None:
        return []
    return [*pool.depot.recorded(), *pool.emergency.objects(), *pool.emergency.spares]
