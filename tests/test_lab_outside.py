"""Other people's code in simulated time: threads, processes, contexts, futures, and a loop that computes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import importlib.util
import itertools
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_process
import anyio.to_thread
import pytest

from aslab import ConfigError
from aslab.lab import Lab, Stuck, current, run
from aslab.lab._simulation import _outside, _trio
from aslab.lab._simulation._asyncio import SimulatedLoop
from aslab.lab._simulation._idle import StuckInCleanUp
from aslab.lab._simulation._outside import Outside
from aslab.lab._simulation._stuck import frames_of
from aslab.lab._simulation._threads import Threads
from aslab.lab.pytest_plugin import LabRunner, lab

__all__ = ["lab"]

A_WHILE = 0.2  # real seconds
NEXT = 0.001  # simulated ones: a timer that would be over at once
SLOW = [sys.executable, "-c", f"import time; time.sleep({A_WHILE}); print('done')"]


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may take long to begin on a busy machine."""
    monkeypatch.setattr(_outside, "GRACE", 60.0)


def slow() -> str:
    time.sleep(A_WHILE)
    return "done"


# -- calls in threads


async def to_thread() -> Any:
    return await asyncio.to_thread(slow)


async def in_executor_of_ones_own() -> Any:
    with concurrent.futures.ThreadPoolExecutor() as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, slow)


async def in_two_at_once() -> Any:
    done = await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(None, slow) for _ in range(2)))
    return set(done).pop()


async def name_service() -> Any:
    return "done" if await asyncio.get_running_loop().getaddrinfo("localhost", 80) else None


async def child_process() -> Any:
    process = await asyncio.create_subprocess_exec(*SLOW, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode().strip()


async def exit_of_a_child_process() -> Any:
    process = await asyncio.create_subprocess_exec(*SLOW, stdout=subprocess.DEVNULL)
    return "done" if await process.wait() == 0 else None


OF_ASYNCIO = [
    to_thread,
    in_executor_of_ones_own,
    in_two_at_once,
    name_service,
    child_process,
    exit_of_a_child_process,
]


@pytest.mark.parametrize("timer", [False, True], ids=["no timer", "a timer"])
@pytest.mark.parametrize("call", OF_ASYNCIO)
def test_asyncio_calls_outside_are_waited_for_and_take_no_simulated_time(
    call: Callable[[], Awaitable[Any]], *, timer: bool
) -> None:
    async def main() -> Any:
        async with asyncio.timeout(NEXT if timer else None):
            return await call()

    outcome = run(main)
    assert outcome.value == "done"
    assert outcome.duration == 0


async def limiter_of_ones_own() -> Any:
    return await anyio.to_thread.run_sync(slow, limiter=anyio.CapacityLimiter(1))


async def process_of_anyio() -> Any:
    return (await anyio.run_process(SLOW)).stdout.decode().strip()


async def exit_of_a_process_of_anyio() -> Any:
    async with await anyio.open_process(SLOW, stdout=subprocess.DEVNULL) as process:
        return "done" if await process.wait() == 0 else None


async def worker_process() -> Any:
    return "done" if await anyio.to_process.run_sync(math.factorial, 3) == 6 else None


async def call_in_a_generator() -> Any:
    async def each() -> AsyncIterator[Any]:
        yield await limiter_of_ones_own()

    answers = [one async for one in each()]
    return answers.pop()


async def call_in_a_generator_that_has_a_default() -> Any:
    async def each() -> AsyncGenerator[Any, None]:
        yield await limiter_of_ones_own()

    async with contextlib.aclosing(each()) as ones:
        return await anext(ones, None)


async def call_of_an_object_that_is_awaited() -> Any:
    class Later:
        def __await__(self) -> Generator[Any, None, Any]:
            return limiter_of_ones_own().__await__()

    return await Later()


async def output_of_a_process_that_has_left_another() -> Any:
    leaves = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"
    async with await anyio.open_process([sys.executable, "-c", leaves, *SLOW], stderr=None) as process:
        assert await process.wait() == 0
        assert process.stdout is not None
        return b"".join([part async for part in process.stdout]).decode().strip()


OF_ANYIO = [
    limiter_of_ones_own,
    process_of_anyio,
    exit_of_a_process_of_anyio,
    worker_process,
    call_in_a_generator,
    call_in_a_generator_that_has_a_default,
    call_of_an_object_that_is_awaited,
    output_of_a_process_that_has_left_another,
]


@pytest.mark.parametrize("timer", [False, True], ids=["no timer", "a timer"])
@pytest.mark.parametrize("call", OF_ANYIO)
def test_calls_outside_are_waited_for_and_take_no_simulated_time(
    lab: LabRunner, call: Callable[[], Awaitable[Any]], *, timer: bool
) -> None:
    async def main() -> Any:
        with anyio.fail_after(NEXT if timer else None):
            return await call()

    outcome = lab(main)
    assert outcome.value == "done"
    assert outcome.duration == 0


def test_a_worker_process_that_has_nothing_to_do_does_not_hold_the_clock(
    lab: LabRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await anyio.to_process.run_sync(math.factorial, 3)
        monkeypatch.setattr(_outside.Outside, "waits", told(_outside.Outside.waits, found))
        await anyio.sleep(3600)

    found: list[float | None] = []
    assert lab(main).duration == 3600
    assert found[0] is None  # what comes later is the end of the worker, which is waited for


def told(call: Callable[..., Any], found: list[Any]) -> Callable[..., Any]:
    def instead(*args: Any) -> Any:
        found.append(call(*args))
        return found[-1]

    return instead


def test_a_call_that_nobody_waits_for_any_more_does_not_hold_the_clock(lab: LabRunner) -> None:
    go_on = threading.Event()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: anyio.to_thread.run_sync(go_on.wait, abandon_on_cancel=True))
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        await anyio.sleep(3600)
        go_on.set()

    assert lab(main).duration == 3600


def test_a_call_that_was_left_behind_may_still_call_the_loop(lab: LabRunner) -> None:
    """Where no timer is left. trio's threads are handed on from run to run, some while they end a call."""

    async def main() -> None:
        begun, finished = anyio.Event(), anyio.Event()

        def call() -> None:
            anyio.from_thread.run_sync(begun.set)
            time.sleep(A_WHILE)
            anyio.from_thread.run_sync(finished.set)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: anyio.to_thread.run_sync(call, abandon_on_cancel=True))
            await begun.wait()
            tasks.cancel_scope.cancel()
        await finished.wait()

    assert lab(main).duration == 0


def test_a_thread_of_ones_own_may_call_the_loop(lab: LabRunner) -> None:
    async def main() -> None:
        event = anyio.Event()
        async with anyio.from_thread.BlockingPortal() as portal:
            timer = threading.Timer(A_WHILE, portal.call, (event.set,))
            timer.start()
            await event.wait()

    assert lab(main).duration == 0


def test_threads_from_before_the_run_are_no_reason_to_wait() -> None:
    go_on = threading.Event()
    before, after = (threading.Thread(target=go_on.wait) for _ in range(2))
    before.start()
    threads = Threads()
    try:
        assert comes_back(threads)  # pools of other tests have threads too, which may be about to end
        after.start()
        assert threads.at_work()
    finally:
        go_on.set()
        before.join()
        after.join()


def test_a_thread_of_a_pool_is_one_to_wait_for_though_it_is_from_before_the_run() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        go_on.wait()

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        executor.submit(call)
        try:
            assert begun.wait(60)
            assert Threads().at_work()
        finally:
            go_on.set()


async def in_the_default_executor() -> None:
    await asyncio.to_thread(int)


async def in_a_pool() -> None:
    await anyio.to_thread.run_sync(int)


@pytest.mark.parametrize(
    ("loop", "call"), [("asyncio", in_the_default_executor), ("asyncio", in_a_pool), ("trio", in_a_pool)]
)
def test_a_thread_of_a_pool_that_waits_for_work_is_no_reason_to_wait(
    loop: str, call: Callable[[], Awaitable[Any]]
) -> None:
    async def main() -> bool:
        threads = Threads()
        await call()
        return comes_back(threads)

    assert run(main, loop=loop).value


def comes_back(threads: Threads) -> bool:
    """It has answered, but may be on its way to its queue."""
    end = time.monotonic() + 60
    while (at_work := threads.at_work()) and time.monotonic() < end:
        time.sleep(NEXT)
    return not at_work


def test_until_all_are_blocked_is_no_time_beside_a_call_in_a_thread(lab: LabRunner) -> None:
    """Which has begun by then. anyio's own sleeps on asyncio, and so would wait for the call."""
    go_on = threading.Event()
    came: concurrent.futures.Future[bool] = concurrent.futures.Future()

    async def main() -> None:
        def call() -> None:
            came.set_result(go_on.wait(_outside.GRACE / 2))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: anyio.to_thread.run_sync(call, abandon_on_cancel=True))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        go_on.set()

    assert lab(main).duration == 0
    assert came.result(60)


def test_two_can_wait_until_all_are_blocked(lab: LabRunner) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.wait_all_tasks_blocked)
            tasks.start_soon(anyio.wait_all_tasks_blocked)

    assert lab(main).duration == 0


def test_a_call_that_takes_long_sees_simulated_time_go_no_faster_than_the_real_one(
    lab: LabRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the clock would rush through hours while it ends."""
    monkeypatch.setattr(_outside, "GRACE", 0.05)
    began, go_on = time.monotonic(), threading.Event()

    async def with_a_heartbeat() -> float:
        async def beat() -> None:
            while True:
                await anyio.sleep(0.001)
                if current().time() > A_WHILE:
                    go_on.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            assert await anyio.to_thread.run_sync(go_on.wait, 60)
            tasks.cancel_scope.cancel()
        return current().time()

    passed = lab(with_a_heartbeat).value
    assert passed is not None
    assert A_WHILE < passed <= time.monotonic() - began


def test_a_thread_may_wait_for_what_a_task_does_later(lab: LabRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outside, "GRACE", 0.05)
    go_on = threading.Event()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: anyio.to_thread.run_sync(go_on.wait))
            await anyio.sleep(0.1)
            go_on.set()

    assert lab(main).duration >= 0.1


def test_a_thread_may_call_the_loop_that_waits_for_it(lab: LabRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_outside, "GRACE", 0.05)

    async def main() -> None:
        await anyio.to_thread.run_sync(lambda: anyio.from_thread.run(anyio.sleep, 0.1))

    assert lab(main).duration >= 0.1


def test_the_time_of_each_call_begins_anew() -> None:
    outside = Outside()
    first, second = object(), object()
    outside.look = lambda: [(first, "a call")]
    before = outside.waits()
    assert before is not None
    outside._since[id(first)] = (time.monotonic() - 2 * _outside.GRACE, first)
    assert outside.waits() == 0
    outside.look = lambda: [(first, "a call"), (second, "another")]
    assert outside.waits()  # the clock stands still for the newer one
    outside.look = list
    assert outside.waits() is None
    assert not outside._since


# -- who is stuck in the clean-up


def told_of(call: Callable[[SimulatedLoop], object]) -> str:
    loop = SimulatedLoop()
    try:
        with pytest.raises(StuckInCleanUp) as raised:
            call(loop)
    finally:
        loop.close()
    return str(raised.value)


def test_stuck_in_clean_up_names_a_bare_future() -> None:
    told = told_of(lambda loop: loop.run_until_complete(loop.create_future()))
    assert told == "every task is stuck: main waits on a bare OrderedFuture at no line of its own"


def test_stuck_in_clean_up_names_a_loop_that_waits_for_nothing() -> None:
    assert told_of(SimulatedLoop.run_forever) == (
        "every task is stuck: no task is left; the loop waits for a callback"
    )


@pytest.mark.filterwarnings("ignore")
def test_stuck_in_clean_up_names_tasks_of_libraries_alone() -> None:
    """Which are left out where tasks of the program are stuck."""
    told = told_of(lambda loop: loop.run_until_complete(asyncio.wait({loop.create_future()})))
    assert told.startswith("every task is stuck: Task-")
    assert "waits on" in told


# -- contexts


def test_a_task_runs_in_the_context_that_it_is_given_empty_or_not() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def look() -> str:
        before = variable.get()
        variable.set("of the task")
        return before

    async def main() -> tuple[str, str, str]:
        variable.set("of main")
        empty = contextvars.Context()
        assert not len(empty)
        before = await asyncio.get_running_loop().create_task(look(), context=empty)
        inherited = await asyncio.get_running_loop().create_task(look())
        return before, empty[variable], inherited

    assert run(main).value == ("none", "of the task", "of main")


def test_the_loop_has_no_task_factory_of_its_own_and_takes_another() -> None:
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert loop.get_task_factory() is None
        loop.set_task_factory(factory)
        await asyncio.create_task(anyio.sleep(1))

    run(main)
    assert made[0].__name__ == "sleep"


# -- order


async def bare_futures(how: str) -> list[int]:
    loop = asyncio.get_running_loop()
    made = [asyncio.Future() if how == "named" else loop.create_future() for _ in range(30)]
    for future in made:
        loop.call_later(1, future.set_result, None)
    done, _ = await asyncio.wait(made)
    return [made.index(future) for future in done]


async def completed_coroutines(_: str) -> list[int]:
    async def one(number: int) -> int:
        await asyncio.sleep(1)
        return number

    return [await each for each in asyncio.as_completed([one(number) for number in range(30)])]


async def gathered(_: str) -> list[int]:
    made = [asyncio.gather(asyncio.sleep(1)) for _ in range(30)]
    return [made.index(future) for future in set(made)]


@pytest.mark.parametrize(
    ("call", "how"), [(bare_futures, "named"), (bare_futures, "made"), (completed_coroutines, ""), (gathered, "")]
)
def test_futures_come_in_the_same_order_in_twenty_runs(
    call: Callable[[str], Awaitable[list[int]]], how: str
) -> None:
    chance = random.Random(7)
    found = set()
    for _ in range(20):
        ballast = [[object()] * chance.randrange(50) for _ in range(chance.randrange(2000))]
        del ballast[:: chance.randrange(1, 5)]  # the next objects lie elsewhere
        found.add(tuple(run(call, how).value or ()))
        del ballast
    assert len(found) == 1
    assert sorted(found.pop()) == list(range(30))


def test_a_future_is_one_by_whatever_name() -> None:
    future_type = asyncio.Future

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(anyio.sleep(1))
        for one in (asyncio.Future(), loop.create_future(), task, asyncio.gather(task)):
            assert isinstance(one, asyncio.Future)
            assert isinstance(one, future_type)
        assert not isinstance(loop, asyncio.Future)
        assert issubclass(asyncio.Task, asyncio.Future)

        class Own(asyncio.Future):  # type: ignore[type-arg]
            pass

        assert isinstance(Own(), Own)
        assert not isinstance(task, Own)
        assert not issubclass(asyncio.Task, Own)
        await task

    run(main)
    assert asyncio.Future is future_type
    assert "set" not in vars(asyncio.tasks)


# -- processor time


def test_the_clock_goes_on_while_a_task_computes_and_nobody_else_has_a_turn(lab: LabRunner) -> None:
    log: list[tuple[str, float]] = []

    async def sleeps(seconds: float) -> None:
        await anyio.sleep(seconds)
        log.append((f"{seconds:g}", current().time()))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for seconds in (3, 1, 9):
                tasks.start_soon(sleeps, seconds)
            await anyio.sleep(0.5)
            current().spend(5)
            log.append(("computed", current().time()))

    assert lab(main).duration == 9
    assert log == [("computed", 5.5), ("1", 5.5), ("3", 5.5), ("9", 9)]


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "1", None])
def test_what_is_no_time_cannot_be_spent(lab: LabRunner, seconds: Any) -> None:
    async def main() -> None:
        current().spend(seconds)

    with pytest.raises(ConfigError, match="seconds"):
        lab(main)


def test_in_real_time_the_processor_is_used() -> None:
    async def main() -> float:
        began = time.thread_time()
        Lab(0).spend(0.02)
        return time.thread_time() - began

    assert anyio.run(main) > 0


def test_a_socket_that_another_thread_answers_is_waited_for_where_no_timer_is_left(lab: LabRunner) -> None:

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    timer = threading.Timer(A_WHILE, theirs.sendall, (b"x",))

    async def main() -> bytes:
        timer.start()
        await anyio.wait_readable(ours)
        return ours.recv(1)

    try:
        assert lab(main).value == b"x"
    finally:
        timer.join()
        ours.close()
        theirs.close()


def test_where_no_call_and_no_child_is_under_way_only_who_waits_at_a_socket_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An allocator always has one. To look at every task at each jump of the clock is quadratic."""
    looked = 0

    def counting(awaitable: Any) -> Iterator[Any]:
        nonlocal looked
        looked += 1
        return frames_of(awaitable)

    monkeypatch.setattr(_trio, "frames_of", counting)
    monkeypatch.setattr(_trio, "_calls", lambda: 0)  # of other tests, some may be left
    monkeypatch.setattr(_trio, "_children", lambda: False)
    ours, theirs = socket.socketpair()

    async def wait() -> None:
        await anyio.wait_readable(ours)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for number in range(1, 101):
                tasks.start_soon(anyio.sleep, number)
            await anyio.sleep(1000)
            tasks.cancel_scope.cancel()

    with ours, theirs:
        run(main, loop="trio")
    jumps = 101
    assert jumps <= looked <= 2 * (jumps + 1)


def test_who_waits_for_a_limiter_is_not_in_a_thread(lab: LabRunner) -> None:
    """It waits for a task, which may sleep: the clock goes on."""

    async def main() -> None:
        limiter = anyio.CapacityLimiter(1)

        async def holds() -> None:
            async with limiter:
                await anyio.sleep(3600)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holds)
            await anyio.lowlevel.checkpoint()
            await anyio.to_thread.run_sync(lambda: None, limiter=limiter)

    assert lab(main).duration == 3600


def test_tasks_without_a_timer_are_stuck_beside_idle_threads(lab: LabRunner) -> None:
    async def main() -> None:
        await anyio.to_thread.run_sync(lambda: None)
        await anyio.Event().wait()

    with pytest.raises(Stuck):
        lab(main)


def test_numbers_are_of_the_loop_and_begin_at_its_beginning() -> None:
    async def main() -> int:
        return min(hash(asyncio.get_running_loop().create_future()) for _ in itertools.repeat(None, 3))

    assert run(main).value == run(main).value


def test_a_loop_beside_the_main_thread_waits_for_its_calls() -> None:
    """As a blocking portal's does, which has no timer and nothing to do until then."""
    loop = SimulatedLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    time.sleep(A_WHILE)
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(3600, "done"), loop).result(60) == "done"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()


def test_every_exception_of_other_suites_is_documented() -> None:
    path = Path(__file__).parent.parent / "scripts" / "foreign_suites.py"
    spec = importlib.util.spec_from_file_location("foreign_suites", path)
    assert spec is not None
    assert spec.loader is not None
    suites = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suites)
    docs = (path.parent.parent / "docs" / "lab.md").read_text()
    for suite, patterns in suites.EXCEPTIONS.items():
        for pattern, why in patterns.items():
            assert f"| {suite} | `{pattern}` | {why} |" in docs
