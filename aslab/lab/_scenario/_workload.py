"""The tasks of a scenario: each allocates, holds, frees, and reports what it did."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import anyio

from ... import KM, Buffer, Cache
from ...faults import Delay
from ...faults._delay import drawing
from .._simulation._run import sleep_of
from ._machine import seed_for
from ._notes import Notes
from ._schema import TaskSection


class Held(NamedTuple):
    """One object held by a task."""

    buf: Buffer[Any]
    since: float
    emergency: bool
    """Whether it was an emergency object when allocated; it may have moved into a slab since."""


class Worker:
    """One task of a group."""

    def __init__(self, notes: Notes, group: str, number: int, section: TaskSection, cache: Cache[Any]) -> None:
        self.name = f"{group}-{number}"
        self.group = group
        self.rounds = 0
        """Completed rounds of allocating, holding and freeing."""
        self._notes = notes
        self._lab = notes.lab
        self._sleep = sleep_of(notes.lab)
        self._section = section
        self._cache = cache
        self._of = cache.name
        self._flags = KM[section.flags]
        self._asked = f"{cache.name} {section.flags}"
        self._kinds = (f"{cache.name} slab", f"{cache.name} emergency")
        self._at_once = tuple(f"{kind} after {0:.9f}" for kind in self._kinds)
        self._asked_to_start = False
        self._last = 0.0  # when it last got or freed an object, or was due to start
        self._start = self._draw("start", section.start)
        self._arrival = self._draw("arrival", section.arrival)
        self._hold = self._draw("hold", section.hold)
        self._spend = self._draw("spend", section.spend)

    @property
    def unfinished(self) -> bool:
        """Whether it has rounds left."""
        return self._section.times is not None and self.rounds < self._section.times

    async def work(self) -> None:
        """Work until all rounds are done, or forever. Frees whatever it holds, even if cancelled."""
        delay = self._start()
        self._last = self._lab.time() + delay
        self._asked_to_start = True
        await self._sleep(delay)
        while self._section.times is None or self.unfinished:
            held: list[Held] = []
            try:
                if await self._get_all(held):
                    if spend := self._spend():
                        self._lab.spend(spend)
                    await self._sleep(self._hold())
                    self.rounds += 1
            finally:
                for one in held:
                    self._free(one)
            await self._sleep(self._arrival())

    def end(self) -> None:
        """The workload is over: report how long the task has done nothing."""
        if not self._asked_to_start:  # prefill is not done: the task has waited since the start
            self._last = self._start()
        if self.unfinished or self._section.times is None:
            event = self._notes.event(self.name, "ends")
            gap = max(0.0, event.time - self._last)
            self._notes.feed("longest_gap", gap, event, self.group, self._cache.name)
            self._notes.feed("unfinished", self.unfinished, event, self.group, self._cache.name)

    async def _get_all(self, held: list[Held]) -> bool:
        """Allocate what a round needs. Returns whether it got everything."""
        at_once, times = (self._section.objects, 1) if self._section.together else (1, self._section.objects)
        for _ in range(times):
            bufs = await self._get(at_once)
            if not bufs:
                return False
            for buf in bufs:
                held.append(Held(buf, self._last, buf.emergency))  # noqa: PERF401  (one at most, as a rule)
        return True

    async def _get(self, n: int) -> list[Buffer[Any]]:
        notes, cache = self._notes, self._cache
        begin = notes.event(self.name, "asks", self._asked).time
        try:
            if self._flags is KM.NOSLEEP:
                bufs = [cache.alloc_nowait()]
            elif n == 1:
                bufs = [await cache.alloc(self._flags, timeout=self._section.timeout)]
            else:
                bufs = await cache.alloc_many(n, self._flags, timeout=self._section.timeout)
        except anyio.WouldBlock:
            notes.feed("refused", 1, notes.event(self.name, "refused", self._of), self.group, self._of)
            return []
        except TimeoutError:
            event = notes.event(self.name, "timed out", self._of)
            notes.feed("timed_out", 1, event, self.group, self._of)
            self._waited(begin, event.time, event)
            return []
        except anyio.get_cancelled_exc_class():
            event = notes.event(self.name, "gave up", self._of)
            self._waited(begin, event.time, event)
            raise
        now = self._lab.time()
        for buf in bufs:
            emergency = buf.emergency
            at_once, kind = self._at_once[emergency], self._kinds[emergency]
            how = at_once if now == begin else f"{kind} after {now - begin:.9f}"
            event = notes.event(self.name, "got", how)
            notes.feed("allocations", 1, event, self.group, self._of)
            if emergency:
                notes.emergency(+1, event, self.group, self._of)
        self._waited(begin, now, event)
        self._progress(event.time, event)
        return bufs

    def _free(self, held: Held) -> None:
        notes, emergency = self._notes, held.emergency
        held.buf.free()
        event = notes.event(self.name, "freed", self._kinds[emergency])
        if emergency:
            notes.emergency(-1, event, self.group, self._of)
        self._progress(event.time, event)
        if notes.recording is not None:
            notes.span(self.name, "emergency" if emergency else "holding", held.since, event.time, self._of)

    def _waited(self, begin: float, end: float, event: Any) -> None:
        self._notes.feed("longest_wait", end - begin, event, self.group, self._of)
        if end > begin:
            self._notes.waited(self.name, begin, end, self._of)

    def _progress(self, now: float, event: Any) -> None:
        self._notes.feed("longest_gap", now - self._last, event, self.group, self._of)
        self._last = now

    def _draw(self, what: str, delay: Delay) -> Any:
        return drawing(what, delay, seed_for(self._lab.seed, f"{self.name}/{what}"))


def shuffled(workers: list[Worker], seed: int) -> list[Worker]:
    """Shuffle the workers by the seed, so that the order in the file does not decide who comes first."""
    order = list(workers)
    random.Random(seed_for(seed, "order")).shuffle(order)
    return order
