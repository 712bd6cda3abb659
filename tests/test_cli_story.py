"""``aslab lab story``, run as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aslab.cli._lab._rows import show
from aslab.cli._lab._story import _machines
from aslab.lab._story._chapters import Row
from aslab.lab._story._computer import COMPUTER, KEYS
from aslab.lab._story._grid import load_grid
from aslab.lab._story._machines import CONTROLS, MACHINES
from aslab.lab._story._run import Chapter

from .test_cli import ROOT, Finished, Here, aslab, python, told

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
    show([Row(machine, (large,), cost) for machine in MACHINES])
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
    less = ("--set", "overcommit=1.6", "--set", "until=10")
    story = ("lab", "story", "--machine", "emergency_v2", *less)
    done = aslab(*story, "--seeds", "3:4", "--fragmented", "3.125", "--json")
    [row] = json.loads(done.stdout)
    assert row["failed_by_order"]["5"] > 0
    assert (row["stuck"], done.returncode) == (1, 1)
    assert not done.stderr, "page allocation failures are counted, not printed"


@pytest.mark.parametrize(
    ("finished", "as_told"), [(0, True), (1, True), (2, False), (10, False)], ids=lambda value: str(value)
)
def test_original_is_as_told_if_9_of_10_seeds_are_stuck(finished: int, as_told: bool) -> None:
    chapters = tuple(Chapter("original", seed, finished=seed < finished) for seed in range(10))
    assert Row(MACHINES[0], chapters).as_expected is as_told


def test_others_are_as_told_only_if_every_seed_finishes() -> None:
    chapters = [Chapter("aslab", seed, finished=True) for seed in range(200)]
    assert Row(MACHINES[-1], tuple(chapters)).as_expected
    chapters[77].finished = False
    assert not Row(MACHINES[-1], tuple(chapters)).as_expected


def test_controls_run_only_where_they_are_asked_for(both: Both) -> None:
    assert _machines([], controls=False) == list(MACHINES)
    assert _machines([], controls=True) == [*MACHINES, *CONTROLS]
    assert [one.name for one in _machines(["aslab_rows", "aslab"], controls=False)] == ["aslab", "aslab_rows"]
    assert _machines(["aslab"], controls=True) == [MACHINES[-2], *CONTROLS]


def test_name_that_is_too_long_for_the_table_is_broken_at_an_underscore(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chapter = Chapter(
        "", 0, finished=True, time=7.31, longest_txg_sync=0.3, longest_wait=59.9853, deadlocks=99_999
    )
    show([Row(machine, (chapter,)) for machine in (*MACHINES, *CONTROLS)])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    lines = [line.split()[0] for line in text.split("\n\n")[0].splitlines()[1:]]
    assert "emergency_v2" in lines, "what fits stays whole"
    number = lines.index("emergency_v2_single_")
    assert lines[number + 1] == "reserve"


def test_unknown_machine_is_one_line_that_says_which_there_are(here: Here) -> None:
    message = told(here("lab", "story", "--machine", "nope"), 2)
    assert "--machine 'nope': must be one of " in message
    assert all(machine.name in message for machine in (*MACHINES, *CONTROLS))


@pytest.mark.parametrize("seeds", ["0", "-1", "x", "", "5:5", "5:2", "-3:2", "1:", ":", "1.5", "1:2:3", "1000000"])
def test_bad_seeds_are_one_line_that_says_what_is_allowed(here: Here, seeds: str) -> None:
    message = told(here("lab", "story", f"--seeds={seeds}"), 2)
    assert "--seeds" in message
    assert "must be a number, such as 20, or a range, such as 20:40" in message


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
    assert all(f"{name}: swapped pages" in page for name in names)
    assert "Only original. The other one finishes." in page


def test_report_that_cannot_be_written_is_told_before_anything_is_run(here: Here, tmp_path: Path) -> None:
    message = told(here(*ORIGINAL, "--seeds", "100000", "--report", tmp_path / "no" / "story.html"), 2)
    assert "story.html" in message


SMALL = [
    f"--set={one}" for one in ("pages=4096", "min_share=0.15", "txg_blocks=16", "disk=0.002,0.006", "until=2")
]


class TestSet:
    def test_another_computer_is_another_story(self, here: Here) -> None:
        def tell(*more: str) -> dict[str, Any]:
            done = here("lab", "story", "--machine", "pf_memalloc", "--seeds", "1", "--json", *SMALL, *more)
            assert done.returncode == 0, done.stderr
            [row] = json.loads(done.stdout)
            return dict(row)

        small, longer = tell(), tell("--set", "overcommit=6.0")
        assert 0 < small["time_to_finish"] < longer["time_to_finish"] < 2
        assert small["reserve_used"] <= 4096 * 0.15
        assert tell("--set", "pinned=0.25")["lowest_free_pages"] == tell("--fragmented", "25")["lowest_free_pages"]

    def test_help_lists_every_key_with_its_default_and_meaning(self, here: Here) -> None:
        text = " ".join(here("lab", "story", "--help").stdout.decode().split())
        for key, field in KEYS.items():
            assert field.metadata["meaning"] in text, key
            default = getattr(COMPUTER, key)
            if not isinstance(default, tuple):
                assert f" {key} {default:g} " in text

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ("hogs=0", "--set hogs: 0 is not allowed; it must be a whole number from 1 to 256"),
            ("hogs=x", "--set hogs: 'x' is not allowed; it must be a whole number from 1 to 256"),
            ("hogs=", "--set hogs: '' is not allowed; it must be a whole number"),
            ("hogs=1\nx=2", "--set hogs: '1\\nx=2' is not allowed; it must be a whole number"),
            ("disk=0.1", "--set disk: 0.1 is not allowed; it must be two numbers of seconds"),
            (
                "disk=0.2,0.1",
                "--set disk: [0.2, 0.1] is not allowed; it must be two numbers of seconds, the smaller",
            ),
            ("hog=3", "--set hog: 3 is not allowed; unknown key; known keys are pages, min_share, "),
            ("hogs", "--set 'hogs': must be KEY=VALUE, such as hogs=8"),
            ("=3", "--set '=3': must be KEY=VALUE"),
            ("a\x1bb=3", "--set 'a\\x1bb=3': must be KEY=VALUE"),
            ("hogs=" + "9" * 5000, "--set 'hogs=999"),
            (
                "pages=4096",
                "txg_blocks: 64 is not allowed; it must let ZFS fit in 1856 pages, half of",
            ),
        ],
    )
    def test_bad_setting_is_one_line_that_names_key_value_and_what_is_allowed(
        self, here: Here, given: str, says: str
    ) -> None:
        message = told(here("lab", "story", "--set", given), 2)
        assert says in message
        assert len(message) < 500

    @pytest.mark.parametrize(
        ("args", "says"),
        [
            (("--set", "hogs=3", "--set", "hogs=4"), "hogs is set twice"),
            (("--set", "pinned=0.1", "--fragmented", "3"), "--fragmented: cannot be given with --set pinned"),
            (("--resume", "results"), "--resume: needs --grid"),
        ],
    )
    def test_options_that_do_not_go_together_are_one_line(
        self, here: Here, args: tuple[str, ...], says: str
    ) -> None:
        assert says in told(here("lab", "story", *args), 2)


SMOKE = ("lab", "story", "--grid", ROOT / "examples" / "grids" / "smoke.toml", "--machine", "pf_memalloc")


class TestGrid:
    def test_json_is_a_list_with_one_object_an_experiment(self) -> None:
        done = aslab(*SMOKE, "--machine", "original", "--seeds", "3:5", "--json", "--set", "overcommit=1")
        assert done.returncode == 0, "whatever came"
        assert not done.stderr
        results = json.loads(done.stdout)
        assert [(one["config"], one["machine"], one["seed"]) for one in results] == [
            ({"hogs": hogs}, name, seed)
            for hogs in (2, 8)
            for name in ("original", "pf_memalloc")
            for seed in (3, 4)
        ]
        for one in results:
            assert set(one) == {
                "machine", "config", "seed", "finished", "longest_wait", "time", "emergency_max"
            }  # fmt: skip
            assert one["finished"] == (one["machine"] == "pf_memalloc")

    def test_second_run_of_the_same_file_runs_nothing_and_says_the_same(self, tmp_path: Path) -> None:
        args = (*SMOKE, "--seeds", "1", "--set", "overcommit=1", "--resume", tmp_path / "results.jsonl")
        first = aslab(*args)
        assert first.returncode == 0, first.stderr
        head, row, empty, foot = first.stdout.decode().splitlines()
        assert head.split() == ["machine", "finished", "median", "wait", "worst", "wait", "median", "time"]
        assert row.split()[:4] == ["pf_memalloc", "2", "of", "2"]
        assert (empty, foot) == ("", "2 configurations, 1 seed each.")
        kept = (tmp_path / "results.jsonl").read_text()
        assert kept.count("\n") == 2
        lines = [json.loads(line) | {"longest_wait": 7.5} for line in kept.splitlines()]
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        again = aslab(*args)
        assert again.stdout.decode().splitlines()[1].split()[4:8] == ["7.5", "s", "7.5", "s"], (
            "it was not run again"
        )

    def test_what_makes_no_sense_is_counted_on_stderr_and_below_the_table(self, tmp_path: Path) -> None:
        file = tmp_path / "some.toml"
        file.write_text("[vary]\nblock = [131072, 1048576]\nhogs = [2, 256]\n")
        done = aslab("lab", "story", "--grid", file, "--machine", "original", "--seeds", "1")
        assert done.returncode == 0, done.stderr
        message = done.stderr.decode()
        assert message.startswith(
            "aslab: 2 of 4 configurations make no sense and are skipped; the first: txg_blocks"
        )
        assert message.count("\n") == 1
        foot = " ".join(done.stdout.decode().split("\n\n")[1].split())
        assert foot == (
            "2 configurations, 1 seed each. Skipped because they make no sense: 2 of 4 (txg_blocks 2)."
        )

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[vary]\nhogs = [0]", "vary.hogs.0: 0 is not allowed; it must be a whole number from 1 to 256"),
            ("[vary]\nhog = [3]", "vary.hog: [3] is not allowed; unknown key; known keys are pages, "),
            ("draw", "text: 'draw' is not allowed; it must be TOML"),
            ("[fixed]\npages = 4096", "no configuration makes sense; the first: txg_blocks: 64 is not allowed"),
        ],
    )
    def test_bad_file_is_one_line(self, here: Here, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / "bad.toml").write_text(text)
        message = told(here("lab", "story", "--grid", tmp_path / "bad.toml"), 2)
        assert "bad.toml" in message
        assert says in message

    def test_files_that_cannot_be_read_or_are_not_its_own_are_one_line(self, here: Here, tmp_path: Path) -> None:
        assert "cannot read" in told(here("lab", "story", "--grid", tmp_path / "none.toml"), 2)
        assert "cannot read and write" in told(here(*SMOKE, "--resume", tmp_path), 2)
        (tmp_path / "notes").write_text("not to be lost")
        assert "line 1: b'not to be lost' is not" in told(here(*SMOKE, "--resume", tmp_path / "notes"), 2)
        assert (tmp_path / "notes").read_text() == "not to be lost"
        assert "--report: cannot be given with --grid" in told(here(*SMOKE, "--report", tmp_path / "a.html"), 2)
        assert "--set hogs: 3 is not allowed; " in told(here(*SMOKE, "--set", "hogs=3"), 2)


class TestTable:
    """scripts/story_table.py"""

    SCRIPT = (ROOT / "scripts" / "story_table.py", "--grid", SMOKE[3], "--machine", "pf_memalloc", "--seeds", "1")

    def test_writes_what_came_between_its_lines_and_nothing_else(self, tmp_path: Path) -> None:
        doc, results = tmp_path / "doc.md", tmp_path / "results.jsonl"
        text = (ROOT / "docs" / "story.md").read_text()
        doc.write_text(text)
        args = (*self.SCRIPT, "--doc", doc, "--resume", results)
        missing = python(*args, "--no-run")
        assert (missing.returncode, missing.stderr.decode().split(": ")[1]) == (1, "2 of 2 results are missing\n")
        assert doc.read_text() == text
        done = python(*args)
        assert done.returncode == 0, done.stderr
        begin = "<!-- table of a grid: scripts/story_table.py -->\n"
        end = "<!-- end of the table -->"
        before, _, rest = doc.read_text().partition(begin)
        table, _, after = rest.partition(end)
        assert before + begin == text[: len(before + begin)]
        assert text.endswith(end + after)
        assert "--grid examples/grids/smoke.toml --seeds 1 --machine pf_memalloc\n" in table
        assert "pf_memalloc    2 of 2" in table
        written = doc.read_text()
        assert python(*args, "--no-run").returncode == 0
        assert doc.read_text() == written

    def test_file_without_a_place_for_it_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "doc.md").write_text("nothing")
        done = python(*self.SCRIPT, "--doc", tmp_path / "doc.md")
        assert done.returncode == 2
        assert "needs one line" in done.stderr.decode()
        assert (tmp_path / "doc.md").read_text() == "nothing"


def test_docs_name_every_key_and_every_control_and_their_example_of_a_grid_can_be_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "story.md").read_text()
    for name in (*KEYS, *(machine.name for machine in (*MACHINES, *CONTROLS))):
        assert f"`{name}`" in text, name
    [example] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "grid.toml").write_text(example)
    assert load_grid(tmp_path / "grid.toml").configs
