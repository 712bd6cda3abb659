"""Giving memory back: on request, under pressure, and when it has been idle for long.

Always true, between calls:

    1. while free slabs are on their way back, an open pool is REAPING and does not grow (SPL): a slab that is soon
       wanted again must not be paid for twice
    2. objects that callers of the pool wait for stay
    3. a sealed allocator gives nothing back, as it could not grow again

Releases go through the allocator's queue (`Pool.release`), so a cancelled caller leaves nothing half done, and a
stuck release delays only other releases.

Event loop's thread only.
"""

from __future__ import annotations

import math
from typing import Any

import anyio

from .._checks import whole_number
from .._clients import log_failure
from ._arena import AGEING_STEPS
from ._holders import Member
from ._pool import Pool
from ._snapshot import held
from ._state import Mark

_REAPING = Mark.REAPING.value
_BUSY = (Mark.GROWING | Mark.REAPING).value


async def reap(pool: Pool[Any], *, drain: bool = True) -> int:
    """Give back every empty slab that nobody waits for. Suspends until they are back. Returns the number of bytes.

    :param drain: empty the magazine first
    """
    while pool.marks.bits & _REAPING:
        await pool.reaped.wait()
    if pool.settled:
        return 0
    if drain:
        pool.depot.drain()
    slabs = pool.depot.remove_empty(pool.kept_free)
    await pool.release(slabs).wait()
    return len(slabs) * pool.config.shape.slab_size


async def relieve(pool: Pool[Any], since: float, *, drain: bool) -> int:
    """Under pressure, give back what has been idle since ``since``; nothing while growing. Returns the bytes.

    Suspends only for slabs already on their way back, and for an interval at most.

    :param drain: empty the magazine first
    """
    with anyio.move_on_after(pool.arena.interval):
        while pool.marks.bits & _REAPING:
            await pool.reaped.wait()
    now = pool.arena.clock()
    if pool.marks.bits & _BUSY or pool.settled:
        return 0
    slabs = pool.depot.slabs
    pool.working_set.roll(now, slabs.restart_peak())
    if drain:
        pool.depot.drain()
        slabs.restart_peak()  # the peak counted slots in the magazine as in use
    in_use = slabs.slots_total - pool.depot.free
    given = pool.depot.remove_empty(max(pool.kept_free, pool.working_set.needed(since) - in_use))
    if given:
        pool.working_set.gave_back(now)
    pool.release(given)
    return len(given) * pool.config.shape.slab_size


def age(pool: Pool[Any], *, expires: bool) -> None:
    """Advance the pool's tick and its working set, and give back what has expired. Called by the ageing task."""
    slabs = pool.depot.slabs
    slabs.tick += 1
    used = [(member.counters.hits, member.counters.misses) for member in pool.members]
    pool.working_set.tick((used, pool.magazine.hits, slabs.slots_out, len(pool.magazine)))
    pool.working_set.roll(pool.arena.clock(), slabs.restart_peak())
    if not expires or pool.marks.bits & _REAPING or pool.settled:
        return
    until = slabs.tick - AGEING_STEPS - 1  # a slab of age N became empty at some time before tick N + 1
    if pool.working_set.idle_ticks >= AGEING_STEPS:
        pool.depot.drain(until)  # the slots of an idle magazine are as old as that
    pool.release(pool.depot.remove_empty(pool.kept_free, until))


def ask_clients(pool: Pool[Any], nbytes: float) -> int:
    """Ask clients to free objects of ``nbytes`` in all. Returns how many objects they report as freed."""
    freed = 0
    for member in tuple(pool.members):
        missing = nbytes - freed * pool.config.shape.stride
        if missing > 0:
            freed += _ask(pool, member, missing)
    return freed


def _ask(pool: Pool[Any], member: Member, nbytes: float) -> int:
    objects = held(pool, member.counters)
    if not math.isinf(nbytes):
        objects = min(objects, math.ceil(nbytes / pool.config.shape.stride))
    if member.reclaim is None or objects <= 0:
        return 0
    try:
        freed = member.reclaim(objects)
        whole_number("reclaim(n)", freed, 0)
    except BaseException as exc:
        log_failure(exc, "cache %r: its reclaim callback failed", member.name)
        return 0
    member.counters.reclaimed += freed
    return freed
