"""``aslab lab story --of staging``, run as users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from aslab.cli._lab._rows import show
from aslab.lab._staging._chapters import Row
from aslab.lab._staging._machines import MACHINES
from aslab.lab._staging._run import Chapter

from .test_cli import Finished, Here, aslab, told

STAGING = ("lab", "story", "--of", "staging")
PROMISED = {
    "machine",
    "seeds",
    "finished",
    "stuck",
    "cycle",
    "longest_wait",
    "longest_wait_worst",
    "requests_per_second",
    "tries_per_second",
    "pinned_max",
}
BY_NAME = {machine.name: machine for machine in MACHINES}


class Both(NamedTuple):
    """What the command says of two machines."""

    done: Finished
    page: str


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    report = tmp_path_factory.mktemp("staging") / "staging.html"
    options = ("--machine", "semaphore", "--machine", "aslab", "--seeds", "1:3", "--json", "--report", report)
    done = aslab(*STAGING, *options)
    assert done.returncode == 0, done.stderr
    return Both(done, report.read_text())


def test_json_is_a_list_with_one_object_a_machine_and_the_promised_keys(both: Both) -> None:
    semaphore, ours = json.loads(both.done.stdout)
    assert set(semaphore) >= PROMISED
    assert set(ours) == set(semaphore)
    assert (semaphore["machine"], semaphore["finished"], semaphore["stuck"]) == ("semaphore", 0, 2)
    assert semaphore["longest_wait"] is None
    assert {"staging pool", "store"} <= set(semaphore["cycle"])
    assert (ours["machine"], ours["finished"], ours["stuck"], ours["cycle"]) == ("aslab", 2, 0, [])
    assert ours["pinned_max"] <= 256 * 2**20
    assert not both.done.stderr


def test_report_has_every_machine_and_what_came_of_it(both: Both) -> None:
    assert "The story of the staging buffers" in both.page
    for words in ("semaphore", "aslab", "stuck", "GPU places"):
        assert words in both.page


def test_more_jobs_tell_the_same() -> None:
    def tell(jobs: str) -> bytes:
        return bytes(aslab(*STAGING, "--machine", "semaphore", "--seeds", "2", "--jobs", jobs, "--json").stdout)

    assert tell("2") == tell("1")


def test_table_has_a_line_for_each_machine_and_says_who_is_stuck() -> None:
    done = aslab(*STAGING, "--machine", "busy_retry", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert max(map(len, text.splitlines())) <= 80
    assert "0 of 1" in text
    stuck = " ".join(text.split("stuck: ")[1].split())
    assert stuck.startswith("GPU places → store → staging pool → retrieve → GPU places, after ")


def test_table_of_all_machines_with_large_figures_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    large = Chapter(
        machine="",
        seed=0,
        finished=True,
        time=2.0,
        served=200,
        longest_wait=9.876,
        longest_store_wait=9.876,
        tries=99_999,
        pinned_max=9999 * 2**20,
        emergency_max=8,
    )
    show([Row(machine, (large,) * 100) for machine in MACHINES])
    text = capsys.readouterr().out
    assert "…" not in text
    assert text.count("100 of 100") == text.count("99999") == text.count(" 9999 ") == len(MACHINES)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "finished", "as_told"),
    [("semaphore", 5, True), ("semaphore", 6, False), ("aslab", 10, True), ("aslab", 9, False)],
)
def test_as_told_is_stuck_with_half_of_the_seeds_or_finished_with_all(
    name: str, finished: int, as_told: bool
) -> None:
    chapters = tuple(Chapter(name, seed, finished=seed < finished, time=1.0) for seed in range(10))
    assert Row(BY_NAME[name], chapters).as_expected is as_told


def test_machine_that_ends_otherwise_than_foretold_exits_1() -> None:
    done = aslab(*STAGING, "--machine", "semaphore", "--seeds", "11:12", "--json")
    [row] = json.loads(done.stdout)
    assert (row["stuck"], done.returncode) == (0, 1)


def test_unknown_machine_is_one_line_that_says_which_there_are(here: Here) -> None:
    message = told(here(*STAGING, "--machine", "original"), 2)
    assert "--machine 'original' with --of staging: must be one of " in message
    assert all(machine.name in message for machine in MACHINES)


@pytest.mark.parametrize(
    "given", [("--fragmented", "3"), ("--set", "hogs=8"), ("--grid", "x.toml"), ("--resume", "x"), ("--controls",)]
)
def test_options_of_the_other_story_are_refused(here: Here, given: tuple[str, ...]) -> None:
    assert f"{given[0]}: cannot be given with --of staging" in told(here(*STAGING, *given), 2)


def test_report_that_cannot_be_written_is_told_before_anything_is_run(here: Here, tmp_path: Path) -> None:
    message = told(here(*STAGING, "--seeds", "100000", "--report", tmp_path / "no" / "story.html"), 2)
    assert "story.html" in message


def test_story_that_there_is_not_exits_2(here: Here) -> None:
    assert here("lab", "story", "--of", "war").returncode == 2
