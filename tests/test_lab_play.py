"""Playing scenarios: the same seed is the same log, every figure is fed, and what happens is told."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest

from aslab import ConfigError
from aslab.emulation import Vmalloc
from aslab.lab._scenario import _notes, _play
from aslab.lab._simulation._run import LOOPS
from aslab.lab.scenarios import METRICS, Played, Recording, Scenario, Span, check, play

ROOT = Path(__file__).parent.parent
SEEDS = 4 * int(os.environ.get("ASLAB_SEEDS", "1"))
Data = dict[str, Any]

BASE: Data = {
    "name": "base",
    "about": "Four tasks on one cache, and all is well.",
    "duration": "2s",
    "memory": {"pages": 4096},
    "backends": {
        "vmalloc": {"kind": "vmalloc", "per_page": "1us"},
        "kmalloc": {"kind": "kmalloc", "per_call": "100us"},
    },
    "allocator": {"slabs": "vmalloc", "emergency": "kmalloc"},
    "caches": {"io": {"size": "64KiB", "objects_per_slab": 8}},
    "tasks": {"writer": {"cache": "io", "count": 4, "arrival": "10ms", "hold": {"low": "20ms", "high": "30ms"}}},
    "expect": [{"what": "memory_lost", "at_most": 0}, {"what": "wrong_books", "at_most": 0}],
}
STUCK: Data = {"backends": {"stuck": {"kind": "deadlock", "of": "vmalloc"}}, "allocator": {"slabs": "stuck"}}
NO_EMERGENCY: Data = {"caches": {"io": {"flags": ["NOEMERGENCY"]}}}

EVERYTHING: Data = {
    "name": "everything",
    "about": "Faults of all kinds, all flags, short of memory.",
    "duration": "3s",
    "memory": {
        "pages": 900,
        "clean": 200,
        "dirty": 300,
        "pinned": "3%",
        "scan": "5us",
        "writeback": {"mean": "2ms"},
    },
    "backends": {
        "vmalloc": {"kind": "vmalloc", "per_page": {"mean": "5us"}, "lock": {"mean": "10ms"}},
        "slow": {
            "kind": "latency",
            "of": "vmalloc",
            "acquire": {"low": "1ms", "high": "30ms"},
            "release": {"mean": "5ms"},
        },
        "stuck": {"kind": "deadlock", "of": "slow", "probability": 60, "duration": "400ms"},
        "slabs": {"kind": "failslab", "of": "stuck", "probability": 30},
        "kmalloc": {"kind": "kmalloc", "per_call": {"mean": "200us"}},
        "emergency": {"kind": "failslab", "of": "kmalloc", "probability": 10},
    },
    "allocator": {
        "slabs": "slabs",
        "emergency": "emergency",
        "limit": "8MiB",
        "growth_workers": 2,
        "kick_after": "200ms",
        "expire": "100ms",
    },
    "caches": {
        "io": {"size": "64KiB", "objects_per_slab": 8, "movable": True, "min_objects": 16},
        "meta": {"size": "12KiB", "max_objects": 40, "prefill": 8, "reserve": 3},
        "strict": {"size": "8KiB", "objects_per_slab": 8, "flags": ["NOEMERGENCY"]},
    },
    "tasks": {
        "writer": {
            "cache": "io",
            "count": 20,
            "start": {"low": "0s", "high": "2s"},
            "arrival": {"mean": "200ms"},
            "hold": {"mean": "300ms"},
        },
        "sync": {
            "cache": "meta",
            "count": 6,
            "objects": 3,
            "together": True,
            "flags": "PUSHPAGE",
            "arrival": {"mean": "50ms"},
            "hold": ["10ms", "20ms"],
        },
        "irq": {"cache": "meta", "count": 4, "flags": "NOSLEEP", "arrival": {"mean": "40ms"}, "hold": "5ms"},
        "hurried": {
            "cache": "strict",
            "count": 10,
            "timeout": "30ms",
            "times": 20,
            "arrival": {"mean": "50ms"},
            "hold": {"mean": "60ms"},
        },
    },
    "at": [
        {"time": "100ms", "do": "press", "every": "50ms"},
        {"time": "130ms", "do": "defragment", "every": "100ms"},
        {"time": "1s", "do": "pin", "share": "10%"},
        {"time": "1500ms", "do": "unpin"},
        {"time": "2s", "do": "reap"},
        {"time": "2500ms", "do": "let_go", "backend": "stuck"},
    ],
    "expect": [{"what": "memory_lost", "at_most": 0}, {"what": "wrong_books", "at_most": 0}],
}


def merged(base: Data, *changes: Data) -> Data:
    """A copy with tables merged; other values take the place of the old."""
    result = copy.deepcopy(base)
    for change in changes:
        for key, value in change.items():
            old = result.get(key)
            if isinstance(old, dict) and isinstance(value, dict) and "kind" not in value:
                result[key] = merged(old, value)
            else:
                result[key] = copy.deepcopy(value)
    return result


def scenario(*changes: Data) -> Scenario:
    return check(merged(BASE, *changes))


def expect(what: str, **bounds: Any) -> Data:
    return {"expect": [{"what": what, **bounds}]}


def lines(played: Played, who: str, what: str) -> list[tuple[float, str]]:
    """Times and details of these events."""
    rows = [line.split("\t") for line in str(played.log).splitlines()]
    return [(float(row[0]), row[3]) for row in rows if row[1:3] == [who, what]]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- determinism

PLAY = """
import sys
from aslab.lab.scenarios import check, play
from tests.test_lab_play import EVERYTHING

played = play(check(EVERYTHING), seed=int(sys.argv[2]), loop=sys.argv[1])
print(played.result.log_sha256, played.result.events)
"""


def in_process(loop: str, seed: int, hash_seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PLAY, loop, str(seed)],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_same_seed_is_the_same_log_in_every_process(loop: str) -> None:
    result = play(check(EVERYTHING), seed=3, loop=loop).result
    assert result.events > 1000
    for hash_seed in ("1", "2"):
        assert in_process(loop, 3, hash_seed) == f"{result.log_sha256} {result.events}"


def test_so_many_seeds_are_so_many_runs_and_all_memory_comes_back(loop: str) -> None:
    played = [play(check(EVERYTHING), seed=seed, loop=loop) for seed in range(SEEDS)]
    assert len({one.result.log_sha256 for one in played}) == SEEDS
    assert [one.result.broken for one in played] == [[]] * SEEDS
    figures = {what: max(one.result.figures[what] for one in played) for what in METRICS}
    never = {what for what, value in figures.items() if not value}
    assert never <= {"memory_lost", "wrong_books", "stuck", "deadlocked_left", "emergency_left"}
    assert min(one.result.figures["lowest_free"] for one in played) < 150  # so they had to reclaim


def test_to_record_changes_nothing(loop: str) -> None:
    with_it = play(check(EVERYTHING), seed=5, loop=loop, record=True)
    without = play(check(EVERYTHING), seed=5, loop=loop, progress=lambda share: None)
    assert with_it.result == without.result
    assert str(with_it.log) == str(without.log)
    assert without.recording is None


def test_the_seed_is_the_one_of_the_file_if_none_is_given(loop: str) -> None:
    given = scenario({"seed": 7})
    assert play(given, loop=loop).result == play(given, loop=loop, seed=7).result
    assert play(given, loop=loop).result.log_sha256 != play(given, loop=loop, seed=0).result.log_sha256


def test_a_delay_that_one_part_draws_changes_nothing_for_the_others(loop: str) -> None:
    """Each part has a seed of its own: a new backend that nobody uses is not noticed."""
    more = {"backends": {"unused": {"kind": "vmalloc", "per_call": {"mean": "1s"}}}}
    first, second = play(scenario(), loop=loop), play(scenario(more), loop=loop)
    assert first.result.log_sha256 == second.result.log_sha256


# -- real time


@pytest.mark.parametrize("kind", ["vmalloc", "mmap", "heap"])
def test_in_real_time_on_any_memory(loop: str, kind: str) -> None:
    change: Data = {
        "duration": "200ms",
        "backends": {"memory": {"kind": kind}},
        "allocator": {"slabs": "memory", "emergency": "memory"},
    }
    played = play(check(merged(BASE, change), real_time=True), loop=loop, real_time=True, record=True)
    assert played.result.passed, played.result.broken
    assert played.result.real_time
    assert played.result.figures["allocations"] > 4
    assert played.result.duration >= 0.2


def test_in_real_time_with_a_fault(loop: str) -> None:
    change: Data = {"duration": "300ms", "allocator": {"grow_timeout": "10ms"}}
    played = play(scenario(STUCK, change), loop=loop, real_time=True)
    assert played.result.passed, played.result.broken
    assert played.result.figures["emergency_made"] > 0
    assert played.result.deadlocks == 1


def test_ctrl_c_in_real_time_is_not_lost_where_it_is_taken_for_another_cancellation(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(1)

    monkeypatch.setattr(_play.Run, "play", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has not
    try:
        with pytest.raises(KeyboardInterrupt):
            play(scenario(), loop=loop, real_time=True)
    finally:
        signal.signal(signal.SIGINT, before)


# -- the recording


@pytest.fixture(scope="module", params=LOOPS)
def recorded(request: pytest.FixtureRequest) -> Played:
    return play(check(EVERYTHING | {"duration": "12s"}), seed=0, loop=request.param, record=True)


def recording_of(played: Played) -> Recording:
    assert played.recording is not None
    return played.recording


def all_spans(played: Played) -> list[Span]:
    recording = recording_of(played)
    return [*recording.tasks, *recording.worker, *recording.caches]


def last_time(played: Played) -> float:
    return float(str(played.log).splitlines()[-1].split("\t")[0])


def test_spans_begin_before_they_end_within_the_run(recorded: Played) -> None:
    over = last_time(recorded)
    for span in all_spans(recorded):
        assert -1e-9 <= span.start <= span.end <= over + 1e-9
    # What comes back after the work is over is not the tasks' doing.
    for span in recording_of(recorded).tasks:
        assert span.end <= recorded.result.duration + 1e-9


def test_spans_are_written_as_they_end(recorded: Played) -> None:
    recording = recording_of(recorded)
    for spans in (recording.tasks, recording.worker, recording.caches):
        ends = [span.end for span in spans]
        assert ends
        assert all(ends[number] <= ends[number + 1] + 1e-9 for number in range(len(ends) - 1))


def test_rows_are_the_names_of_tasks_backends_and_caches(recorded: Played) -> None:
    recording, given = recording_of(recorded), check(EVERYTHING)
    names = {f"{group}-{n}" for group, section in given.tasks.items() for n in range(section.count)}
    assert {span.row for span in recording.tasks} == names
    assert {span.row for span in recording.worker} == {"slabs", "emergency"}
    assert {span.row for span in recording.caches} == set(given.caches)
    assert {span.detail for span in recording.tasks} == set(given.caches)


def test_every_kind_of_span_is_there(recorded: Played) -> None:
    kinds = {span.kind for span in all_spans(recorded)}
    assert kinds >= {"waiting", "holding", "emergency", "growing", "failed", "GROWING", "DEADLOCKED", "REAPING"}


def test_a_task_that_gets_one_object_at_a_time_does_one_thing_at_a_time(recorded: Played) -> None:
    by_row: dict[str, list[Span]] = {}
    for span in recording_of(recorded).tasks:
        if not span.row.startswith("sync"):
            by_row.setdefault(span.row, []).append(span)
    for spans in by_row.values():
        for before, after in pairwise(spans):
            assert before.end <= after.start + 1e-9


def test_waits_are_above_0_and_the_longest_is_the_figure(recorded: Played) -> None:
    recording = recording_of(recorded)
    waiting = [span.end - span.start for span in recording.tasks if span.kind == "waiting"]
    assert min(recording.waits) > 0
    assert sorted(recording.waits) == pytest.approx(sorted(waiting))
    assert max(recording.waits) == pytest.approx(recorded.result.longest_wait)


def test_counters_are_in_order_of_time_and_change_at_each_point(recorded: Played) -> None:
    counters = recording_of(recorded).counters
    assert set(counters) == {"held", "emergency", "free in slabs", "free pages"}
    for points in counters.values():
        assert all(one[0] <= two[0] and one[1] != two[1] for one, two in pairwise(points))
        assert all(value >= 0 for _, value in points)
    assert max(value for _, value in counters["emergency"]) > 0


def test_happenings_are_moments(recorded: Played) -> None:
    moments = recording_of(recorded).moments
    again = [moment for moment in moments if moment.text in ("press", "defragment")]
    once = [moment for moment in moments if moment not in again]
    assert [moment.text for moment in once] == ["pin", "unpin", "reap", "let_go stuck"]
    assert [moment.time for moment in once] == pytest.approx([1, 1.5, 2, 2.5])
    pressed = [moment.time for moment in again if moment.text == "press"]
    assert pressed == pytest.approx([0.1 + 0.05 * number for number in range(len(pressed))])
    assert len(pressed) > 50


def test_progress_goes_up_to_the_end(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_notes, "PROGRESS_EVERY", 64)
    shares: list[float] = []
    play(scenario(), loop=loop, progress=shares.append)
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


# -- happenings


def at(time: str, do: str, **more: str) -> Data:
    return {"at": [{"time": time, "do": do, **more}]}


def test_let_go_ends_the_deadlock_at_its_time(loop: str) -> None:
    for change, expected in (({}, []), (at("1s", "let_go", backend="stuck"), [1.0])):
        played = play(scenario(STUCK, change), loop=loop)
        given = [time for time, _ in lines(played, "slabs", "gave") if time < 2]
        assert [round(time, 2) for time in given[:1]] == expected
        assert played.result.figures["deadlocked_left"] == (0 if expected else 1)


def test_pin_takes_pages_and_unpin_gives_them_back(loop: str) -> None:
    def free_pages(*changes: Data) -> list[tuple[float, float]]:
        return recording_of(play(scenario(*changes), loop=loop, record=True)).counters["free pages"]

    pin, unpin = at("500ms", "pin", share="25%")["at"], at("1s", "unpin")["at"]
    usual = free_pages()[-1][1]
    pinned = free_pages({"at": pin})[-1][1]
    assert usual - 1024 <= pinned < usual - 900  # those that are in use cannot be had
    both = free_pages({"at": pin + unpin})
    assert min(value for _, value in both) == pinned
    assert both[-1][1] == usual


def test_unpin_gives_back_what_was_pinned_from_the_start_too(loop: str) -> None:
    """64 KiB are order 4: no such block is left where every 16th page is pinned."""
    fragmented: Data = {"memory": {"pinned": "6.25%"}}
    for change, made in (({}, False), (at("1s", "unpin"), True)):
        played = play(scenario(STUCK, fragmented, change), loop=loop)
        assert played.result.figures["emergency_failures"] > 0
        assert bool(played.result.figures["emergency_made"]) is made


def test_reap_gives_free_slabs_back_at_its_time(loop: str) -> None:
    short: Data = {"tasks": {"writer": {"times": 3}, "late": {"cache": "io", "start": "1900ms", "hold": "1s"}}}
    for change, expected in (({}, []), (at("1s", "reap"), [1.0])):
        played = play(scenario(short, change), loop=loop)
        released = [round(time, 2) for time, _ in lines(played, "slabs", "released") if time < 1.9]
        assert released == expected


def test_happenings_are_in_the_log_with_what_they_are_about(loop: str) -> None:
    played = play(scenario(STUCK, at("500ms", "let_go", backend="stuck")), loop=loop)
    ((time, detail),) = lines(played, "the scenario", "let_go")
    assert (round(time, 6), detail) == (0.5, "stuck")


# -- figures

ONE_SECOND: Data = {"backends": {"stuck": {"kind": "deadlock", "of": "vmalloc", "duration": "1s"}}}
AFTER_THE_KICK: Data = {"duration": "20s"}  # until kick_after, the worker itself has a timer
ONE_HOUR = {"tasks": {"writer": {"hold": "60m"}}}
NOSLEEP = {"tasks": {"writer": {"flags": "NOSLEEP"}}}
PRESSED: Data = {
    "allocator": {"expire": "300ms"},
    "tasks": {"writer": {"arrival": "200ms"}},
    "at": [{"time": "10ms", "do": "press", "every": "50ms"}],
}
FAILING = {
    "backends": {
        "fails": {"kind": "failslab", "of": "vmalloc", "probability": 100},
        "fails too": {"kind": "failslab", "of": "kmalloc", "probability": 100},
    }
}
TWO_CACHES: Data = {
    "backends": {"vmalloc": {"kind": "vmalloc", "lock": "50ms"}},
    "allocator": {"growth_workers": 2},
    "caches": {"other": {"size": "64KiB"}},
    "tasks": {"reader": {"cache": "other", "arrival": "10ms"}},
}

FED: dict[str, tuple[list[Data], Data]] = {
    "longest_wait": ([STUCK], {"at_most": "50ms"}),
    "longest_gap": ([STUCK, ONE_SECOND, NO_EMERGENCY], {"at_most": "900ms"}),
    "allocations": ([], {"at_most": 10}),
    "refused": ([NOSLEEP], {"at_most": 0}),
    "timed_out": ([STUCK, NO_EMERGENCY, {"tasks": {"writer": {"timeout": "30ms"}}}], {"at_most": 2}),
    "unfinished": ([{"tasks": {"writer": {"times": 1000}}}], {"at_most": 3}),
    "emergency_made": ([STUCK], {"at_most": 5}),
    "emergency_max": ([STUCK], {"at_most": 3}),
    "emergency_left": ([STUCK, ONE_HOUR], {"at_most": 3}),
    "deadlocks": ([STUCK], {"at_most": 0}),
    "deadlocked_left": ([STUCK], {"at_most": 0}),
    "slabs_made": ([], {"at_most": 0}),
    "slabs_left": ([], {"at_most": 0}),
    "slab_regrets": ([PRESSED], {"at_most": 0}),
    "objects_moved": ([STUCK, ONE_SECOND, ONE_HOUR, {"caches": {"io": {"movable": True}}}], {"at_most": 3}),
    "grow_failures": ([FAILING, {"allocator": {"slabs": "fails"}}], {"at_most": 0}),
    "emergency_failures": ([STUCK, FAILING, {"allocator": {"emergency": "fails too"}}], {"at_most": 0}),
    "kicked": ([STUCK, {"allocator": {"kick_after": "500ms"}}], {"at_most": 0}),
    "lowest_free": ([], {"at_least": 4096}),
    "lock_wait": ([TWO_CACHES], {"at_most": "40ms"}),
    "lock_wait_total": ([TWO_CACHES], {"at_most": "40ms"}),
    "stuck": ([STUCK, NO_EMERGENCY, AFTER_THE_KICK], {"at_most": 0}),
    "memory_lost": ([], {"at_most": 0}),
    "wrong_books": ([], {"at_most": 0}),
}
AT_THE_END = {"emergency_left", "deadlocked_left", "kicked", "lock_wait", "lock_wait_total", "stuck", "unfinished"}
AT_THE_END |= {"slabs_left", "slab_regrets", "objects_moved"}


def break_it(what: str, patch: pytest.MonkeyPatch) -> None:
    """The two figures that only a bug feeds."""

    async def forget(self: Vmalloc, region: object) -> None:
        await anyio.lowlevel.checkpoint()

    def wrong(cache: object) -> None:
        raise AssertionError("lists and counters differ")

    if what == "memory_lost":
        patch.setattr(Vmalloc, "release", forget)
    elif what == "wrong_books":
        patch.setattr(_play, "check_consistency", wrong)


@pytest.mark.parametrize("what", METRICS)
def test_a_figure_is_fed_and_its_bound_breaks_at_an_event_with_a_time(
    what: str, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, bounds = FED[what]
    break_it(what, monkeypatch)
    result = play(scenario(*changes, expect(what, **bounds)), loop=loop).result
    assert result.figures[what] > 0
    assert not result.passed
    (broken,) = result.broken
    assert broken.startswith(f"expected {what} at ")
    (verdict,) = result.verdicts
    assert verdict.broken_by is not None
    time = float(verdict.broken_by.split()[1])
    if what in AT_THE_END:
        assert time == pytest.approx(20 if what == "stuck" else 2, abs=0.1)
    elif what not in ("memory_lost", "wrong_books"):
        assert time < 1.5


@pytest.mark.parametrize("what", [what for what in METRICS if what not in ("lowest_free", "allocations")])
def test_a_figure_is_0_where_nothing_of_the_kind_happens(what: str, loop: str) -> None:
    quiet: Data = {"caches": {"io": {"prefill": 8}}, "tasks": {"writer": {"times": 3}}}
    result = play(scenario(quiet), loop=loop).result
    if what not in ("slabs_made", "slabs_left", "longest_gap"):
        assert result.figures[what] == 0
    assert result.passed


def test_figures_can_be_narrowed_to_tasks_and_to_a_cache(loop: str) -> None:
    other: Data = {
        "caches": {"other": {"size": "4KiB"}},
        "tasks": {"reader": {"cache": "other", "times": 5}, "writer": {"times": 2}},
    }
    bounds = [
        {"what": "allocations", "at_least": 5, "at_most": 5, "tasks": "reader"},
        {"what": "allocations", "at_least": 8, "at_most": 8, "tasks": "writer"},
        {"what": "allocations", "at_least": 5, "at_most": 5, "cache": "other"},
        {"what": "allocations", "at_least": 13, "at_most": 13},
        {"what": "allocations", "at_most": 0, "tasks": "reader", "cache": "io"},
        {"what": "slabs_made", "at_least": 1, "at_most": 1, "cache": "other"},
    ]
    result = play(scenario(other, {"expect": bounds}), loop=loop).result
    assert result.passed, result.broken


def test_emergency_objects_at_once_are_counted_for_each_cache_and_for_all(loop: str) -> None:
    other: Data = {
        "caches": {"other": {"size": "4KiB"}},
        "tasks": {"writer": {"hold": "60m"}, "reader": {"cache": "other", "count": 3, "hold": "60m"}},
    }
    bounds = [
        {"what": "emergency_max", "at_least": many, "at_most": many} | narrowed
        for many, narrowed in ((7, {}), (4, {"cache": "io"}), (3, {"cache": "other"}))
    ]
    result = play(scenario(STUCK, other, {"expect": bounds}), loop=loop).result
    assert result.passed, result.broken
    assert result.emergency_max == 7


def test_the_event_that_is_named_is_the_first_that_breaks_the_bound(loop: str) -> None:
    played = play(scenario(STUCK, expect("emergency_made", at_most=2)), loop=loop)
    got = [line for line in str(played.log).splitlines() if "\tgot\t" in line and "emergency" in line][2].split(
        "\t"
    )
    assert played.result.verdicts[0].broken_by == f"at {float(got[0]):.6f} s by '{got[1]} got {got[3]}'"


# -- the end


def test_who_is_stuck_for_good_is_told(loop: str) -> None:
    played = play(scenario(STUCK, NO_EMERGENCY, AFTER_THE_KICK), loop=loop)
    stuck = played.result.stuck
    waiting = [line.split(" waits on ")[0] for line in stuck if "an object of cache 'io'" in line]
    assert sorted(waiting) == [f"writer-{number}" for number in range(4)]
    assert any("an injected deadlock" in line for line in stuck)
    assert played.result.figures["stuck"] == len(stuck)
    assert played.result.duration == pytest.approx(20)
    assert played.result.passed  # nobody has expected anything of it


def test_nobody_is_stuck_where_the_deadlock_ends_later(loop: str) -> None:
    later: Data = {"backends": {"stuck": {"kind": "deadlock", "of": "vmalloc", "duration": "60s"}}}
    assert play(scenario(STUCK, later, NO_EMERGENCY, AFTER_THE_KICK), loop=loop).result.stuck == ()


def test_only_tasks_of_the_workload_and_grows_are_told_as_stuck(loop: str) -> None:
    stuck = play(scenario(STUCK, NO_EMERGENCY, AFTER_THE_KICK), loop=loop).result.stuck
    names = {line.split(" waits on ")[0] for line in stuck}
    assert names == {*(f"writer-{number}" for number in range(4)), "aslab._kmem._worker.Worker._grow"}


def test_rounds_that_were_not_done_are_told_and_what_is_done_is_not(loop: str) -> None:
    for times, unfinished in ((5, 0), (1000, 4)):
        result = play(scenario({"tasks": {"writer": {"times": times}}}), loop=loop).result
        assert result.figures["unfinished"] == unfinished
        assert (result.duration < 1.9) is (not unfinished)


def test_a_run_ends_when_all_rounds_are_done(loop: str) -> None:
    result = play(scenario({"duration": "60m", "tasks": {"writer": {"times": 2}}}), loop=loop).result
    assert result.duration < 1


def test_a_prefill_that_never_ends_is_no_hang(loop: str) -> None:
    result = play(scenario(STUCK, AFTER_THE_KICK, {"caches": {"io": {"prefill": 8}}}), loop=loop).result
    assert result.duration == pytest.approx(20)
    assert result.figures["allocations"] == 0
    assert any("8 free objects of cache 'io'" in line for line in result.stuck)


def test_caches_that_the_allocator_refuses_are_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"caches\.io"):
        scenario({"caches": {"io": {"max_objects": 4, "objects_per_slab": 8}}})


def test_the_result_as_json_has_its_keys_and_goes_through_json(loop: str) -> None:
    told = play(scenario(STUCK, expect("deadlocks", at_most=0)), loop=loop, seed=9).result.as_json()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert {
        "scenario",
        "seed",
        "loop",
        "passed",
        "broken",
        "log_sha256",
        "emergency_max",
        "deadlocks",
        "longest_wait",
        "duration",
    } <= set(told)
    assert (told["scenario"], told["seed"], told["loop"], told["passed"]) == ("base", 9, loop, False)
    assert told["deadlocks"] == 1
    assert told["broken"][0].startswith("expected deadlocks at most 0; got 1; broken at 0.1")
    assert len(told["log_sha256"]) == 64
    assert set(told["figures"]) == set(METRICS)


def test_the_log_has_a_line_for_each_event_in_order_of_time(loop: str) -> None:
    played = play(check(EVERYTHING), seed=1, loop=loop)
    rows = [line.split("\t") for line in str(played.log).splitlines()]
    assert len(rows) == played.result.events
    assert {len(row) for row in rows} == {4}
    times = [float(row[0]) for row in rows]
    assert times == sorted(times)
    assert rows[-1][1:] == ["the scenario", "is over", "0 regions are missing"]
