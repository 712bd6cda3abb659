"""Run an async function in simulated time, from a seed.

An hour passes in milliseconds: whenever no task can run, the clock jumps to the next timer. The same
seed gives the same run, on the same loop, in every process: the loop's own choices, the generators of
``random`` and `Lab.random` come from it. What is not simulated is the world outside: sockets, threads
and subprocesses take real time, and their order is theirs. The clock stands still for the latter two.
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
from ..._tasks import HOUSEKEEPING
from ._idle import Idle, StuckInCleanUp
from ._log import EventLog
from ._stuck import StuckTask

T = TypeVar("T")
Args = TypeVarTuple("Args")
LoopName = Literal["asyncio", "trio"]
LOOPS: tuple[LoopName, ...] = ("asyncio", "trio")


class Stuck(SlabError):
    """Every task waits, and no timer is left that could end it. The fault of who waits on whom."""

    def __init__(self, tasks: tuple[StuckTask, ...], since: float, log: EventLog) -> None:
        self.tasks = tasks
        """Who waits on what."""
        self.since = since
        """Simulated seconds, from the start of the run."""
        self.log = log
        """What happened until then."""
        lines = "".join(f"\n  {task}" for task in tasks)
        super().__init__(f"every task is stuck since {since:g} s:{lines}")


class Lab:
    """The run that a task is part of: see `current`."""

    def __init__(self, seed: int, idle: Idle | None = None) -> None:
        self.seed = seed
        self.random: random.Random = random.Random(f"{seed}/lab")
        """For whatever is random in the run."""
        self.log: EventLog = EventLog(self.time)
        self._start = anyio.current_time()
        self._idle = idle or Idle()

    def time(self) -> float:
        """Seconds since the start of the run."""
        return anyio.current_time() - self._start

    def spend(self, seconds: float) -> None:
        """Use that much processor time: the clock goes on, and no other task or timer has its turn meanwhile.

        As a task does that computes, and so makes the loop late for all others. Does not suspend. In real
        time, where a scenario is played so, it is the processor's real time.

        :raises ConfigError: for what is no time
        """
        check_seconds("seconds", seconds, zero=True)
        self._idle.spend(seconds)

    def stuck(self) -> tuple[StuckTask, ...]:
        """Who waits on what, where no task has a timer left (see `housekeeping`); else nothing."""
        return self._idle.look()


_current: ContextVar[Lab] = ContextVar("aslab_lab")


def current() -> Lab:
    """The run that this task is part of.

    :raises RuntimeError: outside of `run`
    """
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError("not inside of aslab.lab.run()") from None


def housekeeping() -> None:
    """Say that this task only looks after others: where just such tasks have timers left, the run is stuck.

    For monitors, not for what others wait for: a run in which only housekeeping makes others go on is
    called stuck in the end. Does not suspend.
    """
    HOUSEKEEPING.set(True)


def wait_for_timers(lab: Lab) -> None:
    """Have the run go on to its end, however long only housekeeping has timers. Does not suspend."""
    lab._idle.patience = math.inf


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a run went."""

    value: T | None
    """What the function returned; None where it did not come to that."""
    finished: bool
    """Whether it returned, rather than being ended by ``until``."""
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

    Inside, `current` is the run: its log, its random numbers, its time. What ``main`` raises comes out.
    Blocks until the end; not inside an event loop. One run at a time in a process: the order of tasks
    and the module ``random`` are seeded for the time of it.

    :param seed: the same seed, the same run
    :param loop: ``asyncio`` or ``trio``
    :param until: simulated seconds after which the run is ended, whatever it does
    :raises Stuck: if every task waits for good; who waits on what is told
    :raises RuntimeError: if that is so again while it is cleaned up
    :raises ConfigError: for a bad argument
    """
    whole_number("seed", seed, 0)
    if loop not in LOOPS:
        raise ConfigError("loop", loop, f"allowed are {', '.join(LOOPS)}")
    if until is not None:
        check_seconds("until", until, zero=True)
    idle = Idle()
    with _seeded(seed), _collecting(idle), _simulated(loop, seed, idle) as run_here:
        try:
            outcome: Outcome[T] = run_here(_root, main, args, seed, until, idle)
            return outcome
        except BaseException as exc:  # trio wraps what comes out of its clock
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
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
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

        with ordered_tasks(seed):  # not by anyio.run, which before 4.14 forgot the clock
            yield partial(trio.run, clock=simulated_clock(idle))
    else:
        from ._asyncio import SimulatedLoop
        from ._order import ordered

        with ordered():
            yield partial(anyio.run, backend_options={"loop_factory": lambda: SimulatedLoop(idle)})


@contextlib.contextmanager
def _collecting(idle: Idle) -> Iterator[None]:
    """Collect garbage at points that are the same in every run: finalisers bring buffers back."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    gc.freeze()  # what was there before is none of the run's business
    idle.collect = gc.collect
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
