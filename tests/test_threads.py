"""Blocking calls that can be walked away from: whatever they bring then is undone, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread

from aslab import GFP
from aslab.backends import Callback, Mmap, _threads, run_blocking

from .support import settle

pytestmark = pytest.mark.anyio


class Call:
    """A blocking call that says when it has begun and waits to be let on; and what was undone."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.error = error
        self.undone: list[str] = []
        self.undone_in: list[int] = []

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        return "result"

    def undo(self, result: str) -> None:
        self.undone_in.append(threading.get_ident())
        self.undone.append(result)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


async def cancel_while_running(call: Call) -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await run_blocking(call, undo=call.undo)

        tasks.start_soon(run)
        await until(call.begun.is_set)
        tasks.cancel_scope.cancel()


async def test_the_result_comes_from_another_thread_and_is_not_undone() -> None:
    call = Call()
    call.go_on.set()
    thread: list[int] = []

    def work() -> str:
        thread.append(threading.get_ident())
        return call()

    assert await run_blocking(work, undo=call.undo) == "result"
    assert thread != [threading.get_ident()]
    assert not call.undone


async def test_what_the_call_raises_comes_out_as_it_is() -> None:
    call = Call(error=MemoryError("none left"))
    call.go_on.set()
    with pytest.raises(MemoryError, match=r"^none left$"):
        await run_blocking(call, undo=call.undo)
    assert not call.undone


async def test_a_call_cancelled_while_it_runs_is_left_behind_and_undone_by_its_thread() -> None:
    call = Call()
    with anyio.fail_after(60):
        await cancel_while_running(call)
    assert not call.undone, "the caller has gone, the call has not ended"
    call.go_on.set()
    await until(lambda: call.undone)
    assert call.undone == ["result"]
    assert call.undone_in != [threading.get_ident()]


async def test_a_call_that_fails_after_it_was_left_behind_has_nothing_to_undo() -> None:
    call = Call(error=MemoryError())
    before = threading.active_count()
    await cancel_while_running(call)
    call.go_on.set()
    await settle()
    assert threading.active_count() <= before + 1
    assert not call.undone


async def test_a_call_cancelled_before_it_starts_never_runs() -> None:
    call = Call()
    call.go_on.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_blocking(call, undo=call.undo)
    assert scope.cancelled_caught
    await settle()
    assert not call.begun.is_set()
    assert not call.undone


async def test_a_call_that_must_be_done_is_done_though_cancelled_before_it_starts() -> None:
    call = Call()
    call.go_on.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_blocking(call)
    assert scope.cancelled_caught
    await until(call.begun.is_set)


async def test_a_call_that_must_be_done_is_done_here_once_the_interpreter_starts_no_more_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(to_thread, "run_sync", refuse)
    with anyio.fail_after(60):
        assert await run_blocking(threading.get_ident) == threading.get_ident()
    with pytest.raises(MemoryError):
        await run_blocking(threading.get_ident, undo=lambda _: None)


async def test_a_release_cancelled_before_it_starts_gives_back_all_the_same() -> None:
    released: list[object] = []
    backend = Callback(lambda nbytes, align, gfp: bytearray(nbytes + align), released.append)
    region = await backend.acquire(64, 8, GFP.KERNEL)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend.release(region)
    await until(lambda: released)


async def test_a_result_that_a_cancellation_overtakes_is_undone_in_a_thread() -> None:
    """The call has ended, the loop has not heard of it, and the caller is cancelled."""
    call = Call()
    scope = anyio.CancelScope()
    delivered: list[str] = []

    async def run() -> None:
        with scope:
            delivered.append(await run_blocking(call, undo=call.undo))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(call.begun.is_set)
        scope.cancel()  # heard only when the loop runs again
        call.go_on.set()
        time.sleep(0.005)  # noqa: ASYNC251  (the loop must not hear of the end of the call)
    await until(lambda: call.undone)
    assert (call.undone, delivered) == (["result"], [])
    assert call.undone_in != [threading.get_ident()]


async def test_a_cancelled_acquire_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    prefault = Mmap.acquire.__globals__["prefault"]
    unmapped: list[int] = []

    def slowly(address: int, nbytes: int) -> None:
        begun.set()
        assert go_on.wait(60)
        prefault(address, nbytes)

    monkeypatch.setattr("aslab.backends._mmap.prefault", slowly)
    monkeypatch.setattr("aslab.backends._mmap._unmap", lambda region: unmapped.append(region.memory.nbytes))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Mmap().acquire, 4096, 64, GFP.KERNEL)
        await until(begun.is_set)
        tasks.cancel_scope.cancel()
    assert not unmapped
    go_on.set()
    await until(lambda: unmapped)
    assert unmapped == [4096]


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_cancelled_callback_gives_back_what_still_comes(kind: str) -> None:
    begun, go_on = threading.Event(), threading.Event()
    memory = bytearray(128)
    released: list[object] = []

    def acquire(nbytes: int, align: int, gfp: GFP) -> object:
        begun.set()
        assert go_on.wait(60)
        return memory

    async def release(given: object) -> None:
        await anyio.lowlevel.checkpoint()
        released.append(given)

    backend = Callback(acquire, released.append if kind == "plain" else release)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.acquire, 64, 8, GFP.KERNEL)
        await until(begun.is_set)
        tasks.cancel_scope.cancel()
    go_on.set()
    await until(lambda: released)
    assert released[0] is memory


async def test_memory_still_comes_when_every_worker_thread_of_the_service_is_busy() -> None:
    go_on = threading.Event()
    busy: list[int] = []

    def wait() -> None:
        busy.append(1)
        assert go_on.wait(60)

    limiter = to_thread.current_default_thread_limiter()
    async with anyio.create_task_group() as tasks:
        for _ in range(int(limiter.total_tokens)):
            tasks.start_soon(to_thread.run_sync, wait)
        await until(lambda: len(busy) == limiter.total_tokens)
        try:
            assert limiter.available_tokens == 0
            with anyio.fail_after(60):
                region = await Mmap().acquire(4096, 64, GFP.KERNEL)
                await Mmap().release(region)
        finally:
            go_on.set()


def test_a_call_that_must_run_runs_once_if_its_thread_begins_as_it_is_abandoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []
    job = _threads._Job(partial(called.append, 1), None)

    def in_thread(name: str, call: Callable[[], object]) -> None:
        job.run()
        call()

    monkeypatch.setattr(_threads, "in_thread", in_thread)
    job.abandon()
    assert called == [1]
