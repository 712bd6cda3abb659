"""The benchmarks run and print what they should; what they measure is not tested."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from aslab.bench import _lab, app

QUICK = {
    "stall": ["--mib", "2"],
    "move": ["--slabs", "4"],
    "waiters": ["--rounds", "1", "--most", "200"],
    "pair": ["--rounds", "1", "--pairs", "100"],
    "emergency": ["--seconds", "0.05", "--rounds", "1"],
    "emergency-free": ["--rounds", "2", "--most", "20"],
    "handover": ["--rounds", "1", "--operations", "200"],
    "frames": ["--rounds", "1", "--frames", "2", "--mb", "0.1"],
    "index": ["--rounds", "1"],
    "scale": ["--rounds", "1", "--most", "20"],
    "memory": ["--rounds", "1", "--seconds", "0.01", "--most", "64KiB"],
    "growth": ["--mib", "1", "--largest", "4", "--rounds", "1"],
    "lab": ["--rounds", "1", "--most", "3000"],
}


@pytest.mark.parametrize("command", list(QUICK))
def test_json_is_one_object_with_rows_alike(command: str) -> None:
    done = CliRunner().invoke(app, [command, *QUICK[command], "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) > 1
    assert len({tuple(row) for row in rows}) == 1
    for row in rows:  # no figure is tested: a machine that is busy with other things gives any
        assert all(isinstance(value, (str, int, float)) for value in row.values())


def test_the_first_touch_of_much_memory_is_part_of_memory() -> None:
    done = CliRunner().invoke(app, ["memory", "--touch", "8MiB", "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [(row["pages"], row["threads"]) for row in rows] == [
        ("4 KiB", 1),
        ("4 KiB", 2),
        ("2 MiB", 1),
        ("2 MiB", 2),
    ]


@pytest.mark.parametrize("options", [["--touch", "900GiB"], ["--touch", "much"], ["--most", "0"]])
def test_more_memory_than_there_is_and_sizes_that_are_none(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["memory", *options])
    assert done.exit_code == 2
    assert options[0] in done.stderr


@pytest.mark.parametrize("command", list(QUICK))
def test_table_has_a_line_for_each_row(command: str) -> None:
    done = CliRunner().invoke(app, [command, *QUICK[command]])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) > 4
    assert "…" not in done.stdout, "a column was cut"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_long_one_says_how_long_it_takes_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object, **options: object) -> None:
        raise SystemExit(7)

    monkeypatch.setattr(_lab, "bar", stop)
    done = CliRunner().invoke(app, ["lab"])
    assert done.exit_code == 7
    assert re.fullmatch(r"aslab: this takes about \d+ (s|minutes) on this machine; --most .*\n", done.stderr)
