"""The story of the staging buffers: who hangs and who does not, and that nothing but the pool tells them apart."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest

import aslab
from aslab import KM, lab
from aslab.lab._scenario._machine import seed_for
from aslab.lab._simulation._waits import WaitGraph
from aslab.lab._staging import _aslab as _staging_aslab
from aslab.lab._staging import _run as _staging
from aslab.lab._staging._desk import Desk, OneByOne, Staged
from aslab.lab._staging._driver import Driver, PinnedPieces
from aslab.lab._staging._machines import MACHINES, SERVER, Machine, Server
from aslab.lab._staging._pools import BusyRetry, TwoLines
from aslab.lab._staging._run import Chapter, Request, requests

SEEDS = int(os.environ.get("ASLAB_SEEDS", "2"))
BY_NAME = {machine.name: machine for machine in MACHINES}
STUCK = [machine.name for machine in MACHINES if machine.ends == "stuck"]
FINISHING = [machine.name for machine in MACHINES if machine.ends == "finished"]
ROUND = ("GPU places", "store", "staging pool", "retrieve")
STALLED = 1
"""A seed with which the driver is held up while aslab wants more."""

loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])
each_seed = pytest.mark.parametrize("seed", range(SEEDS))


def tell(name: str, seed: int, *, loop: str = "asyncio", server: Server = SERVER) -> Chapter:
    return _staging.tell(BY_NAME[name], seed, loop=loop, server=server)


tell_once = functools.cache(tell)


def simulated(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    lab.run(main, seed=0)


class TestNaive:
    @loops
    @pytest.mark.parametrize("name", STUCK)
    def test_pools_get_stuck_in_a_round_that_is_named(self, name: str, loop: str) -> None:
        chapters = [tell_once(name, seed, loop=loop) for seed in range(SEEDS)]
        stuck = [chapter for chapter in chapters if not chapter.finished]
        assert 2 * len(stuck) >= SEEDS
        for chapter in stuck:
            assert chapter.cycle == ROUND
            assert 0 < chapter.served < SERVER.requests
            [last] = [span for span in chapter.spans if span.kind == "stuck"]
            assert last.end - last.start == pytest.approx(_staging.SILENCE)

    def test_retry_spins_and_who_queues_does_not(self) -> None:
        spins, queues = tell_once("busy_retry", 0), tell_once("semaphore", 0)
        assert not spins.finished
        assert spins.tries > 3 * queues.tries

    def test_nobody_injects_what_they_are_stuck_in(self) -> None:
        for path in Path(_staging.__file__).parent.glob("*.py"):
            assert "Deadlock(" not in path.read_text()

    def test_less_to_do_than_the_gpu_can_compute_hides_it(self) -> None:
        calm = dataclasses.replace(SERVER, between=0.05)
        assert all(tell(name, 0, server=calm).finished for name in BY_NAME)


class TestOthers:
    @loops
    @each_seed
    @pytest.mark.parametrize("name", FINISHING)
    def test_serve_every_request(self, name: str, seed: int, loop: str) -> None:
        chapter = tell_once(name, seed, loop=loop)
        assert chapter.finished
        assert (chapter.served, chapter.cycle) == (SERVER.requests, ())

    @each_seed
    def test_who_pins_for_itself_waits_for_the_driver_and_pins_without_end(self, seed: int) -> None:
        limit = SERVER.limit * SERVER.buffer
        caller, ours = tell_once("pin_in_caller", seed), tell_once("aslab", seed)
        assert caller.pinned_max > 2 * limit
        assert caller.longest_store_wait > 1.0
        assert ours.pinned_max <= limit
        assert ours.longest_store_wait < 0.1

    def test_aslab_goes_on_with_pageable_memory_while_the_driver_is_held_up(self) -> None:
        with_them = tell_once("aslab", STALLED)
        assert with_them.emergency_max > 0
        assert with_them.deadlocks > 0
        without = functools.partial(aslab.open_allocator, emergency_limit=0)
        with mock.patch.object(_staging_aslab, "open_allocator", without):
            alone = tell("aslab", STALLED)
        assert alone.emergency_max == 0
        assert alone.longest_wait > with_them.longest_wait

    def test_what_is_pageable_takes_longer_to_copy(self) -> None:
        quick = dataclasses.replace(SERVER, pageable=1)
        assert tell("aslab", STALLED, server=quick) != tell_once("aslab", STALLED)


class TestMechanisms:
    """Each taken out: then it hangs."""

    def test_without_saying_who_gives_memory_back(self) -> None:
        with mock.patch.object(_staging_aslab, "FINISHING", KM.SLEEP):
            chapter = tell("aslab", 0)
        assert (chapter.finished, chapter.cycle) == (False, ROUND)

    def test_without_buffers_set_aside(self) -> None:
        chapter = tell("aslab", 0, server=dataclasses.replace(SERVER, reserve=0))
        assert (chapter.finished, chapter.cycle) == (False, ROUND)

    @loops
    def test_of_a_reserve_aslab_learns_how_many_are_for_those_who_finish(self, loop: str) -> None:
        asked = aslab.Allocator.create_cache

        def create(kmem: aslab.Allocator, name: str, size: int, **options: Any) -> aslab.Cache[Any]:
            assert options.pop("memalloc_reserve") == SERVER.reserve
            return asked(kmem, name, size, reserve=SERVER.reserve + 1, **options)

        with mock.patch.object(aslab.Allocator, "create_cache", create):
            assert all(tell("aslab", seed, loop=loop).finished for seed in (0, 2))

    def test_without_both_at_once_where_all_need_two(self) -> None:
        seed, both = 9, dataclasses.replace(SERVER, encoded=1.0, told=1.0)
        assert tell("aslab", seed, server=both).finished
        lines = tell("two_lines", seed, server=both)
        assert (lines.finished, set(lines.cycle)) == (False, {"retrieve", "staging pool"})

    def test_two_lines_without_buffers_kept(self) -> None:
        chapters = [tell("two_lines", seed, server=dataclasses.replace(SERVER, reserve=0)) for seed in (0, 1, 2)]
        assert not all(chapter.finished for chapter in chapters)


class TestSeeds:
    @loops
    @pytest.mark.parametrize("name", ["busy_retry", "aslab"])
    def test_same_seed_gives_the_same_chapter_and_another_another(self, name: str, loop: str) -> None:
        first, again = tell_once(name, 0, loop=loop), tell(name, 0, loop=loop)
        assert first == again
        assert first.counters != tell_once(name, 1, loop=loop).counters

    def test_requests_are_what_the_server_says(self) -> None:
        many = requests(dataclasses.replace(SERVER, requests=5000), 0)
        retrieved = [one for one in many if one.buffers]
        assert many == sorted(many, key=lambda one: one.comes)
        assert many[-1].comes / len(many) == pytest.approx(SERVER.between, rel=0.1)
        assert 1 - len(retrieved) / len(many) == pytest.approx(SERVER.new, abs=0.03)
        known = sum(one.buffers == 2 for one in many) / len(retrieved)
        late = sum(one.decodes_late for one in many) / len(retrieved)
        assert known == pytest.approx(SERVER.encoded * SERVER.told, abs=0.03)
        assert late == pytest.approx(SERVER.encoded * (1 - SERVER.told), abs=0.03)
        assert not any(one.decodes_late for one in many if one.buffers != 1)


class TestMachines:
    def test_none_has_a_number_of_its_own(self) -> None:
        for machine in MACHINES:
            for field in dataclasses.fields(Machine):
                assert isinstance(getattr(machine, field.name), (str, bool)), f"{machine.name}: {field.name}"

    def test_all_have_the_same_server_requests_and_neighbour(self) -> None:
        asked: list[tuple[Server, list[Request], list[tuple[float, float]]]] = []
        telling = _staging._Telling.__init__

        def note(self: Any, machine: Machine, server: Server, seed: int, chapter: Chapter) -> None:
            telling(self, machine, server, seed, chapter)
            driver = Driver(server, random.Random(seed_for(seed, "neighbour")))
            assert self._driver._window == driver._window
            windows = [self._driver._window, *(next(driver._windows) for _ in range(5))]
            asked.append((server, self._requests, windows))

        with mock.patch.object(_staging._Telling, "__init__", note), mock.patch.object(_staging, "UNTIL", 0.3):
            for name in BY_NAME:
                tell(name, 0)
        assert len(asked) == len(MACHINES)
        assert all(one == asked[0] for one in asked)
        with pytest.raises(dataclasses.FrozenInstanceError):
            SERVER.limit = 1  # type: ignore[misc]

    def test_who_asks_knows_no_machine(self) -> None:
        source = Path(_staging.__file__).read_text()
        for name in BY_NAME:
            assert f'"{name}"' not in source
        assert not re.search(r"machine\.(pool|careful|bounded)", source)


class TestDriver:
    CALM = dataclasses.replace(SERVER, neighbour_rests=(1.0, 1.0), neighbour_pins=(2.0, 2.0))

    def test_pins_one_call_at_a_time_and_none_while_the_neighbour_does(self) -> None:
        async def main() -> None:
            driver = Driver(self.CALM, random.Random(0))
            each = round(0.25 / SERVER.pin)
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(driver.pin, each)
            ends = [end for _, end in driver.calls]
            assert ends == pytest.approx([0.25, 0.5, 0.75, 1.0, 3.25])  # the neighbour: from 1 to 3
            assert (driver.pinned, driver.highest) == (5 * each, 5 * each)
            driver.had(-5 * each)
            assert (driver.pinned, driver.highest) == (0, 5 * each)

        simulated(main)

    def test_cancelled_call_has_pinned_nothing(self) -> None:
        async def main() -> None:
            driver = Driver(self.CALM, random.Random(0))
            with anyio.move_on_after(0.1):
                await driver.pin(round(0.25 / SERVER.pin))
            assert (driver.pinned, driver.calls) == (0, [])

        simulated(main)

    def test_pinned_pieces_are_counted_and_uncounted_and_never_had_at_once(self) -> None:
        async def main() -> None:
            driver = Driver(self.CALM, random.Random(0))
            backend = PinnedPieces(driver)
            region = await backend.acquire(1 << 20, 64, aslab.GFP.KERNEL)
            assert driver.pinned == len(region.memory) == 1 << 20
            with pytest.raises(anyio.WouldBlock):
                backend.acquire_nowait(1 << 20, 64, aslab.GFP.NOWAIT)
            await backend.release(region)
            assert driver.pinned == 0

        simulated(main)


class TestPools:
    SMALL = dataclasses.replace(SERVER, started=2, limit=2, reserve=1)

    def pool(self, kind: Callable[[Desk, Server, Driver], OneByOne]) -> OneByOne:
        return kind(Desk(WaitGraph()), self.SMALL, Driver(self.SMALL, random.Random(0)))

    def test_two_lines_keep_a_buffer_for_who_finishes(self) -> None:
        async def main() -> None:
            pool = self.pool(TwoLines)
            got: dict[str, Staged] = {}

            async def begin() -> None:
                [got["begins"]] = await pool.begin(1)

            [first] = await pool.begin(1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin)
                await anyio.sleep(1)
                assert not got
                last = await pool.finish()
                pool.give(first)
                await anyio.sleep(1)
                assert not got, "one is kept"
                pool.give(last)
            assert got

        simulated(main)

    def test_who_retries_sees_a_free_buffer_a_tenth_of_a_second_late(self) -> None:
        async def main() -> None:
            pool = self.pool(BusyRetry)
            one, _ = await pool.begin(2)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.finish)
                await anyio.sleep(0.01)
                pool.give(one)
                began = anyio.current_time()
            assert anyio.current_time() - began == pytest.approx(0.09)
            assert sum(pool._desk.looks.values()) == 4

        simulated(main)
