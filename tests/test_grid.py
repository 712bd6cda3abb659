"""A grid of computers: what a file may say, which computers it makes, and results that are kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from aslab import ConfigError
from aslab.lab._story import _experiments
from aslab.lab._story._computer import COMPUTER, KEYS, Computer, check_value, computer_with, settings
from aslab.lab._story._experiments import RESULTS, Notebook, Result, play_grid, rows_of
from aslab.lab._story._grid import MOST, Grid, load_grid
from aslab.lab._story._machines import MACHINES

ROOT = Path(__file__).parent.parent
GRIDS = ROOT / "examples" / "grids"
SMALL = """
[fixed]
pages = 4096
min_share = 0.15
overcommit = 1
txg_blocks = 16
disk = [0.002, 0.006]
until = 0.5
"""
TWO = SMALL + "[vary]\nhogs = [2, 8]\n"
BY_NAME = {machine.name: machine for machine in MACHINES}
OTHERS: dict[str, Any] = {
    "pages": 8192,
    "min_share": 0.1,
    "pinned": 0.01,
    "hogs": 2,
    "overcommit": 3.0,
    "fill": (0.0, 0.5),
    "kswapd_writes": 4,
    "block": 65536,
    "disk": (0.002, 0.006),
    "depth": 3,
    "txg_timeout": 1.5,
    "txg_blocks": 16,
    "queue_depth": 9,
    "zvol_tasks": 1,
    "issue_tasks": 2,
    "interrupt_tasks": 3,
    "arc_groups": 0.5,
    "reserve": 5,
    "slab_objects": 3,
    "cpu": (0.0, 0.5),
    "per_page": 0.5,
    "lock": 0.5,
    "magazine": 32,
    "scattered": 0.1,
    "compact_scan": 1e-7,
    "compact_move": 1e-5,
    "compact_spare": 1.3125,
    "unconverted": 1,
    "writers": 4,
    "writers_from": 0.25,
    "retry": 0.5,
    "until": 100.0,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grid.toml"


def grid(file: Path, text: str, **more: object) -> Grid:
    file.write_text(text)
    return load_grid(file, more)


def configs(file: Path, text: str, **more: object) -> list[dict[str, Any]]:
    return [config for config, _ in grid(file, text, **more).configs]


class TestComputer:
    def test_every_key_has_a_meaning_and_can_be_set(self) -> None:
        assert set(OTHERS) == set(KEYS) == {field.name for field in dataclasses.fields(Computer)}
        for key, value in OTHERS.items():
            assert KEYS[key].metadata["meaning"]
            computer = computer_with({key: list(value) if isinstance(value, tuple) else value})
            assert getattr(computer, key) == value
            assert [field for field in KEYS if getattr(computer, field) != getattr(COMPUTER, field)] == [key]

    @pytest.mark.parametrize("key", list(KEYS))
    def test_default_is_allowed_and_what_is_out_of_range_or_of_another_type_is_not(self, key: str) -> None:
        default = getattr(COMPUTER, key)
        assert check_value(key, default) == default
        about = KEYS[key].metadata
        bad: list[object] = [
            "1",
            True,
            None,
            {},
            about["least"] - 1,
            about["most"] + 1,
            float("nan"),
            float("inf"),
        ]
        if about["kind"] == "whole":
            bad.append(float(default))
        if about["kind"] == "pair":
            bad += [1.0, [], [1.0], [1.0, 2.0, 3.0], [2.0, 1.0], [0.0, "1"], [0.0, True], [-1.0, 1.0]]
        for value in bad:
            with pytest.raises(ValueError, match=r"^it must be "):
                check_value(key, value)

    def test_block_is_a_power_of_two(self) -> None:
        assert [check_value("block", 1 << bit) for bit in range(14, 21)]
        with pytest.raises(ValueError, match="power of two from 16384 to 1048576"):
            check_value("block", 100_000)

    def test_marks_keep_their_proportion(self) -> None:
        assert (COMPUTER.min, COMPUTER.low, COMPUTER.high) == (1024, 1280, 1536)
        other = Computer(pages=8192, min_share=0.02)
        assert (other.min, other.low, other.high) == (163, 203, 244)

    def test_cluster_is_one_block_and_hogs_fill_as_much_whatever_its_size(self) -> None:
        for block in (16384, 131072, 2**20):
            other = Computer(block=block)
            assert other.cluster * 4096 == block
            assert other.cluster * other.clusters * other.hogs == 4 * other.pages

    @pytest.mark.parametrize(
        ("changed", "field"),
        [
            ({"pages": 4096}, "txg_blocks"),
            ({"txg_blocks": 128}, "txg_blocks"),
            ({"arc_groups": 4.0}, "txg_blocks"),
            ({"reserve": 200}, "txg_blocks"),
            ({"slab_objects": 1, "block": 16384, "txg_blocks": 800}, "txg_blocks"),
            ({"slab_objects": 64, "block": 2**20}, "txg_blocks"),
            ({"txg_blocks": 104, "pinned": 0.5}, "pinned"),
            ({"min_share": 0.005}, "min_share"),
            ({"pages": 2048, "txg_blocks": 8, "hogs": 256, "min_share": 0.1, "overcommit": 1.0}, "hogs"),
            ({"until": 10.0}, "until"),
            ({"disk": (0.1, 0.2)}, "until"),
        ],
        ids=str,
    )
    def test_what_makes_no_sense_together_is_refused(self, changed: dict[str, Any], field: str) -> None:
        COMPUTER.check()
        with pytest.raises(ConfigError) as caught:
            dataclasses.replace(COMPUTER, **changed).check()
        assert caught.value.field == field
        assert str(caught.value).count("\n") == 0

    def test_as_fragmented_as_can_be_it_still_makes_sense(self) -> None:
        Computer(pinned=0.5).check()

    def test_settings_are_what_is_not_as_by_default_and_make_the_same_computer(self) -> None:
        assert settings(COMPUTER) == {}
        other = computer_with(OTHERS)
        assert computer_with(json.loads(json.dumps(settings(other)))) == other
        assert set(settings(other)) == set(OTHERS)


class TestFile:
    def test_every_combination_in_the_order_of_the_lists(self, file: Path) -> None:
        found = grid(file, SMALL + "[vary]\nhogs = [2, 4]\nfill = [[0.0, 0.1], [0.1, 0.2]]\n")
        assert [config for config, _ in found.configs] == [
            {"hogs": hogs, "fill": fill} for hogs in (2, 4) for fill in ((0.0, 0.1), (0.1, 0.2))
        ]
        for config, computer in found.configs:
            assert (computer.hogs, computer.fill) == (config["hogs"], config["fill"])
            assert (computer.pages, computer.until) == (4096, 0.5)
        assert found.skipped == ()

    def test_an_empty_file_is_the_one_computer_that_all_have(self, file: Path) -> None:
        assert grid(file, "").configs == (({}, COMPUTER),)

    def test_so_many_are_drawn_that_all_differ(self, file: Path) -> None:
        lists = SMALL + "[vary]\nhogs = [1, 2, 3, 4, 5, 6]\nqueue_depth = [1, 2, 3, 4]\n"
        drawn = configs(file, "draw = 7\nseed = 5\n" + lists)
        assert len({tuple(config.values()) for config in drawn}) == len(drawn) == 7
        assert drawn == configs(file, "draw = 7\nseed = 5\n" + lists)
        assert drawn != configs(file, "draw = 7\nseed = 6\n" + lists)
        assert drawn[:3] == configs(file, "draw = 3\nseed = 5\n" + lists), "more go on where fewer end"

    def test_no_more_are_drawn_than_there_are(self, file: Path) -> None:
        assert configs(file, "draw = 99\n" + TWO) == configs(file, TWO) == [{"hogs": 2}, {"hogs": 8}]

    def test_what_makes_no_sense_is_left_out_and_said(self, file: Path) -> None:
        found = grid(file, SMALL + "[vary]\nblock = [131072, 1048576]\n")
        assert [config for config, _ in found.configs] == [{"block": 131072}]
        assert [exc.field for exc in found.skipped] == ["txg_blocks"]

    def test_more_can_be_fixed_from_outside_but_not_what_is_varied(self, file: Path) -> None:
        [(_, computer), _] = grid(file, TWO, pages=8192, queue_depth=7).configs
        assert (computer.pages, computer.queue_depth, computer.txg_blocks) == (8192, 7, 16)
        with pytest.raises(ConfigError, match=r"^--set hogs: 3 .*cannot be given for a key that the grid varies"):
            grid(file, TWO, hogs=3)

    @pytest.mark.parametrize(
        ("text", "key", "allowed"),
        [
            ("[fixed]\nhog = 3", "fixed.hog: 3", "unknown key; known keys are pages, min_share, "),
            ("[vary]\nhog = [3]", "vary.hog: [3]", "unknown key; known keys are pages, min_share, "),
            ("[fixd]\n", "fixd: {}", "unknown key; known keys are draw, seed, fixed, vary"),
            ("[fixed]\nhogs = 0", "fixed.hogs: 0", "must be a whole number from 1 to 256"),
            ("[fixed]\nhogs = 2.0", "fixed.hogs: 2.0", "must be a whole number from 1 to 256"),
            ("[fixed]\nhogs = true", "fixed.hogs: True", "must be a whole number from 1 to 256"),
            ("[fixed]\nmin_share = nan", "fixed.min_share: nan", "must be a number from 0.001 to 0.25"),
            ("[fixed]\ndisk = 0.1", "fixed.disk: 0.1", "must be two numbers of seconds"),
            ("[fixed]\ndisk = [2, 1]", "fixed.disk: [2, 1]", "the smaller one first"),
            ("[vary]\ndisk = [0.1, 0.2]", "vary.disk.0: 0.1", "must be two numbers of seconds"),
            ("[vary]\nhogs = [2, '3']", "vary.hogs.1: '3'", "must be a whole number"),
            ("[vary]\nhogs = 2", "vary.hogs: 2", "must be a list"),
            ("[vary]\nhogs = []", "vary.hogs: []", "must have 1 to 100 entries"),
            ("[vary]\nhogs = [2, 3, 2]", "vary.hogs: [2, 3, 2]", "must be distinct values"),
            ("[vary]\nretry = [1, 1.0]", "vary.retry: [1, 1.0]", "must be distinct values"),
            ("fixed = 3", "fixed: 3", "must be a table"),
            ("draw = 0", "draw: 0", "greater than or equal to 1"),
            ("draw = 'x'", "draw: 'x'", "must be a whole number"),
            ("seed = -1", "seed: -1", "greater than or equal to 0"),
            ("[fixed]\nhogs = 2\n[vary]\nhogs = [3]", "fixed.hogs: 2", "cannot be given with a list in [vary]"),
            ("draw = ", "text: 'draw = '", "must be TOML"),
        ],
    )
    def test_bad_file_is_one_line_that_names_key_value_and_what_is_allowed(
        self, file: Path, text: str, key: str, allowed: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            grid(file, text)
        message = str(caught.value)
        assert message.startswith(f"{file}: {key} is not allowed; ")
        assert allowed in message
        assert "\n" not in message

    def test_more_combinations_than_anybody_waits_for_have_to_be_drawn(self, file: Path) -> None:
        lists = "".join(f"{key} = {list(range(1, 101))}\n" for key in ("hogs", "zvol_tasks", "issue_tasks"))
        with pytest.raises(ConfigError, match=f"draw: None .*more than {MOST} combinations; there are 1000000"):
            grid(file, "[vary]\n" + lists)
        assert len(configs(file, "draw = 20\n[vary]\n" + lists)) == 20

    def test_hard_grid_has_at_least_60_configurations_from_lists_over_all_of_the_hard_regions(self) -> None:
        found = load_grid(GRIDS / "hard.toml")
        assert len(found.configs) >= 60
        for key in ("pages", "hogs", "overcommit", "disk", "txg_timeout", "txg_blocks", "queue_depth", "block"):
            assert len({config[key] for config, _ in found.configs}) >= 4, key

    @pytest.mark.parametrize("path", sorted(GRIDS.glob("*.toml")), ids=lambda path: path.name)
    def test_every_example_can_be_read(self, path: Path) -> None:
        assert load_grid(path).configs


@pytest.fixture
def two(file: Path) -> Grid:
    return grid(file, TWO)


PAIR = [BY_NAME["original"], BY_NAME["pf_memalloc"]]


def play(two: Grid, notebook: Notebook, **options: Any) -> list[Result]:
    return play_grid(two, PAIR, range(2), notebook=notebook, **options)


def play_into(path: Path, two: Grid, **options: Any) -> list[Result]:
    with Notebook(path) as notebook:
        return play(two, notebook, **options)


class TestPlay:
    def test_one_result_for_each_machine_computer_and_seed_in_that_order(self, two: Grid) -> None:
        seen: list[tuple[str, int]] = []
        results = play(two, Notebook(), progress=lambda name, seed: seen.append((name, seed)))
        assert [(told["config"]["hogs"], told["machine"], told["seed"]) for told in results] == [
            (hogs, machine.name, seed) for hogs in (2, 8) for machine in PAIR for seed in range(2)
        ]
        assert all(tuple(told) == RESULTS for told in results)
        assert seen == [(told["machine"], told["seed"]) for told in results]
        for told in results:
            assert told["finished"] == (told["machine"] == "pf_memalloc")
        assert len({told["time"] for told in results if told["finished"]}) == 4, (
            "configuration and seed both count"
        )

    def test_more_jobs_tell_the_same(self, two: Grid) -> None:
        assert play(two, Notebook(), jobs=2) == play(two, Notebook())

    def test_rows_sum_up_each_machine(self) -> None:
        told = [
            {"machine": name, "finished": finished, "longest_wait": wait, "time": time}
            for name, finished, wait, time in (
                ("a", True, 0.1, 5.0),
                ("b", False, 60.0, 60.0),
                ("a", True, 0.3, 7.0),
                ("a", False, 2.0, 60.0),
            )
        ]
        assert [tuple(row.values()) for row in rows_of(told)] == [
            ("a", "2 of 3", "300 ms", "2 s", "6.00 s"),
            ("b", "0 of 1", "60 s", "60 s", "-"),
        ]


class TestNotebook:
    def test_second_run_finds_all_that_is_there_and_runs_nothing(
        self, two: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = play_into(tmp_path / "results", two)
        text = (tmp_path / "results").read_text()
        assert [json.loads(line)["machine"] for line in text.splitlines()] == [told["machine"] for told in first]

        monkeypatch.setattr(_experiments, "tell", None)
        seen: list[str] = []
        assert play_into(tmp_path / "results", two, progress=lambda name, _: seen.append(name)) == first
        assert len(seen) == len(first), "the bar counts them all the same"
        assert (tmp_path / "results").read_text() == text

    def test_what_was_found_before_an_interrupt_is_kept(self, two: Grid, tmp_path: Path) -> None:
        done = 0

        def interrupt(*_: object) -> None:
            nonlocal done
            done += 1
            assert len((tmp_path / "results").read_text().splitlines()) == done, "each is there at once"
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            play_into(tmp_path / "results", two, progress=interrupt)
        assert len((tmp_path / "results").read_text().splitlines()) == 3
        assert play_into(tmp_path / "results", two) == play(two, Notebook())
        assert len((tmp_path / "results").read_text().splitlines()) == 8

    def test_line_that_was_cut_off_is_forgotten_and_run_anew(self, two: Grid, tmp_path: Path) -> None:
        path = tmp_path / "results"
        first = play_into(path, two)
        whole = path.read_text()
        for cut in (whole[:-1], whole[:-40], whole[: whole.index("\n") + 4], whole[:5]):
            path.write_text(cut)
            assert play_into(path, two) == first
            assert sorted(path.read_text().splitlines()) == sorted(whole.splitlines())

    @pytest.mark.parametrize(
        "text", ["notes", "a list\n- of things", "{}\n", "[]\n", '{"machine": 3}\n', "\n", "\xff\n"]
    )
    def test_another_file_is_refused_and_left_alone(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "notes"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"line 1: .* must be a result written by --resume"):
            Notebook(path).__enter__()
        assert path.read_text(encoding="latin-1") == text

    @pytest.mark.parametrize("change", ["queue_depth = 9\n", ""], ids=["computer", "loop"])
    def test_result_of_another_computer_or_loop_is_none_of_these(
        self, file: Path, two: Grid, tmp_path: Path, change: str
    ) -> None:
        play_into(tmp_path / "results", two)
        other = grid(file, TWO.replace("[vary]", change + "[vary]"))
        play_into(tmp_path / "results", other, loop="asyncio" if change else "trio")
        assert len((tmp_path / "results").read_text().splitlines()) == 16

    def test_same_computer_by_another_grid_is_found(self, file: Path, two: Grid, tmp_path: Path) -> None:
        play_into(tmp_path / "results", two)
        other = grid(file, SMALL + "hogs = 2\n[vary]\nqueue_depth = [4]\n")
        [told, *_] = play_into(tmp_path / "results", other)
        assert told["config"] == {"queue_depth": 4}
        assert len((tmp_path / "results").read_text().splitlines()) == 8
