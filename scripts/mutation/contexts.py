"""Which test reaches which line of the core, and how long it takes.

Gathered once by coverage's contexts, one run for each test file, and kept in ``.mutants/`` until that file or
the core has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from coverage import CoverageData

from .draw import Mutant, core

OTHERS = (
    " bench buddy cli cli_lab cli_staging cli_story cli_terminal compaction disk examples exports"
    " fault_specs gather grid house index io kmalloc lab_load lab_metrics lab_outside lab_play lab_run memory"
    " page_cache pressure_sources protocols report scenarios spl staging story swap tale trace trio_only"
    " upload_service vmalloc waits zfs"
    " "
)
"""Test files that are not about the core, or that reach all of it, slowly."""
CONFIG = "[run]\nrelative_files = true\nsource = aslab\n"


class Contexts:
    """Seconds of each test, and the tests of each line."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._tests: dict[tuple[str, int], set[str]] = {}

    def add(self, gathered: dict[str, Any]) -> None:
        """Take in what was gathered of one test file."""
        tests = gathered["tests"]
        self.failed += gathered["failed"]
        self.seconds.update(gathered["seconds"])
        for module, lines in gathered["lines"].items():
            for line, numbers in lines.items():
                self._tests.setdefault((module, int(line)), set()).update(tests[number] for number in numbers)

    def of(self, mutant: Mutant) -> dict[str, float]:
        """The tests that reach a mutant, with their seconds, in the order to run them.

        Those of the module's own test file come first. Where no test is known to reach the line, it is whatever
        reaches the module: constants are set at import.
        """
        found = self._reaching(mutant.module, mutant.lines) or self._reaching(mutant.module)
        own = f"test_{Path(mutant.module).stem.strip('_')}.py"
        ranked = sorted(found, key=lambda test: (self.seconds[test] * (0.05 if own in test else 1), test))
        return {test: self.seconds[test] for test in ranked}

    def reached(self, mutant: Mutant) -> bool:
        """Whether any test is known to reach the line."""
        return bool(self._reaching(mutant.module, mutant.lines))

    def _reaching(self, module: str, span: tuple[int, int] | None = None) -> set[str]:
        if span is None:
            lines = [line for name, line in self._tests if name == module]
        else:
            lines = list(range(span[0], span[1] + 1))
        found = {test for line in lines for test in self._tests.get((module, line), ())}
        return {test for test in found if test in self.seconds and test not in self.failed}


def test_files(tree: Path) -> list[str]:
    """The test files of the core."""
    names = (file.stem.removeprefix("test_") for file in sorted((tree / "tests").glob("test_*.py")))
    return [f"tests/test_{name}.py" for name in names if f" {name} " not in OTHERS]


def gather(tree: Path, kept: Path, jobs: int, told: Callable[[str], object]) -> Contexts:
    """Of all test files, from what is kept where it is still true. ``tree`` is a copy: tests run there."""
    kept.mkdir(exist_ok=True)
    (kept / "coveragerc").write_text(CONFIG)
    shared = _hash(tree, core(tree))
    contexts = Contexts()

    def one(file: str) -> dict[str, Any]:
        place = kept / f"{Path(file).stem}.json"
        hashed = shared + _hash(tree, [file])
        gathered: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
        if gathered.get("hash") != hashed:
            gathered = {"hash": hashed, **_run(tree, kept, file)}
            place.write_text(json.dumps(gathered))
        told(file)
        return gathered

    with ThreadPoolExecutor(jobs) as pool:
        for gathered in pool.map(one, test_files(tree)):
            contexts.add(gathered)
    return contexts


def environment(tree: Path, **more: str) -> dict[str, str]:
    """For tests of a copy of the tree."""
    path = os.pathsep.join([str(tree), str(Path(__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", **more}


def _run(tree: Path, kept: Path, file: str) -> dict[str, Any]:
    stem = Path(file).stem
    data, result = kept / f"{stem}.coverage", kept / f"{stem}.result"
    options = (
        f"--cov=aslab --cov-context=test --cov-report= --cov-config={kept / 'coveragerc'} --hypothesis-seed=1"
    )
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "mutation.plugin",
            *options.split(),
            file,
        ],
        cwd=tree,
        env=environment(tree, COVERAGE_FILE=str(data), MUTANTS_RESULT=str(result)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    came = json.loads(result.read_text())
    tests = {test: number for number, test in enumerate(came["seconds"])}
    lines: dict[str, dict[int, list[int]]] = {}
    measured = CoverageData(str(data))
    measured.read()
    for module in core(tree):
        for line, names in (measured.contexts_by_lineno(module) or {}).items():
            reached = {tests[name] for name in (name.rpartition("|")[0] for name in names) if name in tests}
            if reached:
                lines.setdefault(module, {})[line] = sorted(reached)
    for used in (data, result):
        used.unlink(missing_ok=True)
    return {"tests": list(tests), "seconds": came["seconds"], "failed": came["failed"], "lines": lines}


def _hash(tree: Path, files: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.encode() + (tree / file).read_bytes())
    return digest.hexdigest()[:16]
