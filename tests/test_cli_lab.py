"""``aslab lab``, run as users run it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from aslab.cli._errors import BadInput
from aslab.cli._lab._common import need
from aslab.lab.scenarios import builtin

from .test_cli import Here, aslab, told

SCENARIO = """
name = "small"
about = "One task, that takes what there is."
duration = "2s"

[backends.slabs]
kind = "vmalloc"
per_call = "1ms"

[backends.single]
kind = "kmalloc"

[allocator]
slabs = "slabs"
emergency = "single"

[caches.io]
size = "4KiB"

[tasks.one]
cache = "io"
hold = { mean = "10ms" }
arrival = "10ms"

[[expect]]
what = "longest_wait"
at_most = "MOST"

[[expect]]
what = "memory_lost"
at_most = 0
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.toml"
    path.write_text(SCENARIO.replace("MOST", "1ms"))
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.toml"
    path.write_text(SCENARIO.replace("MOST", "0s"))
    return path


def test_list_names_every_built_in_scenario_and_what_it_shows() -> None:
    done = aslab("lab", "list")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.decode().splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == list(builtin())
    assert all(len(line.split()) > 3 for line in lines)


def test_list_as_json_has_files_that_exist() -> None:
    scenarios = json.loads(aslab("lab", "list", "--json").stdout)["scenarios"]
    assert {one["name"] for one in scenarios} == set(builtin())
    assert all(Path(one["file"]).is_file() and one["about"] for one in scenarios)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_scenario_that_holds_exits_0_and_tells_each_expectation(good: Path, loop: str) -> None:
    done = aslab("lab", "run", good, "--loop", loop)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert f"on {loop}" in text
    assert "ok      longest_wait at most 1 ms  1 ms" in text
    assert "memory_lost at most 0" in text
    assert not done.stderr


def test_a_scenario_that_is_broken_exits_1_and_names_the_first_event(broken: Path) -> None:
    done = aslab("lab", "run", broken)
    assert done.returncode == 1
    assert "BROKEN  longest_wait at most 0 s" in done.stdout.decode()
    assert max(map(len, done.stdout.decode().splitlines())) <= 80
    message = done.stderr.decode()
    assert message.startswith("aslab: 1 of 2 expectations broken; the first: expected longest_wait at most 0 s")
    assert "at 0.001000 s by 'one-0 got io slab after 0.001000000'" in message
    assert message.count("\n") == 1


def test_json_is_one_object_with_the_promised_keys(broken: Path) -> None:
    done = aslab("lab", "run", broken, "--json", "--seed", "7")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["scenario"], answer["seed"], answer["loop"], answer["passed"]) == ("small", 7, "asyncio", False)
    assert len(answer["broken"]) == 1
    assert len(answer["log_sha256"]) == 64
    assert (answer["emergency_max"], answer["deadlocks"], answer["duration"]) == (0, 0, 2.0)
    assert answer["longest_wait"] == pytest.approx(0.001)
    assert not done.stderr


def test_the_same_seed_gives_the_same_log_file_and_another_seed_another(good: Path, tmp_path: Path) -> None:
    logs = []
    for number, seed in enumerate(("1", "1", "2")):
        path = tmp_path / f"{number}.txt"
        assert aslab("lab", "run", good, "--seed", seed, "--log", path).returncode == 0
        logs.append(path.read_bytes())
    assert logs[0] == logs[1] != logs[2]
    assert logs[0].count(b"\n") > 100


def test_report_and_trace_are_written_for_a_broken_scenario_too(broken: Path, tmp_path: Path) -> None:
    report, trace = tmp_path / "report.html", tmp_path / "trace.json"
    assert aslab("lab", "run", broken, "--report", report, "--trace", trace).returncode == 1
    assert "longest_wait" in report.read_text()
    assert json.loads(trace.read_text())["traceEvents"]


def test_a_built_in_scenario_runs_by_its_name() -> None:
    done = aslab("lab", "run", "deadlock-recovers", "--json")
    assert json.loads(done.stdout)["scenario"] == "deadlock-recovers"


def test_real_time_takes_the_same_file_on_the_wall_clock(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text(SCENARIO.replace("MOST", "60s").replace('"2s"', '"100ms"'))
    done = aslab("lab", "run", path, "--real-time", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["real_time"] is True
    assert answer["duration"] >= 0.1


def test_a_file_that_cannot_be_read_is_one_line(here: Here, tmp_path: Path) -> None:
    assert "No such file" in told(here("lab", "run", tmp_path / "none.toml"), 2)
    assert "Is a directory" in told(here("lab", "run", tmp_path), 2)
    assert "must be a file, or one of" in told(here("lab", "run", "nope"), 2)


def test_a_file_that_is_wrong_is_one_line_with_file_key_value_and_what_is_allowed(here: Here, good: Path) -> None:
    good.write_text(good.read_text().replace('"4KiB"', '"4 parsecs"'))
    message = told(here("lab", "run", good), 2)
    assert "good.toml: caches.io.size: '4 parsecs' is not allowed; it must be a size such as" in message


def test_a_file_that_is_no_text_is_one_line(here: Here, tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(bytes(range(256)))
    assert "must be TOML in UTF-8" in told(here("lab", "run", path), 2)


@pytest.mark.parametrize("option", ["--report", "--trace", "--log"])
def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    here: Here, good: Path, tmp_path: Path, option: str
) -> None:
    assert "cannot write" in told(here("lab", "run", good, option, tmp_path / "no" / "such" / "folder"), 2)
    assert "cannot write" in told(here("lab", "run", good, option, tmp_path), 2)


@pytest.mark.parametrize("option", [("--loop", "uvloop"), ("--seed", "-1"), ("--seed", "x"), ("--nope",)])
def test_a_bad_option_is_one_line(here: Here, good: Path, option: tuple[str, ...]) -> None:
    told(here("lab", "run", good, *option), 2)


def test_a_missing_library_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(module, name="pydantic")  # typer uses it, too, so it cannot be hidden from all

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BadInput, match=r"the lab needs the extra 'lab'"):
        need("scenarios", "pydantic")
