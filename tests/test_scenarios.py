"""The scenarios that come with aslab: each holds for every seed, and not if what it shows is turned off.

``ASLAB_SEEDS=100`` tries so many seeds of each, on both loops.
"""

from __future__ import annotations

import functools
import json
import os
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aslab import ConfigError
from aslab.lab.scenarios import Result, builtin, check, load, play

SEEDS = int(os.environ.get("ASLAB_SEEDS", "1"))
FILES = builtin()

loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])
files = pytest.mark.parametrize("path", FILES.values(), ids=FILES.keys())


class Twin(NamedTuple):
    """A scenario without what it shows, and an expectation that then breaks."""

    of: str
    changes: dict[str, Any]
    """Values by their paths in the file."""
    breaks: str


TWINS = [
    # slow, not late: with less patience, or slower growth, it is
    Twin("slow-growth", {"allocator.grow_timeout": "20ms"}, "emergency_made at most 0"),
    Twin("slow-growth", {"allocator.grow_timeout": "20ms"}, "deadlocks at most 0"),
    Twin("slow-growth", {"backends.vmalloc.per_call": "70ms"}, "longest_wait at least 40 ms at most 80 ms"),
    Twin("slow-growth", {"allocator.expire": "never"}, "slabs_made at least 16"),
    # a loop that is not busy; growth that is late; no growth to be mistaken about
    Twin("busy-loop", {"tasks.computes.spend": "0s"}, "longest_wait at least 101 ms of tasks writer"),
    Twin("busy-loop", {"backends.vmalloc.per_call": "3s", "duration": "9s"}, "deadlocks at most 0"),
    Twin("busy-loop", {"backends.vmalloc.per_call": "3s", "duration": "9s"}, "emergency_made at most 0"),
    Twin("busy-loop", {"allocator.expire": "never"}, "slabs_made at least 2 of cache io"),
    # no way out of waiting
    Twin("deadlock-recovers", {"allocator.grow_timeout": "60s"}, "longest_wait at most 101 ms"),
    Twin("deadlock-recovers", {"allocator.grow_timeout": "60s"}, "longest_gap at most 701 ms"),
    Twin("deadlock-recovers", {"caches.io.flags": ["NOEMERGENCY"]}, "longest_wait at most 101 ms"),
    # nothing to get out of, or no end of it
    Twin("deadlock-recovers", {"allocator.slabs": "vmalloc"}, "emergency_made at least 160"),
    Twin("deadlock-recovers", {"allocator.slabs": "vmalloc"}, "deadlocks at least 1 at most 1"),
    Twin("deadlock-recovers", {"backends.stuck.duration": "60s"}, "deadlocked_left at most 0"),
    Twin("deadlock-recovers", {"backends.stuck.duration": "60s"}, "emergency_left at most 0"),
    Twin("deadlock-for-good", {"allocator.grow_timeout": "60s"}, "longest_wait at most 101 ms"),
    Twin("deadlock-for-good", {"allocator.grow_timeout": "60s"}, "longest_gap at most 701 ms"),
    Twin("deadlock-for-good", {"allocator.kick_after": "never"}, "kicked at least 1 at most 1"),
    Twin("deadlock-for-good", {"backends.stuck.duration": "3s"}, "deadlocked_left at least 1 at most 1"),
    # memory in one piece, or pieces that do
    Twin("fragmented-order-5", {"memory.pinned": "0%"}, "emergency_failures at least 5 at most 20"),
    Twin("fragmented-order-5", {"memory.pinned": "0%"}, "longest_wait at least 3 s at most 3.001 s"),
    Twin("fragmented-order-5", {"backends.kmalloc.vmap": True}, "emergency_made at most 0"),
    Twin("fragmented-single-pages", {"backends.kmalloc.vmap": False}, "emergency_failures at most 0"),
    Twin("fragmented-single-pages", {"backends.kmalloc.vmap": False}, "longest_wait at most 101 ms"),
    Twin("emergency-burst", {"caches.io.max_emergency": 100}, "emergency_max at least 3600 at most 3600"),
    Twin("emergency-burst", {"allocator.grow_timeout": "60s"}, "longest_wait at most 101 ms"),
    Twin("emergency-burst", {"backends.stuck.duration": "9s"}, "emergency_made at most 0 of tasks reader"),
    # the flag on neither cache, on both
    Twin("no-emergency", {"caches.strict.flags": []}, "emergency_made at most 0 of cache strict"),
    Twin(
        "no-emergency", {"caches.strict.flags": []}, "longest_wait at least 250 ms at most 750 ms of cache strict"
    ),
    Twin(
        "no-emergency", {"caches.lenient.flags": ["NOEMERGENCY"]}, "longest_wait at most 101 ms of cache lenient"
    ),
    Twin("nosleep", {"tasks.interrupt.flags": "SLEEP"}, "longest_wait at most 0 s of tasks interrupt"),
    Twin("nosleep", {"tasks.interrupt.flags": "SLEEP"}, "refused at least 40"),
    Twin("nosleep", {"backends.kmalloc.per_call": "0s"}, "refused at least 40"),
    # no urgency in line, none in the flags of growth, no want of memory
    Twin(
        "pushpage-against-sleep",
        {"tasks.pipeline.flags": "SLEEP"},
        "longest_wait at most 300 ms of tasks pipeline",
    ),
    Twin(
        "pushpage-against-sleep",
        {"tasks.txg_sync.flags": "SLEEP"},
        "longest_wait at most 200 µs of tasks txg_sync",
    ),
    Twin(
        "pushpage-against-sleep",
        {"backends.vmalloc.honour_gfp": False},
        "longest_wait at most 200 µs of tasks txg_sync",
    ),
    Twin(
        "pushpage-against-sleep",
        {"memory.dirty": 0},
        "longest_wait at least 1 s at most 1.5 s of tasks reader",
    ),
    Twin("one-worker", {"allocator.growth_workers": 4}, "lock_wait at most 0 s"),
    Twin("four-workers", {"allocator.growth_workers": 1}, "lock_wait at least 5 ms at most 6 ms"),
    Twin("four-workers", {"allocator.growth_workers": 1}, "lock_wait_total at least 120 ms"),
    # an ageing time that is shorter than the pause between two bursts, or none
    Twin("pressure-without-thrash", {"allocator.expire": "3s"}, "slabs_made at most 85"),
    Twin("pressure-without-thrash", {"at.0.time": "90s"}, "slab_regrets at least 1 at most 1"),
    Twin(
        "pressure-without-thrash",
        {"at.0.time": "90s", "allocator.expire": "never"},
        "slabs_left at most 0 of cache io",
    ),
    Twin("several-at-once", {"tasks.join.together": False}, "unfinished at most 0"),
    Twin("several-at-once", {"tasks.join.together": False}, "stuck at most 0"),
    Twin("reserve", {"caches.io.reserve": 0}, "longest_wait at most 5 ms of tasks writer"),
    Twin("reserve", {"tasks.writer.flags": "SLEEP"}, "longest_wait at most 5 ms of tasks writer"),
    Twin("reserve", {"tasks.writer.flags": "SLEEP"}, "allocations at least 1000 of tasks writer"),
]


def changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        *tables, key = path.split(".")
        table: Any = data
        for name in tables:
            table = table[int(name)] if isinstance(table, list) else table[name]
        assert table.get(key) != value, f"{path} changes nothing"
        table[key] = value
    return data


@loops
@files
def test_scenario_holds_for_every_seed_and_nobody_is_stuck(path: Path, loop: str) -> None:
    scenario = load(path)
    for seed in range(SEEDS):
        result: Result = play(scenario, seed=seed, loop=loop).result
        assert not result.broken, f"seed {seed}: {result.broken}"
        assert not result.stuck, f"seed {seed}: {result.stuck}"


@functools.cache
def play_twin(of: str, changes: str, seed: int) -> Result:
    """One run, made once for all its expectations."""
    scenario = check(changed(tomllib.loads(FILES[of].read_text()), json.loads(changes)))
    return play(scenario, seed=seed, loop=("asyncio", "trio")[seed % 2]).result


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{twin.of}/{next(iter(twin.changes))}/{twin.breaks}")
def test_without_what_it_shows_the_expectation_breaks(twin: Twin) -> None:
    """It is the expectation that is tested, which has no part in the loop: each seed is played on one of them."""
    for seed in range(SEEDS):
        result = play_twin(twin.of, json.dumps(twin.changes), seed)
        assert twin.breaks in {verdict.expected for verdict in result.verdicts}, "no such expectation"
        broken = {verdict.expected for verdict in result.verdicts if not verdict.passed}
        assert twin.breaks in broken, f"seed {seed}: it holds all the same"


def test_every_scenario_has_a_twin() -> None:
    assert {twin.of for twin in TWINS} == set(FILES)


@files
def test_scenario_begins_with_what_to_look_for(path: Path) -> None:
    lines = path.read_text().splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert any(line.startswith("# Look for: ") for line in comment)


@files
def test_scenario_is_named_as_its_file_and_expects_that_nothing_is_lost(path: Path) -> None:
    scenario = load(path)
    assert scenario.name == path.stem
    zero = {one.what for one in scenario.expect if one.at_most == 0 and one.cache is None and one.tasks is None}
    assert {"memory_lost", "wrong_books"} <= zero


@loops
def test_fragmented_memory_fails_with_the_line_that_linux_logs(loop: str) -> None:
    log = str(play(load(FILES["fragmented-order-5"]), seed=0, loop=loop).log)
    assert "z_wr_int" in log
    assert "page allocation failure. order:5, mode:0x10\n" in log


@loops
def test_callers_of_slow_growth_are_served_in_the_order_in_which_they_came(loop: str) -> None:
    asked: dict[str, float] = {}
    served: list[tuple[float, float]] = []  # when they asked, when they got
    for line in str(play(load(FILES["slow-growth"]), seed=0, loop=loop).log).splitlines():
        time, who, what, _ = line.split("\t")
        if what == "asks":
            asked[who] = float(time)
        elif what == "got":
            served.append((asked[who], float(time)))
    served.sort()
    waited = [pair for pair in served if pair[1] > pair[0]]
    assert len(waited) > 50
    assert [got for _, got in served] == sorted(got for _, got in served)


FOR_SIMULATED_TIME = [name for name, path in FILES.items() if load(path).simulated_only]


@pytest.mark.parametrize("name", FOR_SIMULATED_TIME)
def test_scenario_for_simulated_time_says_so_and_is_refused_in_real_time(name: str) -> None:
    with pytest.raises(ConfigError, match="simulated_only: True is not allowed; it must be false in real time"):
        load(FILES[name], real_time=True)
    assert "\n# For simulated time: " in FILES[name].read_text()


def expected(scenario: dict[str, Any], bounds: dict[str, Any], *, real_time: bool) -> str:
    scenario["expect"] = [{"what": "longest_wait"} | bounds]
    (verdict,) = play(check(scenario, real_time=real_time), real_time=real_time).result.verdicts
    return verdict.expected


def test_a_bound_of_time_has_slack_in_real_time_alone() -> None:
    short = {"duration": "1ms", "slack": "20ms"}
    bounds = {"at_least": "30ms", "at_most": "50ms"}
    data = changed(tomllib.loads(FILES["slow-growth"].read_text()), short)
    assert expected(data, bounds, real_time=False) == "longest_wait at least 30 ms at most 50 ms"
    assert expected(data, bounds, real_time=True) == "longest_wait at least 10 ms at most 70 ms"
    assert expected(data, {"at_least": "10ms"}, real_time=True) == "longest_wait at least 0 s"


def test_a_bound_of_a_count_has_none() -> None:
    data = changed(tomllib.loads(FILES["slow-growth"].read_text()), {"duration": "1ms"})
    data["expect"] = [{"what": "deadlocks", "at_most": 0}]
    (verdict,) = play(check(data, real_time=True), real_time=True).result.verdicts
    assert verdict.expected == "deadlocks at most 0"
