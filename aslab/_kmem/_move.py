"""Moving objects: emergency objects into slabs, and out of sparse slabs into fuller ones, so that whole slabs go.

Two ways to move one. A client that keeps what it was given somewhere must be asked, as in illumos
(kmem_cache_set_move): its callback gets the handle it has and a new one, moves what it kept, and answers. In a
cache that is ``movable`` nobody needs to be asked, since callers hold handles and not addresses: the bytes are
copied, and the handle then leads to the new place, unless somebody pinned it meanwhile (see `Pin`).

The rules of the answers are illumos': NO spares the slab until it leaves the partial list, LATER counts as NO the
third time, what comes back goes to the slabs and past the magazine, moves are one after another. Repacking is the
idea that the SPL change of 2012 ends with.

Event loop's thread only; large objects are copied in a thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from .._clients import log_failure
from .._errors import SlabError
from .._fastpath import Buffer, ManagedBuffer
from .._flags import KMEM_CBRC, ORDINARY
from ..backends._threads import run_blocking
from ._slab import AT_ONCE as SLOTS_AT_ONCE
from ._slab import Slab, Slot
from ._state import Mark

if TYPE_CHECKING:
    from ._pool import Pool

T = TypeVar("T")
Move = Callable[[Buffer[T], Buffer[T], int], KMEM_CBRC]

AT_ONCE = 256 * 2**10
"""Bytes that are copied between two chances for other tasks; a larger object is copied in a thread."""
STEPS = 8
"""A slab that is less than 1/8, 2/8, ... 7/8 full is emptied: a step further each time (illumos)."""
MOST_FREE = 8
"""Defragmentation starts by itself when more than 1/8 of all objects are free (illumos)."""
LEAST_SLABS = 101
"""... and there are so many slabs (illumos)."""
PATIENCE = 3
"""LATER is NO from the third time on (illumos)."""


class Mover(Generic[T]):
    """The moves of one pool."""

    def __init__(self, pool: Pool[T]) -> None:
        self.callback: Move[T] | None = None
        self.answers: dict[KMEM_CBRC, int] = dict.fromkeys(KMEM_CBRC, 0)
        self.in_hand: int = 0
        """New objects of moves under way."""
        self._pool = pool
        self._since_pause = 0  # bytes moved
        self._step = 1
        self._in_vain = False  # nothing could be repacked; tried again after a tick

    @property
    def able(self) -> bool:
        """Whether objects can be moved at all."""
        return self._pool.config.movable or self.callback is not None

    @property
    def hungry(self) -> bool:
        """Whether there are emergency objects that should move into slabs as objects of these come free."""
        return self.able and len(self._pool.emergency) > 0 and not self._in_vain

    @property
    def could_repack(self) -> bool:
        """Whether the time has come: nobody waits, and growth is well."""
        pool = self._pool
        return self.hungry and not pool.line and Mark.DEADLOCKED not in pool.marks and pool.depot.free > 0

    def tick(self) -> bool:
        """The ageing task looks; answers whether a pass of defragmentation should begin by itself."""
        self._in_vain = False
        slabs = self._pool.depot.slabs
        free = self._pool.depot.free
        if self.able and len(slabs) >= LEAST_SLABS and free * MOST_FREE > slabs.slots_total:
            return True
        self._step = 1
        return False

    async def repack(self) -> None:
        """Move emergency objects into slabs, as far as they can be moved and slabs may be had."""
        async with self._pool.engine.moving:
            await self._repack()

    async def defragment(self, *, gently: bool = False) -> None:
        """One pass: repack, then empty sparse slabs into fuller ones.

        :param gently: only slabs up to this turn's fullness, the next time a step more
        """
        if not self.able:
            return
        async with self._pool.engine.moving:
            await self._repack()
            steps = self._step if gently else STEPS - 1
            self._step = min(self._step + 1, STEPS - 1)
            await self._consolidate(steps)

    # -- repacking

    async def _repack(self) -> None:
        pool = self._pool
        slots = []
        for number, slot in enumerate(pool.emergency.objects()):
            if self._owner(slot) is not None:
                slots.append(slot)
            if number % SLOTS_AT_ONCE == SLOTS_AT_ONCE - 1:
                await anyio.lowlevel.checkpoint()
        pool.depot.drain(pool.engine.tick)
        moved = 0
        try:
            for number, slot in enumerate(slots):
                owner = self._owner(slot)
                if owner is None:
                    continue
                new = await self._new_place(len(slots) - number)
                if new is None:
                    break
                moved += await self._move(owner, slot, new)
                del owner  # as in `_empty`
                await self._pause()
        finally:
            pool.growth.repacking = 0
            self._in_vain = not moved

    async def _new_place(self, objects: int) -> Slot[T] | None:
        """A free object of a slab, grown if need be; None where callers want them, or none is to be had soon."""
        pool = self._pool
        pool.growth.repacking = objects
        if pool.line or Mark.DESTROY in pool.marks:
            return None
        if not pool.depot.slabs.free:
            pool.depot.drain(pool.engine.tick)
        if not pool.depot.slabs.free and not pool.growth.at_limit:
            with anyio.move_on_after(pool.growth.patience.of(ORDINARY)):
                try:
                    await pool.growth.fill(1, pool.tally)
                except SlabError:
                    return None
        return None if pool.line else pool.depot.take_packed()

    # -- emptying sparse slabs

    async def _consolidate(self, steps: int) -> None:
        pool = self._pool
        pool.depot.sort(pool.engine.tick)
        pool.repack_reserve()
        for slab in [slab for slab in reversed(pool.depot.slabs.partial) if slab.in_use]:
            fullest = next(iter(pool.depot.slabs.partial), None)
            if pool.line or slab is fullest or slab.in_use * STEPS > steps * slab.objects:
                break  # those that follow are fuller
            if slab.in_use and slab.free and not slab.stays:
                await self._empty(slab)

    async def _empty(self, slab: Slab[T]) -> None:
        """Move everything out of a slab, or stop as soon as something has to stay."""
        pool = self._pool
        out = [slot for slot in slab.slots if slot.out]
        for number, slot in enumerate(out):
            if self._owner(slot) is None:
                return
            if number % SLOTS_AT_ONCE == SLOTS_AT_ONCE - 1:
                await anyio.lowlevel.checkpoint()
        for slot in out:
            owner = self._owner(slot)
            if owner is None:  # freed meanwhile, or pinned
                pool.depot.drain(pool.engine.tick)
                if slot.out:
                    return
                continue
            new = None if pool.line else pool.depot.take_packed(other_than=slab)
            if new is None or not await self._move(owner, slot, new):
                return
            del owner  # else a forgotten buffer would come back while we wait
            await self._pause()

    # -- one move

    def _owner(self, slot: Slot[T]) -> ManagedBuffer[T] | None:
        """The handle that leads to this place, if it can be moved away now."""
        owner = cast("ManagedBuffer[T] | None", slot.owner and slot.owner())
        if owner is None or not owner.leads_to(slot) or owner.moving:
            return None
        return None if self.callback is None and slot.in_use() else owner

    async def _move(self, owner: ManagedBuffer[T], old: Slot[T], new: Slot[T]) -> bool:
        self.in_hand += 1
        self._since_pause += self._pool.config.shape.size
        if self.callback is not None:
            return self._ask(owner, old, new, self.callback)
        with self._pool.guard:
            begun = self._owner(old) is owner  # else it was freed or pinned while we looked for a place
            if begun:
                owner.moving, owner.touched = True, False
        if begun and len(owner) <= AT_ONCE:
            return self._copy(owner, old, new)
        if begun:
            # Even if we are cancelled, the thread does all of it: until it is done, both places are in use.
            return await run_blocking(partial(self._copy, owner, old, new))
        self.in_hand -= 1
        self._put_away(new)
        return False

    def _copy(self, owner: ManagedBuffer[T], old: Slot[T], new: Slot[T]) -> bool:
        """Copy the bytes, then have the handle lead there, unless it was freed or pinned meanwhile. Any thread."""
        ctypes.memmove(new.address, old.address, len(owner))
        with self._pool.guard:
            owner.moving = False
            there = owner.leads_to(old)
            moved = there and not owner.touched and not old.in_use()
            if moved:
                owner.lead_to(new)
            self.in_hand -= 1
            self.answers[KMEM_CBRC.YES if moved else KMEM_CBRC.LATER] += 1
        if not moved:
            self._put_away(new)
        if moved or owner.left:  # it was freed meanwhile, and left to us
            self._put_away(old)
        return moved

    def _ask(self, owner: ManagedBuffer[T], old: Slot[T], new: Slot[T], callback: Move[T]) -> bool:
        """Have the client move it. Whatever it does, every object ends up with exactly one owner."""
        if self._owner(old) is not owner:  # freed while we looked for a place
            self.in_hand -= 1
            self._put_away(new)
            return False
        slab = cast("Slab[T] | None", old.slab)
        buf = owner.cache._hand_out(new)
        try:
            answer = callback(owner, buf, len(buf))
            if not isinstance(answer, KMEM_CBRC):
                raise TypeError(f"it answered {answer!r}; allowed are the members of aslab.KMEM_CBRC")
        except BaseException as exc:
            log_failure(exc, "cache %r: the move callback failed; the object stays", owner.cache.name)
            answer = KMEM_CBRC.NO
        finally:
            self.in_hand -= 1
        self.answers[answer] += 1
        old_goes = answer in (KMEM_CBRC.YES, KMEM_CBRC.DONT_NEED)
        if old_goes:
            self._end(owner)
        if answer is not KMEM_CBRC.YES:
            self._end(buf)
        if slab is not None and not old_goes:
            slab.later += answer is KMEM_CBRC.LATER
            slab.stays = slab.stays or answer is KMEM_CBRC.NO or slab.later >= PATIENCE
        return old_goes

    def _end(self, buf: Buffer[T]) -> None:
        """End a handle for its client; to the slabs at once, or when nobody exports the memory any more."""
        slot = cast("ManagedBuffer[T]", buf).end_quietly()
        if slot is not None:
            self._put_away(slot)

    def _put_away(self, slot: Slot[T]) -> None:
        """Back to the slabs, past the magazine. Any thread."""
        pool = self._pool
        slot.owner = None
        if not pool.clean_up(slot):
            pool.depot.put(slot, pool.engine.tick)
            pool.settle()

    async def _pause(self) -> None:
        if self._since_pause >= AT_ONCE:
            self._since_pause = 0
            await anyio.lowlevel.checkpoint()


class Moves:
    """The task that moves objects where nobody has asked for it."""

    def __init__(self) -> None:
        self._asked: dict[Pool[Any], bool] = {}
        self._more = anyio.Event()

    def ask(self, pool: Pool[Any], *, defragment: bool = False) -> None:
        """Have a pool repack, or defragment as well, a little later."""
        self._asked[pool] = self._asked.get(pool, False) or defragment
        self._more.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._more.wait()
            self._more = anyio.Event()
            while self._asked:
                pool = next(iter(self._asked))
                if self._asked.pop(pool):
                    await pool.mover.defragment(gently=True)
                elif pool.mover.could_repack:
                    await pool.mover.repack()
