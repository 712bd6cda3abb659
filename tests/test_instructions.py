"""scripts/instructions.py: what it makes of the counts. Nothing is counted here: that takes valgrind, and time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The script, with valgrind, no compiled fast path, and bounds of its own: an awaited pair takes 1,000."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    script = importlib.import_module("instructions")
    monkeypatch.setattr(script, "BOUNDS", tmp_path / "bounds.toml")
    monkeypatch.setattr(script.shutil, "which", lambda name: name)
    monkeypatch.setattr(script.inspect, "isfunction", lambda function: True)
    script.save({script.build("pure"): {"await": 1000}, "another": {"await": 1}})
    yield script
    del sys.modules["instructions"]


@pytest.mark.parametrize(("number", "code"), [(900, 0), (1100, 0), (1101, 1)])
def test_ten_percent_more_than_the_bound_are_allowed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    monkeypatch.setattr(script, "count", lambda pure: {"await": number})
    assert script.main([]) == code


def test_another_build_of_python_has_bounds_of_its_own(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "count", lambda pure: {"await": 5000})
    monkeypatch.setattr(script, "build", lambda implementation: f"a new one, {implementation}")
    assert script.main([]) == 0
    assert "no bounds are recorded for this build" in capsys.readouterr().out
    assert script.main(["--record"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a new one, pure"
    assert '["another"]\n"await" = 1\n' in script.BOUNDS.read_text()


def test_without_valgrind_a_line_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    assert script.main([]) == 0
    assert capsys.readouterr().out == "valgrind is not installed: instructions are not counted\n"


def test_the_bounds_are_of_ways_that_are_counted(script: ModuleType) -> None:
    for counts in script.tomllib.loads((SCRIPTS / "instructions.toml").read_text()).values():
        assert tuple(counts) == script.WAYS
