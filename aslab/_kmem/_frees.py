"""Frees: how a slot comes back into its pool, from any thread and at any moment.

    free      end the handle ──► magazine ── watched, or over its capacity ──► `settle`
    collected, by the garbage collector ──► the same, but the event loop settles
    forgotten, and still exported ──► parked ── the last export ends, or `unpark` ──► collected
    its view object is still alive ──► lingering ── that goes, or `look_at_lingering` ──► collected

Always true: a freed slot is in exactly one of those places, or given back. Nothing here waits for a lock held
elsewhere or for the event loop, as a finaliser may call it in the middle of anything; what cannot be done at once
is left to the loop (`Arena.attend_soon`). What the garbage collector calls takes ``ending`` by its default, as the
globals of this module may be gone by then: the end of the process releases all memory.

Any thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any, TypeVar, cast

from .._errors import CorruptionError, PoisonError, RedZoneError
from .._fastpath import KEPT, WAITERS, Buffer, EmergencySlot, KeptView, Noted, Slot
from .._sites import Site
from .._stats import Counters
from ._debug import site_of
from ._lingering import AT_ONCE, Parked, look_after_collections
from ._pool import Pool
from ._slab import zero_out
from ._state import Mark
from ._wakeup import take_turns

T = TypeVar("T")
_DESTROY = Mark.DESTROY.value


def take_back(pool: Pool[T], slot: Slot[T]) -> None:
    """Free a slot that may need more than the push onto the magazine, which `Buffer.free` does itself."""
    if not clean_up(pool, slot):
        if not (slot.kept and pool.depot.lingering.admit(slot)):
            pool.magazine.append(slot)
        if pool.magazine.watch or len(pool.magazine) > pool.magazine.capacity:
            settle(pool)
    elif pool.magazine.watch or (pool.growth.unwell and pool.emergency.spares):
        if pool.arena.on_its_thread and not pool.depot.lock.locked():  # else: perhaps in a finaliser
            _freed_single(pool)
        else:
            pool.arena.attend_soon(pool)


def give_back(pool: Pool[T], slots: list[Slot[T]]) -> None:
    """Free slots fetched for a thread that no longer wants them."""
    for slot in slots:
        take_back(pool, slot)


def admit(pool: Pool[T], slot: Slot[T], moved_from: Slot[T] | None = None) -> Site | None:
    """Have the debug letters, if there are any, check an object that is about to be handed out. Any thread.

    Returns where the caller is, or the owner of ``moved_from`` was, if a letter needs to know it.

    :raises CorruptionError: if it was damaged; it is free again
    """
    debug = pool.debug
    if debug is None:
        return None
    site = debug.site() if moved_from is None else site_of(moved_from)
    try:
        debug.hand_out(slot, site)
    except (RedZoneError, PoisonError):
        take_back(pool, slot)
        raise
    return site


def hand_out_all(pool: Pool[T], slots: list[Slot[T]], hand_out: Callable[[Slot[T]], Buffer[T]]) -> list[Buffer[T]]:
    """Make handles for several objects, or give all of them back if one of them was damaged.

    :raises CorruptionError: if one was
    """
    bufs: list[Buffer[T]] = []
    slots.reverse()
    try:
        while slots:
            bufs.append(hand_out(slots.pop()))
    except CorruptionError:  # that one is free again
        give_back(pool, slots)
        for buf in bufs:
            buf.free()
        raise
    return bufs


def settle(pool: Pool[Any]) -> None:
    """Finish a free that is watched for, or that filled the magazine beyond its capacity."""
    arena, magazine = pool.arena, pool.magazine
    closed = pool.marks.bits & _DESTROY  # then look at the lock even if the magazine is empty
    over = closed or len(magazine) > magazine.capacity or pool.depot.slabs.condemned is not None
    if over and not pool.depot.flush():
        arena.attend_soon(pool)
    elif closed:
        if arena.closed:  # there may be no event loop left to do it
            pool.empty_out()
        else:
            arena.attend(pool, pool.empty_out)
    elif magazine.watch:
        if pool.parking:
            unpark(pool)
        if get_ident() == arena.thread and not pool.depot.lock.locked():  # if locked, this may be a finaliser
            _freed(pool)
        else:
            arena.attend_soon(pool)


def _freed(pool: Pool[Any]) -> None:
    if pool.reserve.kept:
        pool.handover.claims.note()
    if pool.magazine.watch & ~(WAITERS | KEPT) or not pool.handover.tell():
        pool.serve_all()


def _freed_single(pool: Pool[Any]) -> None:
    if pool.reserve.kept:
        pool.handover.claims.note()
    pool.offer_spares()


def clean_up(pool: Pool[T], slot: Slot[T]) -> bool:
    """Zero a slot if ``init_on_free``, and free it if it is an emergency object. Returns whether it was one."""
    if pool.config.init_on_free:
        zero_out(slot)
    if pool.debug is not None:
        pool.debug.let_go(slot)
    if slot.slab is not None:
        return False
    keep = pool.growth.unwell
    pool.emergency.free(cast("EmergencySlot[T]", slot), keep=keep)
    if keep and not pool.growth.unwell:  # growth has just become well, on another thread
        pool.emergency.clear()
    if pool.emergency.lingering:
        pool.arena.attend_soon(pool)  # it may serve a waiter that no new object may be made for
    return True


def collected(pool: Pool[T], slot: Slot[T], *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
    """Free a slot that the garbage collector returns. Safe in a finaliser."""
    if ending():
        return
    if clean_up(pool, slot):
        if pool.emergency.spares:
            pool.arena.attend_soon(pool)
        return
    if not (slot.kept and pool.depot.lingering.admit(slot)):
        pool.magazine.append(slot)
    if pool.marks.bits & _DESTROY and pool.arena.closed:
        settle(pool)
    elif pool.magazine.watch or len(pool.magazine) > pool.magazine.capacity:
        pool.arena.attend_soon(pool)


def park(pool: Pool[T], counters: Counters, slot: Slot[T], emergency: bool, note: Noted | None) -> None:
    """Keep the slot of a forgotten handle until its memory is no longer exported."""
    pool.parking[slot] = Parked(counters, slot, emergency, note)
    if pool.closed:
        orphan(pool)
    else:  # found by a look if it cannot tell
        slot.tell_when_unused(partial(pool.arena.call_soon, partial(_fetch, pool, slot)))


def unpark(pool: Pool[Any]) -> None:
    """Look at a few parked slots, and take back those that are no longer exported."""
    for parked in pool.parking.look():
        _unpark(pool, parked)


def _fetch(pool: Pool[Any], slot: Slot[Any]) -> None:
    """Take back a parked slot whose last export has ended, unless a look was quicker. Any thread.

    Not at the end of the export itself: that view object is about to go, but would still count as kept.
    """
    parked = pool.parking.let_go(slot)
    if parked is not None:
        _unpark(pool, parked)


def _unpark(pool: Pool[Any], parked: Parked, *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
    if ending():
        return
    parked.counters.count_return(parked.emergency)
    if parked.note is not None:
        parked.note.end()
    collected(pool, parked.slot)


async def look_at_all(pool: Pool[Any]) -> None:
    """Look at all parked and lingering slots, letting other tasks run now and then. Event loop's thread only."""
    for number in range(-(-len(pool.parking) // AT_ONCE)):
        unpark(pool)
        await take_turns(number)
    lingering: Any
    for lingering in (pool.depot.lingering, pool.emergency.lingering):
        for number, slot in enumerate(tuple(lingering)):
            if lingering.let_go(slot):
                collected(pool, slot)
            await take_turns(number)


def view_gone(pool: Pool[Any], kept: KeptView, *, ending: Callable[[], bool] = sys.is_finalizing) -> None:
    """Take back the slot of a view object that has just gone, if the slot was lingering for it."""
    if ending():
        return
    if pool.debug is not None:
        pool.debug.used()
    slot: Any = kept.place
    lingering: Any = pool.emergency.lingering if slot.slab is None else pool.depot.lingering
    if lingering and lingering.let_go(slot):
        collected(pool, slot)
    if pool.parking:  # it may have been the last of a forgotten buffer, such as that of an abandoned thread
        _fetch(pool, slot)


def look_at_lingering(pool: Pool[Any]) -> None:
    """Take back the slots that need not linger any more."""
    if pool.debug is not None:
        pool.debug.used()
    for slot in (*pool.depot.lingering.look(), *pool.emergency.lingering.look()):
        collected(pool, slot)


def orphan(pool: Pool[Any]) -> None:
    """Watch the parked and lingering slots of a closed pool, as the ageing task may soon stop looking at it.

    Every garbage collection looks at each such pool. So it is watched only while slots linger.
    """
    pool.parking.orphan(partial(_unpark, pool))
    out = len(pool.depot.slabs) or len(pool.emergency)  # else nothing can linger any more
    if out and pool.depot.lingering.tell is None:
        look = partial(_none_lingers, pool)
        watch = pool.depot.lingering.tell = pool.emergency.lingering.tell = partial(look_after_collections, look)
        if not look():
            watch()


def _none_lingers(pool: Pool[Any]) -> bool:
    """Look once. Returns whether no slot lingers any more, so that no further look is needed."""
    look_at_lingering(pool)
    return not pool.depot.lingering and not pool.emergency.lingering
