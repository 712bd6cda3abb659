"""Run an async function in simulated time, from a seed.

An hour passes in milliseconds: whenever no task can run, the clock jumps to the next timer. The same seed
gives the same run on the same loop, in every process: it seeds the loop's own choices, the module ``random``
and `Lab.random`. The outside world is not simulated: sockets, threads and subprocesses take real time, in an
order of their own. The clock stands still for threads and subprocesses.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar, TypeVarTuple

import anyio

from ..._checks import seconds as check_seconds
from ..._checks import whole_number
from ..._errors import ConfigError, SlabError
from ..._kmem._clock import Clock, clock_of_this_loop
from ..._kmem._wakeup import HOUSEKEEPING
from ._idle import Idle, StuckInCleanUp
from ._interrupts import TRIO_OPTIONS, never_lost, second_at_once
from ._log import EventLog
from ._stuck import StuckTask

T = TypeVar("T")
Args = TypeVarTuple("Args")
LoopName = Literal["asyncio", "trio"]
LOOPS: tuple[LoopName, ...] = ("asyncio", "trio")


class Stuck(SlabError):
    """Every task waits, and no timer is left to wake any of them: a deadlock."""

    def __init__(self, tasks: tuple[StuckTask, ...], since: float, log: EventLog) -> None:
        self.tasks = tasks
        """Who waits on what."""
        self.since = since
        """When that began, in simulated seconds from the start of the run."""
        self.log = log
        """The event log up to then."""
        lines = "".join(f"\n  {task}" for task in tasks)
        super().__init__(f"every task has been stuck since {since:g} s into the run:{lines}")


class Lab:
    """The run that a task belongs to: see `current`."""

    def __init__(self, seed: int, idle: Idle | None = None) -> None:
        self.seed = seed
        """Of the run: what is random in it follows from this."""
        self.random: random.Random = random.Random(f"{seed}/lab")
        """For anything random in the run."""
        self._idle = idle or Idle()
        self._clock: Clock = self._idle.clock or clock_of_this_loop()
        self._start = self._clock()
        self.log: EventLog = EventLog(self.time if self._start else self._clock)
        """What happened in the run, with the simulated time of each event."""

    def time(self) -> float:
        """Seconds since the start of the run."""
        return self._clock() - self._start

    def spend(self, seconds: float) -> None:
        """Use that much processor time: the clock moves on, and no other task or timer runs meanwhile.

        This is what a task does that computes, and so delays all others. Does not suspend. When a scenario is
        played in real time, it keeps the real processor busy.

        :raises ConfigError: if it is not a number of seconds
        """
        check_seconds("seconds", seconds, zero=True)
        self._idle.spend(seconds)

    def stuck(self) -> tuple[StuckTask, ...]:
        """Who waits on what, if no task but housekeeping has a timer left (see `housekeeping`); else empty."""
        return self._idle.look()


_current: ContextVar[Lab] = ContextVar("aslab_lab")


def current() -> Lab:
    """The run that this task belongs to.

    :raises RuntimeError: outside of `run`
    """
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError("not inside of aslab.lab.run()") from None


def housekeeping() -> None:
    """Mark this task as housekeeping: when only such tasks have timers left, the run is stuck.

    Meant for monitors, not for anything that other tasks wait for: a run in which only housekeeping makes
    progress is eventually reported as stuck. Does not suspend.
    """
    HOUSEKEEPING.set(True)


def sleep_of(lab: Lab) -> Callable[[float], Awaitable[object]]:
    """`anyio.sleep` for tasks of this run, which need not look for their loop each time."""
    return lab._idle.sleep


def wait_for_timers(lab: Lab) -> None:
    """Never report this run as stuck while any timer is left, even if only housekeeping has one."""
    lab._idle.patience = math.inf


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a run went."""

    value: T | None
    """What the function returned; None if it did not return."""
    finished: bool
    """Whether it returned before ``until``."""
    duration: float
    """Simulated seconds."""
    log: EventLog
    """What was written to `Lab.log`."""


def run(
    main: Callable[[*Args], Awaitable[T]],
    *args: *Args,
    seed: int = 0,
    loop: str = "asyncio",
    until: float | None = None,
) -> Outcome[T]:
    """Run ``main(*args)`` to its end in simulated time.

    Inside, `current` gives access to the run: its log, its random numbers, its time. Exceptions from ``main``
    propagate. Blocks until the end; must not be called inside an event loop. One run at a time per process:
    the order of tasks and the module ``random`` are seeded for its duration.

    :param seed: the same seed, the same run
    :param loop: ``asyncio`` or ``trio``
    :param until: simulated seconds after which the run is cancelled
    :raises Stuck: if every task waits for good; it lists who waits on what
    :raises RuntimeError: if the run gets stuck again while it cleans up
    :raises ConfigError: if an argument is wrong
    """
    whole_number("seed", seed, 0)
    if loop not in LOOPS:
        raise ConfigError("loop", loop, f"it must be one of {', '.join(LOOPS)}")
    if until is not None:
        check_seconds("until", until, zero=True)
    idle = Idle()
    with _seeded(seed), _collecting(idle), _simulated(loop, seed, idle) as run_here:
        try:
            outcome: Outcome[T] = run_here(_root, main, args, seed, until, idle)
            return outcome
        except BaseException as exc:  # trio wraps exceptions from its clock
            if isinstance(exc.__cause__, StuckInCleanUp):
                raise exc.__cause__ from None
            raise


async def _root(
    main: Callable[..., Awaitable[T]], args: tuple[Any, ...], seed: int, until: float | None, idle: Idle
) -> Outcome[T]:
    lab = Lab(seed, idle)
    _current.set(lab)
    value: T | None = None
    error: BaseException | None = None
    finished = False
    with never_lost():
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope, second_at_once():
                idle.end = scope.cancel
                if until is not None:
                    tasks.start_soon(_end_after, until, scope, name="aslab.lab end")
                try:
                    value = await main(*args)
                    finished = True
                except BaseException as exc:  # raised again below, outside of the task group
                    if scope.cancel_called and not isinstance(exc, Exception):
                        raise
                    error = exc
            tasks.cancel_scope.cancel()
        if error is not None:
            raise error
    if idle.found and not finished:
        raise Stuck(idle.found, idle.found_since, lab.log)
    return Outcome(value, finished, lab.time(), lab.log)


async def _end_after(until: float, scope: anyio.CancelScope) -> None:
    housekeeping()
    await anyio.sleep(until)
    scope.cancel()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _simulated(loop: str, seed: int, idle: Idle) -> Iterator[Callable[..., Any]]:
    if loop == "trio":
        import trio

        from ._trio import ordered_tasks, simulated_clock

        with ordered_tasks(seed):  # not anyio.run, which dropped the clock before 4.14
            options: dict[str, Any] = {"clock": simulated_clock(idle), **TRIO_OPTIONS}
            yield partial(trio.run, **options)
    else:
        from ._asyncio import SimulatedLoop
        from ._order import ordered

        with ordered():
            yield partial(anyio.run, backend_options={"loop_factory": lambda: SimulatedLoop(idle)})


@contextlib.contextmanager
def _collecting(idle: Idle) -> Iterator[None]:
    """Collect garbage at the same points in every run: finalisers return buffers."""
    enabled = gc.isenabled()
    gc.collect(1)  # a full one would look at all modules, for longer than a short run takes
    gc.disable()
    gc.freeze()  # leave alone what existed before the run
    idle.collect = gc.collect
    try:
        yield
    finally:
        gc.collect()  # what the run has left, alone
        gc.unfreeze()
        if enabled:
            gc.enable()
