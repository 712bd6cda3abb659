"""Pool: the slabs of one shape and everything that serves them, for one cache, or for several that share (merge).

The parts of a pool lie below it; here they come together. What acts on a pool lies above it.

Always true, between calls: each slot is in exactly one place: free in its slab; in the magazine; set aside, handed
over, lingering, parked or moving; or in one caller's hands. `held` counts the last.

Event loop's thread only, unless a method says otherwise: other threads have the loop attend to the pool.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import RLock, get_ident
from typing import Any, Generic, TypeVar

import anyio

from .._config import CacheConfig
from .._fastpath import REPACK, Magazine, Slot
from .._flags import ORDINARY
from ._account import Account, Claim
from ._admission import Admission
from ._arena import AGEING_STEPS, Arena
from ._debug import Debug, cleaning
from ._depot import Depot
from ._emergency import Emergency
from ._growth import Growth
from ._handover import Handover
from ._holders import Member
from ._line import Waiters
from ._lingering import Parking
from ._moving import Moving
from ._reserve import Reserve
from ._slab import Slab
from ._state import Mark, Marks
from ._waiters import Waiter
from ._working_set import WorkingSet

T = TypeVar("T")

SPARE = 0.01
"""Seconds for which an unused emergency object is kept: a timer tick of 2012."""
_GROWING = Mark.GROWING.value
_REAPING = Mark.REAPING.value
_DESTROY = Mark.DESTROY.value


class Pool(Generic[T]):
    """The machinery behind a `Cache`; a `Tenant` of the limits."""

    reaped: anyio.Event
    """Set once the slabs now on their way back are back; absent before the first were."""

    def __init__(self, arena: Arena, config: CacheConfig[T]) -> None:
        self.arena = arena
        self.config = config
        self.members: list[Member] = []
        """The open caches."""
        self.magazine: Magazine[T] = Magazine(config.magazine_size)
        self.debug: Debug[T] | None = Debug(config, arena.thread) if config.debug else None
        self.depot: Depot[T] = Depot(self.magazine, cleaning(config, self.debug))
        self.reserve: Reserve[T] = Reserve(config.reserve, config.memalloc_reserve)
        self.emergency: Emergency[T] = Emergency(
            config, arena.singles, arena.permits, self.depot.lock, self.reserve, self
        )
        self.waiters: Waiters[T] = Waiters(self.magazine, arena.alarms)
        self.handover: Handover[T] = Handover(self.waiters, self.depot, self.reserve, self.emergency, arena.clock)
        self.growth: Growth[T] = Growth(config, arena, self, self.waiters, self.depot, self.reserve)
        self.marks: Marks = self.growth.marks
        self.account: Account = self.growth.account
        self.admission: Admission[T] = Admission(
            self.waiters, self.handover, self.emergency, self.growth, arena.permits
        )
        self.working_set: WorkingSet = WorkingSet(arena.interval * AGEING_STEPS)
        self.moving: Moving = Moving(config.movable)
        self.parking: Parking = Parking()
        self.guard: AbstractContextManager[Any] = RLock()
        """Held while a managed buffer's handle changes; reentrant, as a finaliser may run in between."""
        self._patience = self.growth.patience.of[ORDINARY]  # when growth last began
        self._queued_at: int | None = None  # its level in the queue of grows
        self._spared_for, self._spared_until = 1, 0  # in ticks: how long, and until when, no slab is condemned
        self._ages_spares = False
        arena.budget.open(self.account)

    def join(self, member: Member) -> None:
        """Let a cache use the pool."""
        self.members.append(member)
        self.ask()

    @property
    def closed(self) -> bool:
        """Whether the last of its caches is closed."""
        return bool(self.marks.bits & _DESTROY)

    # -- waiters

    def attend(self) -> None:
        """Do all that may be due, after objects came back or another thread left work."""
        if len(self.magazine) > self.magazine.capacity or self.depot.slabs.condemned is not None:
            self.depot.flush()
        if self.marks.bits & _DESTROY:
            self.empty_out()
            self.emergency.clear()
            self.admission.let_others_try()
            return
        self.serve_all()
        if self.reserve.objects:
            self.handover.note()
        if self.emergency.spares:
            if not self.growth.unwell:
                self.emergency.clear()
            self.offer_spares()
        if self.emergency.refused.first is not None or self.arena.permits.refused.first is not None:
            self.admission.let_others_try()
        if self.moving.able:
            self.note_moving()
        self.ask()
        if self.arena.budget.short and self.depot.free >= self.config.shape.objects:
            self.arena.budget.may_spare(self.account)

    def serve(self) -> None:
        """Hand free objects out to waiters."""
        if self.handover.busy:  # this is a finaliser, run in the middle of what it would change
            self.arena.attend_soon(self)
        elif self.handover.serve():
            self.note_rank()

    def serve_all(self) -> None:
        """Hand free objects out, and tell all others that watch for them."""
        self.serve()
        if self.waiters.fillers:
            self.waiters.tell_fillers()
        if self.depot.slabs.condemned is not None and self.clear_condemned():
            self._spared_for = 1
        if self.arena.budget.short and self.account.beyond > 0 and self.depot.has_idle_slab():
            self.arena.budget.may_spare(self.account)
            self.arena.budget.ask_all()
        if self.moving.able and self.could_repack:
            self.ask_to_move()

    def look(self, waiter: Waiter[T]) -> float:
        """Serve the line. Returns when ``waiter`` must look again for objects kept for MEMALLOC, or infinity."""
        if waiter.beside is not None:  # others have passed it: from now on frees tell it again, or are handed over
            self.handover.note()
        self.serve()
        return self.handover.kept_from(waiter)

    def give_back(self, slots: list[Slot[T]]) -> None:
        """Take back objects that a waiter was given and does not take."""
        self.handover.put_back(slots, keep=self.growth.unwell)
        self.attend()

    def line_changed(self) -> None:
        """Update what depends on the line, after a waiter has joined or left."""
        self.handover.note()
        self.note_rank()

    def note_rank(self) -> None:
        """Update the pool's rank, after a change of its first waiter or of whether a slab would help that."""
        arena, account = self.arena, self.account
        first = self.waiters.first
        if first is None and account.rank is None and self._queued_at is None:
            return
        while account.rank != (rank := self.growth.claim):  # a loop, as a finaliser may change it in between
            arena.budget.note(account, rank)
        level = ORDINARY if first is None else first.level
        if self._queued_at not in (None, level):
            self._queued_at = level
            arena.grows.note(self, level)

    @property
    def waiting_since(self) -> float | None:
        """When its first caller in line came; None if nobody waits."""
        return None if (first := self.waiters.first) is None else first.since

    def room_for_emergency(self) -> None:
        """Let refused waiters try again, as fewer emergency objects are outstanding. Any thread."""
        if get_ident() != self.arena.thread:  # a waiter that is just being refused must hear of it, too
            self.arena.attend_soon(self)
        elif self.emergency.wanted:
            self.admission.let_others_try()

    def offer_spares(self) -> None:
        """Offer a freed emergency object to waiters. If nobody takes the spare, it is given back soon."""
        if self.magazine.watch:
            self.serve_all()
        if self.emergency.spares and not self._ages_spares:
            self._ages_spares = True
            self.arena.start(self._age_spares)

    async def _age_spares(self) -> None:
        try:
            while self.emergency.spares:
                await anyio.sleep(SPARE)
                if not self.waiters:  # else a caller that needs several may be gathering them
                    self.emergency.age()
        finally:
            self._ages_spares = False

    # -- growing

    def ask(self) -> bool:
        """Ask for a slab if one is wanted and allowed. Returns whether it did. While GROWING it does nothing."""
        growth, arena = self.growth, self.arena
        if not growth.wanted:
            return False
        if growth.at_limit:
            if not growth.at_most:  # else it asks again when one of its own slabs is back
                growth.refuse_hopeless()
                arena.budget.make_room(self.account)
            return False
        growth.begin()
        arena.budget.ask_for(self.account)
        growth.behind_others = bool(arena.busy_growing or arena.grows.places)
        self._queued_at = ORDINARY if (first := self.waiters.first) is None else first.level
        arena.grows.put(self, self._queued_at)
        self.note_rank()
        patience, before = growth.patience.of[ORDINARY], self._patience
        self._patience = patience
        if self.waiters.untimed or patience < before:  # it has learned to be less patient
            self.waiters.wake_untimed(everybody=patience < before)
        if self.working_set.watching:
            self.working_set.grows(growth.began)
        return True

    def grow_begins(self) -> None:
        """Note that the worker has taken the pool out of its queue."""
        self._queued_at = None
        self.growth.taken_up()

    def grown(self, slabs: list[Slab[T]]) -> None:
        """Take in the slabs of a grow that succeeded."""
        self.growth.brought(slabs)
        self.note_rank()
        self.attend()

    def grow_failed(self, error: Exception) -> float:
        """Note that a grow failed. Returns the seconds after which to call `grow_again`; 0 for never."""
        pause = self.growth.failed(error)
        self.note_rank()
        if not pause:
            self.waiters.send_away(error)
        return pause

    def grow_again(self) -> None:
        """Ask again, after the pause that follows a failed grow."""
        self.growth.resume()
        self.note_rank()
        self.ask()

    def call_off(self) -> None:
        """End a grow before the worker begins it, as the limit has been reached meanwhile."""
        self._queued_at = None
        self.growth.ended()
        self.note_rank()
        self.arena.budget.call_off(self.account)

    # -- giving slabs back

    def release(self, slabs: list[Slab[T]]) -> anyio.Event:
        """Give slabs taken off the lists back to their backend. The event is set when they are back."""
        back = anyio.Event()
        if not slabs:
            back.set()
            return back
        marked = not self.marks.bits & _DESTROY
        if marked:
            self.marks.fire("reap")
            self.growth.demand.subsides()
            self.note_rank()
            self.reaped = back
        left = [len(slabs)]
        if self.debug is not None:
            self.debug.look_at_slabs(slabs)

        def one_is_back() -> None:
            self.arena.budget.uncharge(self.account)
            self.arena.grows.wake()
            left[0] -= 1
            if not left[0]:
                if marked:
                    self.marks.fire("reaped")
                    self.note_rank()
                back.set()
                self.attend()

        for slab in slabs:
            self.arena.budget.give_back(self.account)
            self.arena.slabs.release(slab.region, one_is_back, slab.dismantle(self.config.dtor))
        return back

    @property
    def kept_free(self) -> int:
        """Free objects not to give back: the watermark, or as many as the first in line needs."""
        return max(self.config.watermark, 0 if (first := self.waiters.first) is None else first.need)

    @property
    def settled(self) -> bool:
        """Whether reclaim must leave it alone: it is closed, or sealed, so that slabs could not come back."""
        return bool(self.marks.bits & _DESTROY) or self.arena.budget.sealed

    def spare(self, nbytes: int, rank: Claim | None) -> int:
        """Give back idle slabs of about ``nbytes`` for another pool at the limit. Returns the number of bytes.

        It keeps its guarantee and, unless the caller of ``rank`` comes first, what it wants to keep (`kept_free`).
        """
        account = self.account
        slabs = min(-(-nbytes // account.slab_size), account.beyond // account.slab_size)
        if slabs <= 0 or self.marks.bits & _REAPING or self.settled:
            return 0
        if self.depot.free < self.config.shape.objects:  # quick: most pools have no whole slab free
            return 0
        self.depot.drain()
        first = self.waiters.first
        older = rank is not None and (first is None or rank < first.rank)
        given = self.depot.remove_empty(0 if older else self.kept_free, most=slabs)
        self.release(given)
        return len(given) * account.slab_size

    def condemn(self) -> bool:
        """Choose a slab to give back, at once or once empty. False if there is none, or it is too soon again."""
        if self.depot.slabs.tick < self._spared_until:
            return False
        self.handover.empty_reserve()
        self.depot.drain()
        idle = [] if self.marks.bits & _REAPING else self.depot.remove_empty(self.reserve.objects, most=1)
        self.release(idle)  # only the reserve lay in it, and fits into the others
        chosen = bool(idle) or self.depot.condemn()
        self.serve_all()
        if chosen and self.reserve.short:  # the slab is needed for the reserve
            self.restore(back_off=True)
            chosen = False
        return chosen

    def clear_condemned(self) -> bool:
        """Give the condemned slab back if it is empty. Returns whether it did."""
        slabs = [] if self.marks.bits & _REAPING else self.depot.take_condemned()
        self.release(slabs)
        return bool(slabs)

    def restore(self, *, back_off: bool) -> None:
        """Use the condemned slab again; with ``back_off``, condemn none for a while, twice as long each time."""
        if self.depot.slabs.condemned is None:
            return
        if back_off:
            self._spared_for *= 2
            self._spared_until = self.depot.slabs.tick + self._spared_for
        self.depot.restore()
        self.attend()

    # -- moving

    @property
    def could_repack(self) -> bool:
        """Whether emergency objects, if any can move, could do so now: nobody waits, and it is not DEADLOCKED."""
        if self.moving.in_vain or not len(self.emergency):
            return False
        return self.waiters.first is None and Mark.DEADLOCKED not in self.marks and self.depot.free > 0

    def ask_to_move(self, *, defragment: bool = False) -> None:
        """Queue the pool for the mover: to repack or, with ``defragment``, to empty sparse slabs as well."""
        self.moving.gently = self.moving.gently or defragment
        if not self.moving.asked:
            self.moving.asked = True
            self.arena.moves.put(self)

    def note_moving(self) -> None:
        """Watch for frees (REPACK) while there are emergency objects that could move into slabs."""
        self.magazine.set_watch(REPACK, on=not self.moving.in_vain and len(self.emergency) > 0)

    # -- closing

    def leave(self, member: Member, error: Exception) -> anyio.Event:
        """Close one cache, and with the last one the pool. The event is set when free memory is back."""
        self.members.remove(member)
        if self.members:
            self.waiters.send_away(error, member.counters)
            return self.release([])
        self.marks.fire("close")
        self.depot.restore()
        self.waiters.close(error)
        self.magazine.close()
        self.reserve.close()
        self.handover.empty_reserve()
        self.growth.unwell = False
        self.emergency.clear()
        self.note_rank()
        if self._queued_at is not None:  # no worker has begun its grow, and perhaps none can for long
            self.arena.grows.take_out(self)
            self.call_off()
        self.arena.budget.close(self.account)
        return self.empty_out()

    def empty_out(self) -> anyio.Event:
        """Give every empty slab back. The event is set when they are back."""
        self.depot.drain()
        return self.release(self.depot.remove_empty())
