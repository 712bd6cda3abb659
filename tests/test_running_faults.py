"""Faults in a running service: turned on and off by `Allocator.faults`, at the socket and by the command."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, CacheClosedError, ConfigError, EventKind
from aslab._answering import Answers
from aslab._requests import answer
from aslab.backends import Region
from aslab.backends._protocol import batching
from aslab.cli._top._source import ask
from aslab.faults import Fault, FaultKind, Switch

from .helpers import Loop
from .support import SIZE, Instant, allocator, settle, start
from .test_cli import told

pytestmark = pytest.mark.anyio


class Batches(Instant):
    """Memory that several regions of are delivered by one call."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return await super().acquire(nbytes, align, gfp)

    async def acquire_many(self, count: int, nbytes: int, align: int, gfp: GFP, within: float) -> list[Region]:
        self.batches.append(count)
        return [await self.acquire(nbytes, align, gfp) for _ in range(count)]


async def test_no_slab_of_real_memory_comes_by_another_way_while_growth_is_stuck() -> None:
    async with aslab.open_allocator(faults=True, grow_timeout=0.01) as kmem:
        cache = kmem.create_cache("frames", SIZE, objects_per_slab=1)
        await cache.prefill(1)
        kmem.faults.growth.stick()
        bufs = [await cache.alloc() for _ in range(cache.stats().obj_total + 2)]
        assert bufs[-1].emergency
        for buf in bufs:
            buf.free()


class TestFaults:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    async def test_a_stuck_backend_heals_itself_and_both_are_logged_and_are_events(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "aslab")
        async with allocator(faults=True, emergency_limit=0) as kmem:
            cache = kmem.create_cache("frames", SIZE)
            with kmem.events() as events:
                kmem.faults.growth.stick(3)
                began = anyio.current_time()
                async with anyio.create_task_group() as tasks:
                    await start(tasks, cache.prefill, 1)
                    await anyio.sleep(1)
                    (status,) = kmem.faults.status()
                    assert (status.where, status.kind, status.held_up) == ("growth", FaultKind.STUCK, 1)
                    assert [status.age, status.left] == pytest.approx([1, 2])
                    assert kmem.stats().faults == ("growth stuck, for 2 s more, holding up 1",)
                assert anyio.current_time() - began == pytest.approx(3)
                assert kmem.stats().faults == ()
                seen = [await anext(events) for _ in range(2)]
            assert [(one.kind, one.cache, one.text) for one in seen] == [
                (EventKind.FAULT, "", "fault on: growth stuck, for 3 s"),
                (EventKind.HEALED, "", "fault off after 3 s: growth stuck"),
            ]
            assert seen[1].seconds == pytest.approx(3)
            records = [record for record in caplog.records if hasattr(record, "aslab_fault")]
            assert [(vars(one)["aslab_event"], one.levelname, one.getMessage()) for one in records] == [
                ("fault", "WARNING", seen[0].text),
                ("healed", "INFO", seen[1].text),
            ]

    async def test_one_that_nobody_meets_is_told_to_be_over_in_time(self) -> None:
        async with allocator(faults=True) as kmem:
            with kmem.events() as events:
                kmem.faults.emergency.fail(5, seconds=2)
                kmem.faults.growth.slow(0.1)
                await anyio.sleep(1)
                kmem.faults.growth.slow(0.2, seconds=5)  # in place of the first
                told = [(await anext(events)).text for _ in range(6)]
            assert told == [
                "fault on: emergency objects failing 5 times, for 2 s",
                "fault on: growth slow by 0.1 s",
                "fault off after 1 s: growth slow by 0.1 s",
                "fault on: growth slow by 0.2 s, for 5 s",
                "fault off after 2 s: emergency objects failing 5 times",
                "fault off after 5 s: growth slow by 0.2 s",
            ]

    async def test_so_many_acquires_fail_and_then_no_more(self) -> None:
        async with allocator(faults=True) as kmem:
            cache = kmem.create_cache("frames", SIZE, objects_per_slab=1)
            kmem.faults.growth.fail(2)
            assert kmem.stats().faults == ("growth failing 2 times",)
            await cache.prefill(3)
            assert (cache.stats().slab_fail, kmem.faults.growth.failures, kmem.stats().faults) == (2, 2, ())
            kmem.faults.emergency.fail(2)
            with pytest.raises(MemoryError):
                kmem.faults.emergency.acquire_nowait(SIZE, 64, GFP.KERNEL)
            assert kmem.stats().faults == ("emergency objects failing once",)

    async def test_slow_acquires_take_longer_and_go_on_when_it_ends(self) -> None:
        async with allocator(faults=True, emergency_limit=0) as kmem:
            cache = kmem.create_cache("frames", SIZE, objects_per_slab=1)
            began = anyio.current_time()
            kmem.faults.growth.slow(0.25)
            await cache.prefill(2)
            assert anyio.current_time() - began == pytest.approx(0.5)
            kmem.faults.growth.slow(60)
            with pytest.raises(anyio.WouldBlock):
                kmem.faults.growth.acquire_nowait(SIZE, 64, GFP.KERNEL)
            async with anyio.create_task_group() as tasks:
                await start(tasks, cache.prefill, 3)
                await anyio.sleep(1)
                kmem.faults.heal()
            assert anyio.current_time() - began == pytest.approx(1.5)

    async def test_closing_the_allocator_heals_and_takes_no_more(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            async with allocator(faults=True) as kmem:
                cache = kmem.create_cache("frames", SIZE)
                faults = kmem.faults
                faults.growth.stick()
                (await cache.alloc()).free()  # an emergency object
                assert faults.growth.stuck == 1
                began = anyio.current_time()
            assert anyio.current_time() == began
        assert (faults.status(), faults.growth.stuck) == ((), 0)
        with pytest.raises(CacheClosedError, match="the allocator is closed"):
            faults.growth.stick()

    async def test_a_backend_that_batches_still_does_and_may_be_stuck(self) -> None:
        async with allocator(faults=True) as kmem:
            assert batching(kmem.faults.growth) is None
        slabs = Batches()
        async with allocator(slabs=slabs, faults=True) as kmem:
            switch = batching(kmem.faults.growth)
            assert switch is not None
            kmem.faults.growth.stick(1)
            began = anyio.current_time()
            regions = await switch.acquire_many(2, SIZE, 64, GFP.KERNEL, 1.0)
            assert anyio.current_time() - began == pytest.approx(1)
            assert slabs.batches == [2]
            for region in regions:
                await kmem.faults.growth.release(region)

    async def test_without_the_option_there_are_none_and_the_message_says_how(self) -> None:
        async with allocator() as kmem:
            message = r"^faults are not allowed here: to allow them, open the allocator with faults=True$"
            with pytest.raises(ConfigError, match=message):
                kmem.faults
            found = json.loads(answer("fault growth stuck", bytes, None))
            assert found["error"].startswith("faults are not allowed here: to allow them")

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            ("faults", "request: 'faults' is not allowed; it must be fault"),
            ("fault", "fault: '' is not allowed; it must be growth, emergency, heal or status"),
            ("fault heal now", "fault: 'heal now' is not allowed; it must be growth, "),
            ("fault growth", "growth: '' is not allowed; it must be stuck [DURATION], slow DELAY"),
            ("fault growth stuk 3s", "growth: 'stuk 3s' is not allowed; it must be stuck"),
            ("fault growth stuck 3s 4s", "growth: 'stuck 3s 4s' is not allowed"),
            ("fault growth stuck 3x", "duration: '3x' is not allowed; it must be a time such as 3s"),
            ("fault growth slow", "growth: 'slow' is not allowed"),
            ("fault growth slow 0s", "delay: '0s' is not allowed"),
            ("fault emergency fail some", "times: 'some' is not allowed; it must be a whole number of at least 1"),
            ("fault emergency fail 0", "times: 0 is not allowed"),
            ("fault emergency fail 2 -1s", "duration: '-1s' is not allowed"),
        ],
    )
    async def test_a_wrong_command_is_told_in_one_line_and_changes_nothing(
        self, request_: str, error: str
    ) -> None:
        async with allocator(faults=True) as kmem:
            kmem.faults.growth.fail(7)
            found = json.loads(answer(request_, bytes, kmem.faults))
            assert found["error"].startswith(error)
            assert "\n" not in found["error"]
            assert kmem.stats().faults == ("growth failing 7 times",)

    async def test_commands_do_what_they_say(self) -> None:
        async with allocator(faults=True) as kmem:

            def say(command: str) -> tuple[str, list[str]]:
                found = json.loads(answer(command, bytes, kmem.faults))
                return found["done"], [one["text"] for one in found["faults"]]

            assert say("fault status") == ("", [])
            say("fault growth stuck 90m")
            assert kmem.stats().faults == ("growth stuck, for 5400 s more",)
            assert say("fault growth stuck 3s") == ("turned on: growth stuck 3s", ["growth stuck, for 3 s more"])
            assert say("fault emergency fail 5")[1][1:] == ["emergency objects failing 5 times"]
            assert say("fault emergency slow 200ms 1m")[1][1:] == [
                "emergency objects slow by 0.2 s, for 60 s more",
                "emergency objects failing 5 times",
            ]
            assert say("fault growth heal")[0] == "healed: growth stuck, for 3 s more"
            done, left = say("fault heal")
            assert done.startswith("healed: emergency objects slow")
            assert left == []
            assert say("fault heal")[0] == "there was nothing to heal"


def test_what_is_over_is_over_before_anybody_has_noticed() -> None:
    now, told = [0.0], list[tuple[FaultKind, bool]]()
    switch = Switch(Instant(), clock=lambda: now[0], tell=lambda fault, on: told.append((fault.kind, on)))
    switch.stick(5)
    switch.fail(1, seconds=4)
    now[0] = 4.5
    with pytest.raises(anyio.WouldBlock):
        switch.acquire_nowait(SIZE, 64, GFP.KERNEL)
    now[0] = 5.0
    switch.acquire_nowait(SIZE, 64, GFP.KERNEL)
    assert (switch.faults, len(told)) == ((), 2)
    assert switch.expire() == math.inf
    assert sorted(told[2:]) == [(FaultKind.FAIL, False), (FaultKind.STUCK, False)]


async def test_it_works_at_the_socket_while_the_loop_is_blocked(tmp_path: Path) -> None:
    path, answers = tmp_path / "stats", list[dict[str, Any]]()

    def block(request: str) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: answers.append(ask(path, request)))
        thread.start()
        thread.join(60)  # blocks the loop
        return answers[-1]

    async with (
        aslab.open_allocator(slabs=Instant(), faults=True, grow_timeout=3600) as kmem,
        kmem.serve_stats(path),
        anyio.create_task_group() as tasks,
    ):
        cache = kmem.create_cache("frames", SIZE, objects_per_slab=1)
        with kmem.events() as events:
            assert block("fault growth stuck")["done"] == "turned on: growth stuck"
            assert kmem.faults.growth.faults
            await start(tasks, cache.prefill, 1)
            assert kmem.faults.growth.stuck == 1
            assert block("fault heal")["done"] == "healed: growth stuck, holding up 1"
            assert [(await anext(events)).kind for _ in range(2)] == ["fault", "healed"]
            await settle()
            assert cache.stats().slab_total == 1
            assert block("fault growth slow 1h")["error"].startswith("delay: '1h' is not allowed")


async def test_events_come_in_order_though_another_thread_turned_the_fault_on_while_the_loop_was_blocked() -> None:
    async with aslab.open_allocator(slabs=Instant(), faults=True) as kmem:
        with kmem.events() as events:
            thread = threading.Thread(target=kmem.faults.growth.stick)
            thread.start()
            thread.join(60)  # blocks the loop
            kmem.faults.heal()
            assert [(await anext(events)).kind for _ in range(2)] == ["fault", "healed"]


def test_changes_by_two_threads_are_told_in_their_order() -> None:
    told, telling, healed = list[bool](), threading.Event(), threading.Event()

    def tell(fault: Fault, on: bool) -> None:
        if on:
            telling.set()
            healed.wait(0.02)  # the other thread cannot be done before this is told
        told.append(on)

    def heal() -> None:
        telling.wait(60)
        switch.heal()
        healed.set()

    switch = Switch(Instant(), clock=lambda: 0.0, tell=tell)
    other = threading.Thread(target=heal)
    other.start()
    switch.stick()
    other.join(60)
    assert told == [True, False]


def test_the_command_says_what_was_done_and_what_is_on(
    tmp_path: Path, here: Callable[..., subprocess.CompletedProcess[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, found = list[str](), {"version": 1, "done": "turned on: growth stuck 3s", "faults": [{"text": "it is"}]}

    def reply(request: str) -> bytes:
        asked.append(request)
        return json.dumps(found).encode()

    assert "--at: it must be the socket" in told(here("fault", "status"), 2)
    path = tmp_path / "stats"
    answers = Answers(path, reply)
    answers.start()
    try:
        assert here("fault", "growth", "stuck", "3s", "--at", path).stdout == b"turned on: growth stuck 3s\n"
        monkeypatch.setenv("ASLAB_SOCKET", str(path))
        assert json.loads(here("fault", "growth", "fail", "-3", "--json").stdout) == found
        assert asked == ["fault growth stuck 3s", "fault growth fail -3"]
        assert "it must be a command such as growth stuck 3s" in told(here("fault", "x" * 300), 2)
        found["done"] = ""
        assert here("fault", "status").stdout == b"it is\n"
        found["faults"] = []
        assert here("fault", "status").stdout == b"no fault is on\n"
        found["error"] = "growth: wrong"
        assert told(here("fault", "growth"), 2) == "aslab: growth: wrong\n"
        del found["error"], found["faults"]
        assert "nothing was changed" in told(here("fault", "growth", "stuck"), 2)
    finally:
        answers.stop()
