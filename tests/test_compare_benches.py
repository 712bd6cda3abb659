"""scripts/compare_benches.py: what it makes of the figures of two checkouts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "compare_benches.py"


@pytest.fixture
def benches() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("compare_benches", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["compare_benches"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare_benches"]


def test_above_one_is_slower_whatever_the_unit(benches: ModuleType) -> None:
    nanoseconds, per_second = (
        benches.Key("pair", "aslab: x", "ns"),
        benches.Key("handover", "trio, aslab", "1/s", True),
    )
    only_before = benches.Key("pair", "aslab: gone", "ns")
    before = {nanoseconds: [100.0, 300.0, 200.0], per_second: [1000.0], only_before: [1.0]}
    after = {nanoseconds: [300.0, 400.0, 200.0], per_second: [500.0]}
    assert benches.compare(before, after) == [
        ("pair", "aslab: x", "ns", 200.0, 300.0, 1.5, 2.0),
        ("handover", "trio, aslab", "1/s", 1000.0, 500.0, 2.0, 2.0),
    ]


def test_others_tell_the_noise_of_the_machine(benches: ModuleType) -> None:
    keys = [benches.Key("pair", f"{benches.OTHERS}{pool}", "ns") for pool in "abc"]
    rows = benches.compare({key: [10.0] for key in keys}, {key: [9.0 + number] for number, key in enumerate(keys)})
    assert [(row.what, row.ratio) for row in rows] == [
        ("others: lowest", 0.9),
        ("others: median", 1.0),
        ("others: highest", 1.1),
    ]


def test_each_benchmark_runs_for_both_and_is_lined_up(
    benches: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran: list[str] = []

    def run(checkout: Path, name: str, figures: dict[object, list[float]]) -> None:
        ran.append("after" if checkout == SCRIPT.parent.parent else "before")
        figures.setdefault(benches.Key(name, "aslab: x", "ns"), []).append(1234.5)

    (tmp_path / "aslab").mkdir()
    (tmp_path / "aslab" / "__main__.py").touch()
    monkeypatch.setattr(benches, "run", run)
    assert benches.main(["--against", str(tmp_path), "--bench", "pair", "--rounds", "1"]) == 0
    assert ran == ["before", "after", "after", "before"]
    assert capsys.readouterr().out == (
        "bench  what      unit  before  after  ratio  best\npair   aslab: x  ns     1,234  1,234   1.00  1.00\n"
    )


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--bench", "none"], []])
def test_bad_options_are_refused(benches: ModuleType, options: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        benches.main(["--against", str(tmp_path), *options])
    assert ended.value.code == 2
