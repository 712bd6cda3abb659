"""scripts/routes.py: what it counts, on a small package of its own; the routes of aslab, the same each time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aslab._fastpath import COMPILED

ROOT = Path(__file__).parent.parent
HIT = 0 if COMPILED else 1
"""Files in Python that a hit enters."""

UPPER = """
from lower import helps, leaf

def entry():
    leaf()        # a call from file to file
    inner()       # none: the same file

def inner():
    leaf()        # another
    helps(back)   # another, and `back` a re-entry

def back():
    pass

async def task():
    await step()  # the same file

async def step():
    from lower import twice
    await twice() # one, however often it is resumed
"""
LOWER = """
class Turn:
    def __await__(self):
        yield

def leaf():
    pass

def helps(call):
    call()

async def twice():
    await Turn()
    await Turn()
"""


@pytest.fixture(scope="module")
def routes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("routes", ROOT / "scripts" / "routes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["routes"] = module  # for its named tuple
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(routes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "upper.py").write_text(UPPER)
    (tmp_path / "lower.py").write_text(LOWER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(routes, "HOME", f"{tmp_path}/")
    module = importlib.import_module("upper")
    yield module
    for name in ("upper", "lower"):
        del sys.modules[name]


def test_a_call_counts_where_caller_and_called_lie_in_different_files(routes: ModuleType, toy: Any) -> None:
    recorder = routes.Recorder()
    with recorder.on():
        toy.entry()
    assert recorder.report(listed=True) == {
        "files": 2,
        "calls": 4,
        "reentries": 1,
        "listed": [
            "-- upper: entry",
            "   upper: entry -> lower: leaf",
            "   upper: inner -> lower: leaf",
            "   upper: inner -> lower: helps",
            "*    lower: helps -> upper: back",
        ],
    }


def test_a_coroutine_is_called_once_however_often_it_is_resumed(routes: ModuleType, toy: Any) -> None:
    task = toy.task()
    recorder = routes.Recorder()
    with recorder.on():
        task.send(None)
        task.send(None)
        with pytest.raises(StopIteration):
            task.send(None)
    assert recorder.report(listed=True) == {
        "files": 2,
        "calls": 1,
        "reentries": 0,
        "listed": [
            "-- upper: task",
            "   upper: step -> lower: twice",
            "-- upper: task, resumed",
            "-- upper: task, resumed",
        ],
    }


def test_routes_are_the_same_each_time_and_in_another_process(routes: ModuleType) -> None:
    here = routes.measure(list(routes.ROUTES), listed=True)
    assert [here["hit"][one] for one in routes.FIGURES] == [HIT, 0, 0]
    for name, figures in here.items():
        assert figures["calls"] == sum("->" in line for line in figures["listed"]), name
        assert figures["reentries"] == sum(line.startswith("*") for line in figures["listed"]), name
    assert routes.measure(list(routes.ROUTES), listed=True) == here
    assert routes.measure_there(ROOT, list(routes.ROUTES), listed=True) == here


def test_table_shows_another_checkout_as_before(routes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert routes.main(["--route", "hit", "--against", str(ROOT)]) == 0
    assert capsys.readouterr().out == (
        "route   files   calls  re-entries\n"
        f"hit    {HIT} -> {HIT}  0 -> 0      0 -> 0\n"
    )  # fmt: skip


def test_what_is_no_checkout_is_refused(
    routes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert routes.main(["--package", str(tmp_path)]) == 1
    assert f"{tmp_path}: no checkout" in capsys.readouterr().err
