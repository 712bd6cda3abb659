"""``aslab lab story``, run as users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from aslab.cli._story import _show
from aslab.lab._chapters import Row
from aslab.lab._machines import MACHINES
from aslab.lab._story import Chapter

from .test_cli import Finished, Here, aslab, told

PROMISED = {
    "machine",
    "seeds",
    "finished",
    "stuck",
    "cycle",
    "time_to_finish",
    "longest_txg_sync",
    "longest_wait",
    "emergency_max",
    "emergency_left",
    "rows_made",
    "file_blocks",
    "deadlocks",
    "failed_by_order",
    "lowest_free_pages",
    "va_lock_time",
    "emergency_free_us",
}
ORIGINAL = ("lab", "story", "--machine", "original")


class Both(NamedTuple):
    """What the command says of two machines."""

    done: Finished
    page: str


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    report = tmp_path_factory.mktemp("story") / "story.html"
    done = aslab(*ORIGINAL, "--machine", "aslab", "--seeds", "2:3", "--json", "--report", report)
    assert done.returncode == 0, done.stderr
    return Both(done, report.read_text())


def test_json_is_a_list_with_one_object_a_machine_and_the_promised_keys(both: Both) -> None:
    original, ours = json.loads(both.done.stdout)
    assert set(original) >= PROMISED
    assert set(ours) == set(original)
    assert (original["machine"], original["seeds"], original["finished"], original["stuck"]) == (
        "original",
        1,
        0,
        1,
    )
    assert original["time_to_finish"] is None
    assert {"vmalloc", "reclaim", "writeback"} <= set(original["cycle"])
    assert (ours["machine"], ours["finished"], ours["stuck"], ours["cycle"]) == ("aslab", 1, 0, [])
    assert ours["time_to_finish"] > 1
    assert ours["emergency_left"] == 0
    assert not both.done.stderr


def test_more_jobs_tell_the_same_of_each_seed() -> None:
    def tell(jobs: str) -> dict[str, object]:
        done = aslab(*ORIGINAL, "--seeds", "3", "--jobs", jobs, "--json")
        [row] = json.loads(done.stdout)
        return dict(row)

    assert tell("2") == tell("1")


def test_failures_of_pages_are_counted_and_not_printed_by_more_jobs_either() -> None:
    done = aslab("lab", "story", "--machine", "pf_memalloc", "--seeds", "1", "--jobs", "2", "--json")
    [row] = json.loads(done.stdout)
    assert row["failed_by_order"] == {"0": 1}
    assert not done.stderr


def test_freeing_is_measured_where_there_are_emergency_objects(both: Both) -> None:
    original, ours = json.loads(both.done.stdout)
    assert original["emergency_free_us"] == {}
    assert set(ours["emergency_free_us"]) == {"10", "1000", "10000"}


def test_seeds_are_so_many_or_those_of_a_range() -> None:
    def count(seeds: str) -> int:
        done = aslab(*ORIGINAL, "--seeds", seeds, "--json")
        [row] = json.loads(done.stdout)
        assert row["finished"] + row["stuck"] == row["seeds"]
        return int(row["seeds"])

    assert (count("2"), count("2:5")) == (2, 3)


def test_table_has_a_line_for_each_machine_whose_columns_line_up_and_says_who_is_stuck() -> None:
    done = aslab(*ORIGINAL, "--seeds", "2")
    assert done.returncode == 0, done.stderr
    head, line, *others = done.stdout.decode().splitlines()
    assert (head.split()[0], line.split()[0]) == ("machine", "original")
    assert len(line.rstrip()) == len(head.rstrip()), "right-aligned, the last column too"
    assert max(map(len, (head, line, *others))) <= 80
    end = head.index("finished") + len("finished")
    assert line[:end].endswith("0 of 2")
    stuck = " ".join(" ".join(others).split("stuck: ")[1].split())
    assert "vmalloc → reclaim → writeback" in stuck
    chain = stuck.split(" → ")
    assert chain[0] == chain[-1], "the cycle is closed"


def test_table_of_all_machines_with_large_figures_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    large = Chapter(
        machine="",
        seed=0,
        finished=True,
        time=599.99,
        longest_txg_sync=599.99,
        longest_wait=599.99,
        emergency_max=99_999,
        deadlocks=999_999,
        failed_by_order=[999_999, 0, 0, 0, 0, 999_999],
        lowest_free_pages=16_384,
        va_lock_time=12.345678,
    )
    cost = dict.fromkeys((10, 1_000, 10_000), 0.123456)
    _show([Row(machine, (large,), cost) for machine in MACHINES])
    text = capsys.readouterr().out
    names = [machine.name for machine in MACHINES]
    for table in text.split("\n\n")[:2]:
        lines = table.splitlines()
        assert [line.split()[0] for line in lines if line.startswith(tuple(names))] == names
        assert len({len(line.rstrip()) for line in lines if line.startswith(tuple(names))}) == 1
    for value in ("599.99 s", "99999", "order 5", "12.3457 s", "16384"):
        assert text.count(value) >= len(names)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_machine_that_ends_otherwise_than_the_change_says_exits_1() -> None:
    done = aslab("lab", "story", "--machine", "emergency_v2", "--seeds", "3:4", "--fragmented", "3.125", "--json")
    [row] = json.loads(done.stdout)
    assert row["failed_by_order"]["5"] > 0
    assert (row["stuck"], done.returncode) == (1, 1)
    assert not done.stderr, "page allocation failures are counted, not printed"


@pytest.mark.parametrize(
    ("finished", "as_told"), [(0, True), (1, True), (2, False), (10, False)], ids=lambda value: str(value)
)
def test_original_is_as_told_if_9_of_10_seeds_are_stuck(finished: int, as_told: bool) -> None:
    chapters = tuple(Chapter("original", seed, finished=seed < finished) for seed in range(10))
    assert Row(MACHINES[0], chapters).as_told is as_told


def test_others_are_as_told_only_if_every_seed_finishes() -> None:
    chapters = [Chapter("aslab", seed, finished=True) for seed in range(200)]
    assert Row(MACHINES[-1], tuple(chapters)).as_told
    chapters[77].finished = False
    assert not Row(MACHINES[-1], tuple(chapters)).as_told


def test_unknown_machine_is_one_line_that_says_which_there_are(here: Here) -> None:
    message = told(here("lab", "story", "--machine", "nope"), 2)
    assert "--machine 'nope': allowed are " in message
    assert all(machine.name in message for machine in MACHINES)


@pytest.mark.parametrize("seeds", ["0", "-1", "x", "", "5:5", "5:2", "-3:2", "1:", ":", "1.5", "1:2:3", "1000000"])
def test_bad_seeds_are_one_line_that_says_what_is_allowed(here: Here, seeds: str) -> None:
    message = told(here("lab", "story", f"--seeds={seeds}"), 2)
    assert "--seeds" in message
    assert "allowed are a number, such as 20, or a range, such as 20:40" in message


@pytest.mark.parametrize("option", [("--fragmented", "51"), ("--fragmented", "-1"), ("--loop", "curio")])
def test_other_bad_options_exit_2(here: Here, option: tuple[str, str]) -> None:
    done = here(*ORIGINAL, *option)
    assert done.returncode == 2
    assert not done.stdout


def test_report_has_every_machine_and_what_came_of_it(both: Both) -> None:
    page = both.page
    names = ("original", "aslab")
    assert all(name in page for name in names)
    assert "txg sync" in page
    assert all(f"swapped pages, {name}" in page for name in names)
    assert "stuck" in page


def test_report_that_cannot_be_written_is_told_before_anything_is_run(here: Here, tmp_path: Path) -> None:
    message = told(here(*ORIGINAL, "--seeds", "100000", "--report", tmp_path / "no" / "story.html"), 2)
    assert "story.html" in message
