"""The figures in README.md and docs/ are those of the history of the benchmarks. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("figures")
    for name in ("figures", "figures_made"):
        sys.modules.pop(name, None)


@pytest.fixture
def pages(figures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for pages, with a history in which an awaited pair took 1,234 ns."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("")
    rows = {
        "asyncio |  | aslab: await alloc, free | a pair, ns": [1000.0, 1234.5, 1200.0, 1300.0, 14.0, 13.0, 15.0]
    }
    old = {"bench": "pair", "rows": {}}
    machine = {"processors": 2, "load": 0.4}
    new = {"bench": "pair", "rows": rows, "python": "3.11.7", "compiled": True, "machine": machine}
    (tmp_path / "history").write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n")
    return tmp_path


def test_the_docs_are_as_the_history_has_them(figures: ModuleType) -> None:
    assert figures.main(["--check"]) == 0, "run scripts/figures.py"


def test_every_figure_that_is_made_stands_somewhere(figures: ModuleType) -> None:
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    there = {
        match["name"]
        for text in texts
        for kind in (figures.FIGURE, figures.TABLE)
        for match in kind.finditer(text)
    }
    assert there >= figures.FIGURES.keys() | figures.TABLES.keys()


def test_a_figure_is_that_of_the_last_run(figures: ModuleType, pages: Path) -> None:
    page = pages / "docs" / "some.md"
    text = (
        "A <!-- figure: pair.await -->{}<!-- /figure --> ns on <!-- figure: machine.pair -->{}<!-- /figure -->.\n"
    )
    page.write_text(text.format("\n7", ""))
    given = ["--history", str(pages / "history")]
    assert figures.main([*given, "--check"]) == 1
    assert page.read_text() == text.format("\n7", "")
    assert figures.main(given) == 0
    told = "2 processors, a load of 0, Python 3.11.7, compiled fast path"
    assert page.read_text() == text.format("1,230", told)
    assert figures.main([*given, "--check"]) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "a\n <!-- figure: pair.await -->1<!-- /figure -->",
            "README.md: pair.await begins a line: Markdown would end the paragraph before it",
        ),
        ("a <!-- figure: none -->1<!-- /figure -->", "README.md: no figure or table is called 'none'"),
        ("a <!-- figure: pair.await -->1", "README.md: 1 figures and tables begin, and 0 end"),
        (
            "a <!-- figure: pair.list -->1<!-- /figure -->",
            "README.md: pair.list: the history has nothing to make it of",
        ),
        ("<!-- table: frames -->\n<!-- /table -->", "README.md: frames: the history has nothing to make it of"),
    ],
)
def test_what_cannot_be_written_is_told(
    figures: ModuleType, pages: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    (pages / "README.md").write_text(text)
    assert figures.main(["--history", str(pages / "history")]) == 1
    assert capsys.readouterr().err == f"{told}\n"
    assert (pages / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0906, "0.091"), (0.996, "1.0"), (1.04, "1.0"), (12.6, "13"), (6673.0, "6,700"), (99.9, "100")],
)
def test_numbers_have_two_digits_that_count(figures: ModuleType, value: float, text: str) -> None:
    assert sys.modules["figures_made"].number(value) == text
