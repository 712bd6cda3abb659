"""Pool: slabs of one shape, and all that serves them. One cache's, or that of several which share (merge).

Everything comes together here: a free finds who waits, a slab that came finds who wanted it. Waiting is in
_waiting.py, growing in _growth.py, giving memory back in _reclaim.py.

Threads: frees and the garbage collector's returns come from any thread. Waiters and marks belong to the event
loop's thread alone; the others ring the allocator's bell for it.
"""

from __future__ import annotations

import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import anyio

from .._config import CacheConfig
from .._fastpath import Magazine
from .._flags import FINISHES, KM, LEVEL
from .._snapshot import situation
from .._stats import Tally
from ..backends._libc import zero
from ._depot import Depot
from ._emergency import Emergency, EmergencySlot
from ._growth import Growth
from ._move import Mover
from ._parking import Parking
from ._reclaim import Reclaim
from ._reserve import Reserve
from ._slab import Slot
from ._slowpath import WaitingRoom
from ._state import Mark, Marks
from ._waiters import Line

if TYPE_CHECKING:
    from .._cache import Cache
    from .._tasks import Engine

T = TypeVar("T")

SPARE = 0.01
"""Seconds for which an emergency object that nobody wants is kept: a timer tick of 2012."""


class Pool(Generic[T]):
    """The machinery behind a `Cache`."""

    def __init__(self, engine: Engine, config: CacheConfig[T]) -> None:
        self.engine = engine
        self.config = config
        self.caches: list[Cache[T]] = []
        """Those that are open."""
        self.tally: Tally = Tally()
        """Of its own affairs."""
        self.wanted: bool = False
        """Somebody wants to know of each free."""
        self.wanted_by_others: bool = False
        """Somebody who does not wait in line."""
        self.marks: Marks = Marks()
        self.magazine: Magazine[T] = Magazine(config.magazine_size)
        self.depot: Depot[T] = Depot(self.magazine, self._zero if config.init_on_free else None)
        self.reserve: Reserve[T] = Reserve(config.reserve, config.memalloc_reserve)
        self.emergency: Emergency[T] = Emergency(
            config, engine.emergency_supply, engine.permits, self.depot.lock, self.reserve, self._emergency_room
        )
        self.line: Line[T] = Line()
        self.growth: Growth[T] = Growth(
            config,
            self.marks,
            self.depot,
            self.line,
            self.reserve,
            engine.worker,
            engine.config.grow_timeout,
            on_begin=self._growth_begins,
            on_slab=self.attend,
            on_error=lambda error: self.room.send_away(error),
            on_filling=self.note_waiting,
        )
        self.reclaim: Reclaim[T] = Reclaim(
            config, self.marks, self.depot, engine, self.growth.account, self.line, self.attend
        )
        self.mover: Mover[T] = Mover(self)
        self.room: WaitingRoom[T] = WaitingRoom(
            self.line,
            self.marks,
            self.depot,
            self.reserve,
            self.growth,
            self.emergency,
            permits=engine.permits,
            clock=engine.clock,
            make_event=engine.make_event,
            tickets=engine.tickets,
            on_change=self._line_changed,
            on_passed=self._note_passed,
            give_back=self.give_back,
            ring=partial(engine.ring, self),
            start=engine.start,
        )
        self.guard: threading.RLock = threading.RLock()
        """Held while the handle of a managed buffer changes hands; a finaliser may come in between."""
        self._spared_for, self._spared_until = 1, 0  # ticks
        self._ages_spares = False
        self.parking: Parking[T] = Parking(self)

    def join(self, cache: Cache[T]) -> None:
        """A cache begins to use it."""
        self.caches.append(cache)
        self.note_waiting()
        self.growth.ask()

    def learn(self, objects: int, level: int) -> None:
        """Such a caller asks for so many at once: what is to be set aside for those who finish. Any thread."""
        if level == FINISHES:
            self.engine.permits.finishing = True
        self.reserve.learn(objects, level, self.growth.most)

    def get_now(self, flags: KM, cache: Cache[T]) -> Slot[T]:
        """What a caller who cannot wait gets where nothing is at hand: an emergency object.

        :raises anyio.WouldBlock: if there is none
        """
        level = LEVEL[flags]
        self.growth.missed = True
        self.engine.attend(self, self.growth.ask)
        if self.growth.limit_reached:
            cache._tally.sealed += self.growth.sealed
            raise self._nothing(cache, "its limit is reached")
        if not self.emergency.permit(1, level):
            self.engine.permits.clear_spares()  # for the next one who asks
            raise self._nothing(cache, "there is no room for another emergency object")
        try:
            return self.emergency.make_nowait(flags)
        except MemoryError:
            raise self._nothing(cache, "the backend has no memory for an emergency object") from None
        except anyio.WouldBlock:
            raise self._nothing(cache, "an emergency object cannot be had without waiting") from None

    def take_set_aside(self, level: int) -> Slot[T] | None:
        """One that is set aside for such a caller, or an emergency object that was kept. Any thread.

        Frees refill what is set aside from then on; slabs are asked for all the same.
        """
        slot = self.room.passing.take_set_aside(level)
        if slot is None:
            return None
        if slot.slab is None and Mark.GROWING not in self.marks:
            self.growth.missed = True
        self.engine.attend(self, self.growth.ask if slot.slab is None else self.attend)
        return slot

    def _nothing(self, cache: Cache[T], why: str) -> anyio.WouldBlock:
        return anyio.WouldBlock(f"{situation(self, cache)}: no object is free, and {why}")

    def take_back(self, slot: Slot[T]) -> None:
        """A free, from any thread. (`Buffer.free` writes this out for a buffer that nobody looked at.)"""
        if not (slot.kept and self.depot.lingering.admit(slot)):
            self.magazine.append(slot)
        if self.wanted or len(self.magazine) > self.magazine.capacity:
            self.settle()

    def take_back_managed(self, slot: Slot[T]) -> None:
        """A free of a slot that may need more than the magazine. Any thread."""
        if not self.clean_up(slot):
            self.take_back(slot)
        elif self.wanted or (self.growth.unwell and self.emergency.spare):
            self.engine.attend(self, self._freed_single)

    def _freed_single(self) -> None:
        self.room.passing.claims.note()
        self._offer_spares()

    def _offer_spares(self) -> None:
        if self.wanted:
            self._serve()
        if self.emergency.spare and not self._ages_spares:
            self._ages_spares = True
            self.engine.start(self._age_spares)

    async def _age_spares(self) -> None:
        try:
            while self.emergency.spare:
                await anyio.sleep(SPARE)
                if not self.line:  # who needs several may be short of some yet
                    self.emergency.age()
        finally:
            self._ages_spares = False

    def clean_up(self, slot: Slot[T]) -> bool:
        """Zero it, where frees do; an emergency object goes, or waits for the next. Answers whether it was one."""
        if self.config.init_on_free:
            self._zero(slot)
        if slot.slab is not None:
            return False
        keep = self.growth.unwell
        self.emergency.free(cast("EmergencySlot[T]", slot), keep=keep)
        if keep and not self.growth.unwell:  # since just now, on another thread
            self.emergency.clear()
        if self.emergency.lingering:
            self.engine.ring(self)  # for who waits until there may be one more
        return True

    def _zero(self, slot: Slot[T]) -> None:
        zero(slot.address, self.config.shape.size)

    def give_back_all(self, slots: list[Slot[T]]) -> None:
        """As `give_back`, for each. Any thread."""
        for slot in slots:
            self.give_back(slot)

    def give_back(self, slot: Slot[T]) -> None:
        """What a waiter was given and does not take."""
        if slot.slab is not None:
            self.take_back(slot)
        else:
            self.take_back_managed(slot)

    def settle(self) -> None:
        """After a free that finds waiters or a full magazine. Waits for no lock."""
        over = len(self.magazine) > self.magazine.capacity or self.condemned
        if over and not self.depot.flush(self.engine.tick):
            self.engine.ring(self)
        elif Mark.DESTROY in self.marks:
            if self.engine.closed:  # there may be no event loop any more to leave it to
                self.reclaim.empty_out()
            else:
                self.engine.attend(self, self.reclaim.empty_out)
        elif self.wanted:
            self.engine.attend(self, self._freed)

    def _freed(self) -> None:
        self.room.passing.claims.note()
        if self.wanted_by_others or not self.room.tell():
            self._serve()
        else:
            self.magazine.watch = False  # told; until it has run nobody need hear of other frees

    def come_back(self, slot: Slot[T]) -> None:
        """What the garbage collector returns, at any moment, in any thread."""
        if sys.is_finalizing():  # modules are coming apart, and the end of the process releases all memory
            return
        if self.clean_up(slot):
            if self.emergency.spare:
                self.engine.ring(self)
            return
        if not (slot.kept and self.depot.lingering.admit(slot)):
            self.magazine.append(slot)
        if Mark.DESTROY in self.marks and self.engine.closed:
            self.settle()
        elif self.wanted or len(self.magazine) > self.magazine.capacity:
            self.engine.ring(self)

    def attend(self) -> None:
        """Look after everything: objects came, or the bell was rung for what another thread did."""
        self.depot.flush(self.engine.tick)
        self.parking.look()
        if Mark.DESTROY in self.marks:
            self.reclaim.empty_out()
            self.emergency.clear()
            self.room.let_others_try()
            return
        self._serve()
        if not self.growth.unwell:
            self.emergency.clear()
        self._offer_spares()
        self.note_waiting()
        self.room.let_others_try()
        self.growth.ask()
        if self.engine.short and self.depot.free >= self.config.shape.objects:
            self.engine.may_spare(self)

    def age(self, *, expires: bool) -> None:
        """One tick of the ageing task."""
        self.parking.look_at_lingering()
        used = [(cache._hits, cache._misses) for cache in self.caches]
        self.reclaim.age((used, self.depot.slabs.slots_out, len(self.magazine)), expires=expires)
        if self.mover.tick():
            self.engine.moves.ask(self, defragment=True)
        self.attend()

    @property
    def condemned(self) -> int:
        """Bytes of the slab that is to go for somebody else, if there is one."""
        return 0 if self.depot.slabs.condemned is None else self.config.shape.slab_size

    def condemn(self) -> bool:
        """Choose a slab that goes as soon as it is empty; False if there is none to choose, or it is too soon."""
        if self.engine.tick < self._spared_until:
            return False
        self._empty_reserve()
        chosen = self.depot.condemn(self.engine.tick)
        self._serve()
        if chosen and self.reserve.short:  # what is set aside is not given away
            self.pardon(in_vain=True)
            chosen = False
        self.note_waiting()
        return chosen

    def pardon(self, *, in_vain: bool) -> None:
        """The slab that was to go stays. In vain, no other is chosen for some time, longer each time."""
        if in_vain:
            self._spared_for *= 2
            self._spared_until = self.engine.tick + self._spared_for
        self.depot.pardon(self.engine.tick)
        self.attend()

    def leave(self, cache: Cache[T], error: Exception) -> anyio.Event:
        """A cache closes. The last one to go takes the pool with it; the event is set when memory is back."""
        self.caches.remove(cache)
        self.room.send_away(error, cache._tally)
        self.growth.send_fillers_away(error, cache._tally)
        if self.caches:
            back = anyio.Event()
            back.set()
            return back
        self.marks.fire("close")
        self.depot.pardon(self.engine.tick)
        self.growth.send_fillers_away(error)
        self.magazine.capacity = -1  # so that each later free comes by `settle`
        self.reserve.close()
        self._empty_reserve()
        self.growth.unwell = False
        self.emergency.clear()
        self.engine.budget.close(self.growth.account)
        self.engine.retire(self)
        back = self.reclaim.empty_out()
        self.parking.close()
        return back

    def note_waiting(self) -> None:
        """Who waits has changed: what the hot paths of the caches look at."""
        slow = bool(self.line) and (self.reserve.short or not self.room.passing.allowed)
        asked_for = self.growth.filling > 0 or self.reserve.short or self.mover.hungry
        self.wanted_by_others = asked_for or self.condemned > 0 or self.engine.short
        self.wanted = bool(self.line) or self.wanted_by_others or self.reserve.kept > 0
        self.magazine.watch = self.wanted
        for cache in self.caches:
            cache._slow = slow or cache._always_slow

    def _note_passed(self) -> None:
        slow = self.reserve.short or not self.room.passing.allowed
        self.magazine.watch = True
        for cache in self.caches:
            cache._slow = slow or cache._always_slow

    def repack_reserve(self) -> None:
        """Have the reserve lie in the fullest slabs."""
        self._empty_reserve()
        self._serve()

    def _empty_reserve(self) -> None:
        while (slot := self.reserve.take()) is not None:
            self.depot.put(slot, self.engine.tick)

    def held(self, cache: Cache[T]) -> int:
        """Objects that the callers of a cache hold."""
        if self.config.merge:
            return cache._tally.handed_out - cache._tally.returned
        elsewhere = len(self.magazine) + self.room.in_handover + len(self.reserve) + self.mover.in_hand
        return self.depot.slabs.slots_out - elsewhere + len(self.emergency) - self.lingering

    @property
    def lingering(self) -> int:
        return len(self.depot.lingering) + len(self.emergency.lingering)

    def _look_for_idle(self) -> None:
        """Others wait for slabs: as soon as one is empty here, have them ask for it."""
        if self.growth.account.beyond > 0 and self.depot.has_idle_slab():
            self.engine.may_spare(self)
            self.engine.ask_all()

    def _emergency_room(self) -> None:
        self.engine.attend(self, self.room.let_others_try)

    def _line_changed(self) -> None:
        self.note_waiting()
        self.growth.note()
        self.engine.look_again()

    def _growth_begins(self) -> None:
        self.room.growth_begins()
        self.reclaim.demand.grows(self.engine.clock())
        self.engine.look_again()

    def _serve(self) -> None:
        self.room.serve()
        self.growth.tell_fillers()
        if self.condemned and self.reclaim.clear_condemned():
            self._spared_for = 1
        if self.engine.short:
            self._look_for_idle()
        if self.mover.could_repack:
            self.engine.moves.ask(self)
