"""Moving objects: emergency objects into slabs, and objects of sparse slabs into fuller ones, to free whole slabs.

An object can move in two ways. A client that keeps references must be asked, as in illumos (kmem_cache_set_move):
its callback gets its handle and a new one, moves what it keeps, and returns an answer. In a ``movable`` cache no
client needs to be asked, since callers hold handles and not addresses: the bytes are copied, and the handle then
leads to the new place, unless it was pinned meanwhile (see `Pin`).

Always true, between calls:

    1. each object has one owner, whatever a client answers or raises
    2. a handle that is ``moving`` is held here; whoever frees it meanwhile leaves its old slot to the mover
    3. only one pool of an allocator moves objects at a time (`Arena.moving`)

The answers mean what they mean in illumos: NO spares the slab until it leaves the partial list, LATER counts as NO
the third time, and slots that come back go to the slabs, past the magazine. Repacking is the idea that SPL's
change of 2012 ends with.

Event loop's thread only; large objects are copied in a thread.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any, TypeVar, cast

import anyio
import anyio.lowlevel

from .._clients import log_failure
from .._errors import CorruptionError, SlabError
from .._fastpath import Buffer, ManagedBuffer, Slot
from .._flags import KMEM_CBRC, ORDINARY
from ..backends._threads import run_blocking
from ._arena import Arena
from ._frees import admit, clean_up, settle
from ._moving import Move
from ._pool import Pool
from ._slab import AT_ONCE as SLOTS_AT_ONCE
from ._slab import Slab
from ._slowpath import fill

T = TypeVar("T")

AT_ONCE = 256 * 2**10
"""Bytes copied before other tasks have their turn; larger objects are copied in a thread."""
STEPS = 8
"""Gentle passes empty slabs at most 1/8 full, then 2/8, ... 7/8: a step more each time (illumos)."""
MOST_FREE = 8
"""Defragmentation starts by itself when more than 1/8 of all objects are free (illumos)..."""
LEAST_SLABS = 101
"""... and there are at least this many slabs (illumos)."""
PATIENCE = 3
"""From this many times on, LATER counts as NO (illumos)."""


def tick(pool: Pool[Any]) -> None:
    """Start a gentle pass of defragmentation if many objects are free. Called by the ageing task."""
    moving, slabs = pool.moving, pool.depot.slabs
    if not moving.able:
        return
    moving.in_vain = False
    if len(slabs) >= LEAST_SLABS and pool.depot.free * MOST_FREE > slabs.slots_total:
        pool.ask_to_move(defragment=True)
    else:
        moving.step = 1


async def run(arena: Arena) -> None:
    """Move objects for the pools in the queue of moves, until cancelled."""
    while True:
        pool: Pool[Any] = await arena.moves.take()
        moving = pool.moving
        moving.asked, gently, moving.gently = False, moving.gently, False
        if gently:
            await defragment(pool, gently=True)
        elif pool.could_repack:
            await repack(pool)


async def repack(pool: Pool[Any]) -> None:
    """Move emergency objects into slabs, as far as they can move and there is or comes room for them. Suspends."""
    async with pool.arena.moving:
        await _repack(pool)


async def defragment(pool: Pool[Any], *, gently: bool = False) -> None:
    """Make one pass: repack, then empty sparse slabs into fuller ones. Suspends.

    :param gently: empty only slabs up to the current step's fullness, which rises by a step each pass
    """
    moving = pool.moving
    if not moving.able:
        return
    async with pool.arena.moving:
        await _repack(pool)
        steps = moving.step if gently else STEPS - 1
        moving.step = min(moving.step + 1, STEPS - 1)
        await _consolidate(pool, steps)


# -- repacking


async def _repack(pool: Pool[T]) -> None:
    moving = pool.moving
    slots = []
    for number, slot in enumerate(pool.emergency.objects()):
        if _owner(pool, slot) is not None:
            slots.append(slot)
        if number % SLOTS_AT_ONCE == SLOTS_AT_ONCE - 1:
            await anyio.lowlevel.checkpoint()
    pool.depot.drain()
    moved = 0
    try:
        for number, slot in enumerate(slots):
            owner = _owner(pool, slot)
            if owner is None:
                continue
            new = await _new_place(pool, len(slots) - number)
            if new is None:
                break
            moved += await _move(pool, owner, slot, new)
            del owner  # as in `_empty`
            await _pause(pool)
    finally:
        pool.growth.repacking = 0
        moving.in_vain = not moved
        pool.note_moving()


async def _new_place(pool: Pool[T], objects: int) -> Slot[T] | None:
    """Take a free slot of a slab, growing one if need be; None if callers wait, or no slab comes in time."""
    pool.growth.repacking = objects
    if pool.waiters.first is not None or pool.closed:
        return None
    slabs = pool.depot.slabs
    if not slabs.free:
        pool.depot.drain()
    if not slabs.free and not pool.growth.at_limit:
        with anyio.move_on_after(pool.growth.patience.of[ORDINARY]):
            try:
                await fill(pool, 1, pool.arena.counters)
            except SlabError:
                return None
    return None if pool.waiters.first is not None else pool.depot.take_packed()


# -- emptying sparse slabs


async def _consolidate(pool: Pool[T], steps: int) -> None:
    pool.depot.sort()
    if pool.reserve:
        pool.handover.empty_reserve()  # refilled from the fullest slabs
        pool.serve_all()
    for slab in pool.depot.sparse(steps, STEPS):
        if pool.waiters.first is not None or not pool.depot.may_empty(slab, steps, STEPS):
            break  # the rest are fuller
        if slab.in_use and slab.free and not slab.stays:
            await _empty(pool, slab)


async def _empty(pool: Pool[T], slab: Slab[T]) -> None:
    """Move everything out of a slab, or stop as soon as something has to stay."""
    out = [slot for slot in slab.slots if slot.out]
    for number, slot in enumerate(out):
        if _owner(pool, slot) is None:
            return
        if number % SLOTS_AT_ONCE == SLOTS_AT_ONCE - 1:
            await anyio.lowlevel.checkpoint()
    for slot in out:
        owner = _owner(pool, slot)
        if owner is None:  # freed meanwhile, or pinned
            pool.depot.drain()
            if slot.out:
                return
            continue
        new = None if pool.waiters.first is not None else pool.depot.take_packed(other_than=slab)
        if new is None or not await _move(pool, owner, slot, new):
            return
        del owner  # else we would keep a forgotten buffer alive while we wait
        await _pause(pool)


# -- one move


def _owner(pool: Pool[T], slot: Slot[T]) -> ManagedBuffer[T] | None:
    """Return the handle that leads to this slot, if the object can be moved now; else None."""
    owner = cast("ManagedBuffer[T] | None", slot.owner and slot.owner())
    return owner if owner is not None and not owner.moving and _may_move(pool, owner, slot) else None


def _may_move(pool: Pool[T], owner: ManagedBuffer[T], slot: Slot[T]) -> bool:
    return owner.leads_to(slot) and (pool.moving.callback is not None or not slot.in_use())


async def _move(pool: Pool[T], owner: ManagedBuffer[T], old: Slot[T], new: Slot[T]) -> bool:
    moving = pool.moving
    moving.in_hand += 1
    moving.since_pause += pool.config.shape.size
    if pool.debug is not None and not _admitted(pool, old, new):
        moving.in_hand -= 1
        return False
    if moving.callback is not None:
        return _ask(pool, owner, old, new, moving.callback)
    with pool.guard:
        begun = not owner.moving
        if begun:
            owner.moving, owner.touched = True, False  # before the look: see _managed.py
            # It may have been freed or pinned while we looked for a slot.
            owner.moving = begun = _may_move(pool, owner, old)
    if begun and pool.config.shape.size <= AT_ONCE:
        return _copy(pool, owner, old, new)
    if begun:
        # Even if we are cancelled the thread finishes: until then both slots are in use.
        return await run_blocking(partial(_copy, pool, owner, old, new))
    moving.in_hand -= 1
    _put_away(pool, new)
    return False


def _admitted(pool: Pool[T], old: Slot[T], new: Slot[T]) -> bool:
    """Whether the debug letters find nothing wrong with a slot to move to; else that is logged, and it is free."""
    try:
        admit(pool, new, old)
    except CorruptionError:
        return False
    return True


def _copy(pool: Pool[T], owner: ManagedBuffer[T], old: Slot[T], new: Slot[T]) -> bool:
    """Copy the bytes, then redirect the handle, unless it was freed or pinned meanwhile. Any thread."""
    if pool.debug is not None:
        pool.debug.used()
    ctypes.memmove(new.address, old.address, pool.config.shape.size)
    with pool.guard:
        there = owner.leads_to(old)
        moved = there and not owner.touched and not old.in_use()
        if moved:
            owner.lead_to(new)
            if pool.debug is not None:
                pool.debug.move(old, new)
        pool.moving.in_hand -= 1
        pool.moving.answers[KMEM_CBRC.YES if moved else KMEM_CBRC.LATER] += 1
        owner.moving = False
    if not moved:
        _put_away(pool, new)
    if moved or owner.left:  # left: it was freed meanwhile, and its slot left to us
        _put_away(pool, old)
    return moved


def _ask(pool: Pool[T], owner: ManagedBuffer[T], old: Slot[T], new: Slot[T], callback: Move) -> bool:
    """Ask the client to move the object. Whatever it does, each object ends up with exactly one owner."""
    if _owner(pool, old) is not owner:  # freed while we looked for a slot
        pool.moving.in_hand -= 1
        _put_away(pool, new)
        return False
    slab = cast("Slab[T] | None", old.slab)
    buf = owner.sibling(new)
    try:
        answer = callback(owner, buf, len(buf))
        if not isinstance(answer, KMEM_CBRC):
            raise TypeError(f"it returned {answer!r}; it must return a member of aslab.KMEM_CBRC")
    except BaseException as exc:
        log_failure(exc, "cache %r: the move callback failed; the object stays", pool.config.name)
        answer = KMEM_CBRC.NO
    finally:
        pool.moving.in_hand -= 1
    pool.moving.answers[answer] += 1
    old_goes = answer in (KMEM_CBRC.YES, KMEM_CBRC.DONT_NEED)
    cast("ManagedBuffer[T]", owner if answer is KMEM_CBRC.YES else buf).forget_note()
    if old_goes:
        _end(pool, owner)
    if answer is not KMEM_CBRC.YES:
        _end(pool, buf)
    if slab is not None and not old_goes:
        slab.later += answer is KMEM_CBRC.LATER
        slab.stays = slab.stays or answer is KMEM_CBRC.NO or slab.later >= PATIENCE
    return old_goes


def _end(pool: Pool[T], buf: Buffer[T]) -> None:
    """End a client's handle. Its slot goes to the slabs now, or once its memory is no longer exported."""
    slot = cast("ManagedBuffer[T]", buf).end_quietly()
    if slot is not None:
        _put_away(pool, slot)


def _put_away(pool: Pool[T], slot: Slot[T]) -> None:
    """Put a slot back into its slab, past the magazine. Any thread."""
    slot.owner = None
    if not clean_up(pool, slot):
        pool.depot.put(slot)
        settle(pool)


async def _pause(pool: Pool[T]) -> None:
    if pool.moving.since_pause >= AT_ONCE:
        pool.moving.since_pause = 0
        await anyio.lowlevel.checkpoint()
