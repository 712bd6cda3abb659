"""Plays a scenario: from the contents of a file and a seed to a result.

build the machine → open the allocator → run the tasks until the duration or their rounds are over
→ measure → end every deadlock, return all memory → check that nothing is missing
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anyio

from ... import Allocator, open_allocator
from ..._allocator import tasks_of
from ..._cache import pool_of
from ...emulation import Shrinker
from ...pressure import Signal, Source
from ...testing import check_consistency
from .._simulation._interrupts import TRIO_OPTIONS, never_lost
from .._simulation._log import EventLog
from .._simulation._run import Lab, current, housekeeping, wait_for_timers
from .._simulation._run import run as run_simulated
from ._load import cache_options
from ._machine import Machine, Observed
from ._notes import Notes
from ._recording import Recording
from ._result import Result
from ._schema import Happening, Scenario
from ._workload import Worker, shuffled

PATIENCE_AT_THE_END = 5.0
"""Real seconds, in real time, that anything still under way may take while memory is returned."""


@dataclass(frozen=True, slots=True)
class Played:
    """The outcome of a run, its log, and its recording if there is one."""

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
    """Play a scenario. Blocks until it ends; must not be called inside an event loop.

    :param seed: replaces the scenario's own
    :param loop: ``asyncio`` or ``trio``
    :param real_time: run on the wall clock; the log then differs from run to run
    :param record: record what a trace or a report needs
    :param progress: called from time to time with the fraction done, 0 to 1
    """
    seed = scenario.seed if seed is None else seed

    async def main() -> Played:
        lab = Lab(seed) if real_time else current()
        machine, recording = Machine(scenario, lab.seed), Recording() if record else None
        notes = Notes(scenario, lab, machine.memory, recording, progress, real_time=real_time)
        run = Run(scenario, machine, notes, real_time=real_time)
        with never_lost():
            await run.play()
        return Played(run.result(loop), lab.log, recording)

    if real_time:
        return anyio.run(main, backend=loop, backend_options=TRIO_OPTIONS if loop == "trio" else {})
    outcome = run_simulated(main, seed=seed, loop=loop)
    assert outcome.value is not None  # without `until` it always finishes
    return outcome.value


class Run:
    """One run: its machine, its allocator, and its tasks."""

    def __init__(self, scenario: Scenario, machine: Machine, notes: Notes, *, real_time: bool) -> None:
        self._scenario = scenario
        self._machine = machine
        self._notes = notes
        self._real_time = real_time
        self._lab = notes.lab
        wait_for_timers(self._lab)  # the end of the workload is one
        section = scenario.allocator
        self._slabs = Observed(machine.backends[section.slabs], "slabs", notes.backend)
        self._single = Observed(machine.backends[section.emergency], "emergency", notes.backend)
        self._signal = Signal()
        self._pressure: list[Source] = [self._signal]
        if section.shrinker:
            self._pressure.append(Shrinker(machine.memory))
        self._caches = notes.caches
        self._workers: list[Worker] = []
        self._ended: float | None = None
        self._stuck: tuple[str, ...] = ()

    async def play(self) -> None:
        """Run the whole scenario."""
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
                pool_of(self._caches[name]).marks.observer = partial(self._notes.marked, name)
            for group, tasks in self._scenario.tasks.items():
                self._workers += [
                    Worker(self._notes, group, number, tasks, self._caches[tasks.cache])
                    for number in range(tasks.count)
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
                for worker in shuffled(self._workers, self._lab.seed):
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
        await anyio.sleep(max(0.0, time - self._lab.time()))  # in real time it may have passed

    async def _happen(self, happening: Happening, kmem: Allocator) -> None:
        await self._until(happening.time)
        await self._do(happening, kmem)
        while happening.every is not None:
            await anyio.sleep(happening.every)
            await self._do(happening, kmem)

    async def _do(self, happening: Happening, kmem: Allocator) -> None:
        event = self._notes.event("the scenario", happening.do, happening.backend or "")
        self._notes.moment(event)
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
        """The workload is over: record the state it leaves."""
        if self._ended is not None:
            return
        event = self._notes.event("the scenario", "ends")
        self._ended = event.time
        for worker in self._workers:
            worker.end()
        for name, cache in self._caches.items():
            stats = cache.stats()
            self._notes.feed("emergency_left", stats.obj_emergency, event, cache=name)
            self._notes.feed("deadlocked_left", stats.deadlocked, event, cache=name)
            self._notes.feed("slabs_left", stats.slab_total, event, cache=name)
            self._notes.feed("slab_regrets", stats.slab_regret, event, cache=name)
            self._notes.feed("objects_moved", stats.move_yes, event, cache=name)
        space = self._machine.space
        longest, total = space.queued()
        self._notes.feed("lock_wait", max(longest, space.lock_wait_longest), event)
        self._notes.feed("lock_wait_total", total + space.lock_wait_total, event)
        self._notes.feed("lowest_free", self._machine.memory.lowest_free, event)
        self._notes.feed("stuck", len(self._stuck), event)

    async def _give_back(self, kmem: Allocator) -> None:
        """End every deadlock, let pending work finish, and return all memory."""
        self._notes.feed("kicked", kmem.stats().kicked, self._notes.event("the scenario", "gives back"))
        self._machine.let_go()
        with anyio.move_on_after(PATIENCE_AT_THE_END if self._real_time else math.inf):
            await tasks_of(kmem).worker.idle()
            await kmem.reap()
            await tasks_of(kmem).arena.slabs.idle()
            await tasks_of(kmem).arena.singles.idle()
        for name, cache in self._caches.items():
            try:
                check_consistency(cache)
            except AssertionError as exc:
                self._notes.feed("wrong_books", 1, self._notes.event(name, "wrong", str(exc)), cache=name)

    def _last_look(self) -> None:
        regions = self._slabs.outstanding + self._single.outstanding
        event = self._notes.event("the scenario", "is over", f"{regions} regions are missing")
        self._notes.feed("memory_lost", regions + self._machine.pages_missing, event)

    def result(self, loop: str) -> Result:
        """The result, after `play`."""
        figures = self._notes.watches.figures()
        return Result(
            scenario=self._scenario.name,
            about=self._scenario.about,
            seed=self._lab.seed,
            loop=loop,
            real_time=self._real_time,
            verdicts=self._notes.watches.verdicts(),
            log_sha256=self._lab.log.sha256,
            events=len(self._lab.log),
            duration=self._ended or 0.0,
            emergency_max=round(figures["emergency_max"]),
            deadlocks=round(figures["deadlocks"]),
            longest_wait=figures["longest_wait"],
            stuck=self._stuck,
            figures=figures,
        )
