"""The benchmarks run and print what they should; what they measure is not tested."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aslab.bench import _app, _lab, _record, _scrape, _table, app
from aslab.bench._measured import Bench, Quantity, Row, Turn, interleave, spread

QUICK = {
    "stall": ["--mib", "2"],
    "move": ["--slabs", "4"],
    "waiters": ["--most", "200"],
    "pair": ["--pairs", "20"],
    "lease": ["--pairs", "20"],
    "emergency": ["--seconds", "0.05"],
    "emergency-free": ["--most", "20"],
    "growth": ["--mib", "1", "--largest", "4"],
    "handover": ["--operations", "200"],
    "frames": ["--frames", "2", "--mb", "0.1"],
    "index": [],
    "scale": ["--most", "20"],
    "scrape": ["--scrapes", "10", "--busy", "50"],
    "service": ["--uploads", "2"],
    "demo": ["--files", "2", "--mib", "1"],
    "memory": ["--seconds", "0.01", "--most", "64KiB"],
    "lab": ["--most", "3000"],
}


@pytest.mark.parametrize("command", list(QUICK))
def test_json_has_one_schema_for_all_and_a_table_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    as_json, table = _record.as_json, io.StringIO()

    def show_too(name: str, rows: list[Row]) -> object:
        with contextlib.redirect_stdout(table):
            _table.show("", rows, "")
        return as_json(name, rows)

    monkeypatch.setattr(_record, "as_json", show_too)
    monkeypatch.setattr(_lab, "TRIAL", 1000)
    for server in list(_scrape.SERVERS)[1:-1]:
        monkeypatch.delitem(_scrape.SERVERS, server)
    done = CliRunner().invoke(app, [command, *QUICK[command], "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert list(told) == HEAD
    assert told["bench"] == command
    assert len(told["rows"]) > 1
    for row in told["rows"]:  # no figure is tested: a machine that is busy with other things gives any
        assert list(row) == ROW
        assert len(row["rounds"]) == 1
        assert row["contender"] in told["contenders"]
        assert row["loop"] in {"", *told["loops"]}
        assert all(math.isfinite(value) for value in row["median"].values())
    assert any(row["contender"].startswith("aslab") for row in told["rows"]) or command in OTHERS
    assert max(map(len, table.getvalue().splitlines())) <= 80
    assert "…" not in table.getvalue(), "a column was cut"


OTHERS = ("index", "scrape")
"""What compares nothing of aslab's with anything else."""
HEAD = ["schema", "bench", "aslab", "python", "compiled", "loops", "machine", "contenders", "rows"]
ROW = ["loop", "case", "contender", "what", "unit", "better", "best", "median", "against", "ratio", "rounds"]


def test_every_command_is_tested() -> None:
    assert {command.name for command in app.registered_commands} == set(QUICK)


def test_the_first_touch_of_much_memory_is_part_of_memory() -> None:
    done = CliRunner().invoke(app, ["memory", "--touch", "8MiB", "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["bench"] == "touch"
    assert told["contenders"] == [f"{kind} pages, {threads}" for kind in ("4 KiB", "2 MiB") for threads in THREADS]


THREADS = ("1 thread", "2 threads")


@pytest.mark.parametrize("options", [["--touch", "900GiB"], ["--touch", "much"], ["--most", "0"]])
def test_more_memory_than_there_is_and_sizes_that_are_none(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["memory", *options])
    assert done.exit_code == 2
    assert options[0] in done.stderr


def test_the_long_one_says_how_long_it_takes_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise SystemExit(7)

    monkeypatch.setattr(_app, "bar", stop)
    monkeypatch.setattr(_lab, "TRIAL", 1000)
    done = CliRunner().invoke(app, ["lab"])
    assert done.exit_code == 7
    assert re.fullmatch(r"aslab: this takes about \d+ (s|minutes) on this machine; --most .*\n", done.stderr)


# -- what comes of turns

SPEED, WAIT = Quantity("speed", "1/s", more_is_better=True), Quantity("longest wait", "ms")


def turn(name: str, values: Iterator[float], *, case: str = "works", against: str = "") -> Turn:
    def measure() -> dict[Quantity, float]:
        value = next(values)
        return {SPEED: value, WAIT: value / 2}

    return Turn(case, name, measure, "trio", against)


def test_ratios_are_of_the_same_round_and_every_second_round_runs_the_other_way_round() -> None:
    ran: list[str] = []
    turns = [turn("theirs", iter([1.0, 10.0])), turn("aslab", iter([2.0, 30.0]), against="theirs")]
    theirs, ours, *_ = rows = interleave(turns, 2, lambda turn: ran.append(turn.contender))
    assert ran == ["theirs", "aslab", "aslab", "theirs"]
    assert (theirs.ratios, ours.ratios) == ((), (2.0, 3.0))
    assert [(row.key.quantity, row.key.contender) for row in rows] == [
        (SPEED, "theirs"),
        (SPEED, "aslab"),
        (WAIT, "theirs"),
        (WAIT, "aslab"),
    ]
    assert [row.best for row in rows] == [10.0, 30.0, 0.5, 1.0]


def test_each_contender_of_a_case_comes_first_and_last_in_its_turn() -> None:
    ran: list[str] = []
    turns = [turn(name, itertools.repeat(1.0)) for name in "abcd"]
    turns += [turn(name, itertools.repeat(1.0), case="rests") for name in "xy"]
    interleave(turns, 8, lambda turn: ran.append(turn.contender))
    rounds = ["".join(ran[number : number + 6]) for number in range(0, len(ran), 6)]
    assert rounds == ["abcdxy", "yxdcba", "bcdayx", "xyadcb", "cdabxy", "yxbadc", "dabcyx", "xycbad"]


def test_what_takes_long_may_have_fewer_rounds_and_no_time_at_all_is_no_divisor() -> None:
    long = Turn("long", "aslab", lambda: {WAIT: 1.0}, rounds=1)
    turns = [long, turn("theirs", iter([0.0, 0.0])), turn("aslab", iter([1.0, 1.0]), against="theirs")]
    rows = interleave(turns, 2, lambda turn: None)
    assert [len(row.rounds) for row in rows] == [1, 2, 2, 2, 2]
    assert not any(row.ratios for row in rows)


def test_spread_is_median_and_quartiles() -> None:
    assert spread([5, 1, 4, 2, 3]) == (3, 2, 4)
    assert spread([7]) == (7, 7, 7)


# -- the options that all have

NAME = "aslab, which has a very long name with many words in it"


@pytest.fixture
def made() -> Iterator[list[str]]:
    """A command ``made``, and the contenders that ran, in order."""
    ran: list[str] = []

    def make(turns: int = 2) -> Bench:
        def measure(name: str) -> dict[Quantity, float]:
            ran.append(name)
            return {WAIT: 1234.5}

        made = [Turn("", name, partial(measure, name), "trio", "theirs") for name in ("theirs", NAME)]
        return Bench("made up", made[:turns], "A note.")

    _app.command("made", rounds=3, quick={"rounds": 1, "turns": 1})(make)
    yield ran
    del app.registered_commands[-1]


@pytest.mark.parametrize(
    ("options", "ran"),
    [
        ([], ["theirs", NAME, NAME, "theirs", NAME, "theirs"]),
        (["--quick"], ["theirs"]),
        (["--quick", "--turns", "2"], ["theirs", NAME]),
        (["--quick", "--rounds", "3"], ["theirs", "theirs", "theirs"]),
    ],
)
def test_quick_changes_what_is_not_given(made: list[str], options: list[str], ran: list[str]) -> None:
    assert CliRunner().invoke(app, ["made", *options]).exit_code == 0
    assert made == ran


def test_the_table_lines_up_at_80_columns_without_colours(made: list[str]) -> None:
    done = CliRunner().invoke(app, ["made"], env={"COLUMNS": "80"})
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        "made up (longest wait, ms)",
        "contender                                median  quartiles  ratio  quartiles",
        "theirs                                    1,234                 1",
        "aslab, which has a very long name with    1,234              1.00",
        "many words in it",
        "A note. ratio: to theirs, of the same round. The other columns: median of the",
        "rounds, and quartiles.",
        "",
    ]


def test_a_history_keeps_a_line_for_each_of_the_last_runs(made: list[str], tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text('{"bench": "another"}\n')
    for _ in range(7):
        assert (
            CliRunner().invoke(app, ["made", "--quick", "--turns", "2", "--record", str(history)]).exit_code == 0
        )
    another, *lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert another == {"bench": "another"}
    assert [line["bench"] for line in lines] == ["made"] * 5
    assert lines[-1]["rows"] == {
        "trio |  | theirs | longest wait, ms": [1234.0, 1234.0, 1234.0, 1234.0, 1.0, 1.0, 1.0],
        f"trio |  | {NAME} | longest wait, ms": [1234.0, 1234.0, 1234.0, 1234.0, 1.0, 1.0, 1.0],
    }


def test_a_picture_has_a_chart_for_each_case_and_quantity(made: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = CliRunner().invoke(app, ["made", "--quick", "--turns", "2", "--plot", str(tmp_path / "made.svg")])
    assert done.exit_code == 0, done.output
    assert "<svg" in (tmp_path / "made.svg").read_text()
    assert CliRunner().invoke(app, ["made", "--plot", str(tmp_path / "made.none")]).exit_code == 1


def test_what_is_no_history_or_cannot_be_drawn_is_told_before_anything_is_measured(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aslab.cli._app import run

    (tmp_path / "notes").write_text("some\n")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(["bench", "made", "--record", str(tmp_path / "notes")]) == 2
    assert run(["bench", "made", "--record", str(tmp_path / "none" / "history")]) == 2
    assert run(["bench", "made", "--plot", str(tmp_path / "made.svg")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"aslab: --record: '{tmp_path / 'notes'}' is no history of benchmarks",
        f"aslab: --record: cannot use '{tmp_path / 'none' / 'history'}': No such file or directory",
        "aslab: --plot needs the extra 'plot': run pip install '.[plot]' in a clone of aslab",
    ]
    assert not made
