"""Playing a scenario: from a file's contents and a seed to a result.

build the machine → open the allocator → the tasks work, until the duration or their rounds are over
→ measure → let go of every deadlock, give everything back → is anything missing?
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from ... import Allocator, Cache, open_allocator
from ..._state import Mark
from ...emulation import Shrinker
from ...pressure import Signal, Source
from ...testing import check_consistency
from .._simulation._log import Event, EventLog
from .._simulation._run import Lab, current, housekeeping
from .._simulation._run import run as run_simulated
from ._load import bounds, bounds_in_real_time, cache_options
from ._machine import Machine, Told
from ._metrics import Watch, Watches
from ._recording import Kind, Moment, Recording, Span
from ._result import Result
from ._schema import Happening, Scenario
from ._workload import Worker, shuffled

PATIENCE_AT_THE_END = 5.0
"""Real seconds, in real time, for what is still under way when everything is given back."""
PROGRESS_EVERY = 4096  # events


@dataclass(frozen=True, slots=True)
class Played:
    """What a run leaves."""

    result: Result
    log: EventLog
    recording: Recording | None


def play(
    scenario: Scenario,
    *,
    seed: int | None = None,
    loop: str = "asyncio",
    real_time: bool = False,
    record: bool = False,
    progress: Callable[[float], object] | None = None,
) -> Played:
    """Play a scenario. Blocks until the end; not inside an event loop.

    :param seed: instead of the scenario's own
    :param loop: ``asyncio`` or ``trio``
    :param real_time: on the wall clock, where the log is different each time
    :param record: keep what a trace or a report needs
    :param progress: called now and then with the share that is done, 0 to 1
    """
    seed = scenario.seed if seed is None else seed

    async def main() -> Played:
        lab = Lab(seed) if real_time else current()
        run = Run(scenario, lab, Recording() if record else None, progress, real_time=real_time)
        await run.play()
        return Played(run.result(loop), lab.log, run.recording)

    if real_time:
        return anyio.run(main, backend=loop)
    outcome = run_simulated(main, seed=seed, loop=loop)
    assert outcome.value is not None  # it has no `until`
    return outcome.value


class Run:
    """One run under way. Its parts tell it what happens."""

    def __init__(
        self,
        scenario: Scenario,
        lab: Lab,
        recording: Recording | None,
        progress: Callable[[float], object] | None,
        *,
        real_time: bool,
    ) -> None:
        self._real_time = real_time
        self.seed: int = lab.seed
        self.recording = recording
        self.time: Callable[[], float] = lab.time
        self.spend: Callable[[float], object] = lab.spend
        self._lab = lab
        lab._idle.patience = math.inf  # the end of the work is a timer that is waited for
        self._scenario = scenario
        self._progress = progress
        self._machine = Machine(scenario, lab.seed)
        section = scenario.allocator
        self._slabs = Told(self._machine.backends[section.slabs], "slabs", self._told)
        self._single = Told(self._machine.backends[section.emergency], "emergency", self._told)
        watches = [
            Watch(one.what, at_most=most, at_least=least, tasks=one.tasks, cache=one.cache)
            for one in scenario.expect
            for most, least in [bounds_in_real_time(one, scenario.slack) if real_time else bounds(one)]
        ]
        self._watches = Watches(watches)
        self._signal = Signal()
        self._pressure: list[Source] = [self._signal]
        if section.shrinker:
            self._pressure.append(Shrinker(self._machine.memory))
        self._levels = dict.fromkeys(scenario.caches, 0)
        self._caches: dict[str, Cache[Any]] = {}
        self._workers: list[Worker] = []
        self._created = dict.fromkeys(scenario.caches, 0)
        self._marked_since: dict[tuple[str, Mark], float] = {}
        self._events = 0
        self._ended: float | None = None
        self._stuck: tuple[str, ...] = ()

    async def play(self) -> None:
        """All of it."""
        section = self._scenario.allocator
        async with open_allocator(
            slabs=self._slabs,
            emergency=self._single,
            grow_timeout=None if section.grow_timeout == "learned" else section.grow_timeout,
            limit=section.limit,
            emergency_limit=... if section.emergency_limit is None else section.emergency_limit,
            expire=section.expire,
            growth_workers=section.growth_workers,
            kick_after=section.kick_after,
            pressure=self._pressure,
        ) as kmem:
            for name, cache in self._scenario.caches.items():
                self._caches[name] = kmem.create_cache(**cache_options(cache, name, section))
                self._caches[name]._pool.marks.observer = partial(self._marked, name)
            for group, tasks in self._scenario.tasks.items():
                self._workers += [
                    Worker(self, group, number, tasks, self._caches[tasks.cache]) for number in range(tasks.count)
                ]
            await self._work(kmem)
            await self._give_back(kmem)
        self._last_look()

    async def _work(self, kmem: Allocator) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end, tasks.cancel_scope, name="the end")
            for number, happening in enumerate(self._scenario.at):
                tasks.start_soon(self._happen, happening, kmem, name=f"at.{number}")
            async with anyio.create_task_group() as prefills:
                for name, section in self._scenario.caches.items():
                    prefills.start_soon(self._caches[name].prefill, section.prefill, name=f"prefill of {name}")
            async with anyio.create_task_group() as workers:
                for worker in shuffled(self._workers, self.seed):
                    workers.start_soon(worker.work, name=worker.name)
            self._measure()
            tasks.cancel_scope.cancel()

    async def _end(self, scope: anyio.CancelScope) -> None:
        housekeeping()
        await self._until(self._scenario.duration)
        self._stuck = tuple(str(task) for task in self._lab.stuck() if task.name != "main")
        self._measure()
        scope.cancel()

    async def _until(self, time: float) -> None:
        await anyio.sleep(max(0.0, time - self.time()))  # in real time it may be over

    async def _happen(self, happening: Happening, kmem: Allocator) -> None:
        await self._until(happening.time)
        await self._do(happening, kmem)
        while happening.every is not None:
            await anyio.sleep(happening.every)
            await self._do(happening, kmem)

    async def _do(self, happening: Happening, kmem: Allocator) -> None:
        event = self.event("the scenario", happening.do, happening.backend or "")
        self._moment(event)
        match happening.do:
            case "let_go":
                self._machine.let_go(happening.backend)
            case "pin":
                self._machine.pin(happening.share or 0.0)
            case "unpin":
                self._machine.unpin()
            case "reap":
                await kmem.reap()
            case "press":
                self._signal.press()
            case "defragment":
                for cache in kmem.caches:
                    await cache.defragment()
            case "seal":
                kmem.seal()

    def _measure(self) -> None:
        """The work is over: what is the state that it leaves?"""
        if self._ended is not None:
            return
        event = self.event("the scenario", "ends")
        self._ended = event.time
        for worker in self._workers:
            worker.end()
        for name, cache in self._caches.items():
            stats = cache.stats()
            self.feed("emergency_left", stats.obj_emergency, event, cache=name)
            self.feed("deadlocked_left", stats.deadlocked, event, cache=name)
            self.feed("slabs_left", stats.slab_total, event, cache=name)
            self.feed("slab_regrets", stats.slab_regret, event, cache=name)
            self.feed("objects_moved", stats.move_yes, event, cache=name)
        space = self._machine.space
        longest, total = space.queued()
        self.feed("lock_wait", max(longest, space.lock_wait_longest), event)
        self.feed("lock_wait_total", total + space.lock_wait_total, event)
        self.feed("lowest_free", self._machine.memory.lowest_free, event)
        self.feed("stuck", len(self._stuck), event)

    async def _give_back(self, kmem: Allocator) -> None:
        """End every deadlock, let what is under way end, and give all memory back."""
        self.feed("kicked", kmem.stats().kicked, self.event("the scenario", "gives back"))
        self._machine.let_go()
        with anyio.move_on_after(PATIENCE_AT_THE_END if self._real_time else math.inf):
            await kmem._engine.worker.idle()
            await kmem.reap()
            await kmem._engine.supply.idle()
            await kmem._engine.emergency_supply.idle()
        for name, cache in self._caches.items():
            try:
                check_consistency(cache)
            except AssertionError as exc:
                self.feed("wrong_books", 1, self.event(name, "wrong", str(exc)), cache=name)

    def _last_look(self) -> None:
        regions = self._slabs.outstanding + self._single.outstanding
        event = self.event("the scenario", "is over", f"{regions} regions are missing")
        self.feed("memory_lost", regions + self._machine.pages_missing, event)

    def result(self, loop: str) -> Result:
        """After `play`."""
        figures = self._watches.figures()
        return Result(
            scenario=self._scenario.name,
            about=self._scenario.about,
            seed=self.seed,
            loop=loop,
            real_time=self._real_time,
            verdicts=self._watches.verdicts(),
            log_sha256=self._lab.log.sha256,
            events=len(self._lab.log),
            duration=self._ended or 0.0,
            emergency_max=round(figures["emergency_max"]),
            deadlocks=round(figures["deadlocks"]),
            longest_wait=figures["longest_wait"],
            stuck=self._stuck,
            figures=figures,
        )

    # -- what the parts tell

    def event(self, who: str, what: str, detail: str = "") -> Event:
        """Write to the log."""
        event = self._lab.log.write(who, what, detail)
        self._events += 1
        if self._progress is not None and self._events % PROGRESS_EVERY == 0:
            self._progress(min(1.0, event.time / self._scenario.duration))
        return event

    def feed(self, what: str, value: float, event: Event, tasks: str = "", cache: str = "") -> None:
        """A value of a figure."""
        self._watches.feed(what, value, event, tasks, cache)

    def emergency(self, change: int, event: Event, tasks: str, cache: str) -> None:
        """A caller got an emergency object, or freed one."""
        self._levels[cache] += change
        if change > 0:
            self.feed("emergency_made", change, event, tasks, cache)
            self.feed("emergency_max", self._levels[cache], event, cache=cache)
            self.feed("emergency_max", sum(self._levels.values()), event)

    def waited(self, who: str, begin: float, end: float, cache: str) -> None:
        """A caller had to wait."""
        if self.recording is not None:
            self.recording.waits.append(end - begin)
            self.span(who, "waiting", begin, end, cache)

    def span(self, who: str, kind: Kind, begin: float, end: float, detail: str) -> None:
        """A task held something, or waited."""
        if self.recording is not None:
            self.recording.tasks.append(Span(who, kind, begin, end, detail))
            self._count(end)

    def _told(self, name: str, what: str, detail: str, began: float) -> None:
        """A backend was asked, or has answered."""
        event = self.event(name, what, detail)
        self.feed("lowest_free", self._machine.memory.lowest_free, event)
        if name == "emergency" and what in ("failed", "refused"):
            self.feed("emergency_failures", 1, event)
        kinds: dict[str, Kind] = {"gave": "growing", "failed": "failed", "cancelled": "stuck"}
        if self.recording is not None and what in kinds:
            begin = event.time - (anyio.current_time() - began)
            self.recording.worker.append(Span(name, kinds[what], begin, event.time, detail))
            self._count(event.time)

    def _marked(self, name: str, what: str, before: Mark, after: Mark) -> None:
        """The marks of a cache have changed."""
        event = self.event(name, what)
        if what == "late":
            self.feed("deadlocks", 1, event, cache=name)
        elif what == "grown":
            created = self._caches[name].stats().slab_create
            grew, self._created[name] = created > self._created[name], created
            self.feed("slabs_made" if grew else "grow_failures", 1, event, cache=name)
        for mark in _DRAWN:
            if mark in after and mark not in before:
                self._marked_since[name, mark] = event.time
            elif mark in before and mark not in after and self.recording is not None:
                kind: Kind = _DRAWN[mark]
                since = self._marked_since.get((name, mark), 0.0)  # a reserve is grown as the cache is made
                self.recording.caches.append(Span(name, kind, since, event.time))

    def _moment(self, event: Event) -> None:
        if self.recording is not None:
            self.recording.moments.append(Moment(event.who, event.time, f"{event.what} {event.detail}".strip()))

    def _count(self, now: float) -> None:
        """Note the counters, for the curves."""
        assert self.recording is not None
        stats = [cache.stats() for cache in self._caches.values()]
        emergency = sum(one.obj_emergency for one in stats)
        held = sum(one.obj_held for one in stats) - emergency
        total = sum(one.obj_total for one in stats) - emergency
        values = {
            "held": held,
            "emergency": emergency,
            "free in slabs": total - held - sum(one.obj_handover for one in stats),
            "free pages": self._machine.memory.free_pages,
        }
        for name, value in values.items():
            points = self.recording.counters.setdefault(name, [])
            if not points or points[-1][1] != value:
                points.append((now, value))


_DRAWN: dict[Mark, Kind] = {
    Mark.GROWING: "GROWING",
    Mark.DEADLOCKED: "DEADLOCKED",
    Mark.REAPING: "REAPING",
}
