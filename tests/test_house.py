"""House rules, as tests: small modules, small functions, imports that point downwards, nothing left to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "aslab").rglob("*.py"))
CORE = [
    path
    for path in MODULES
    if path.parent.name in ("aslab", "_kmem") and path.name not in ("__init__.py", "__main__.py")
]
ids = [str(path.relative_to(ROOT)) for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_module_is_no_longer_than_400_lines_and_its_functions_than_60(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 415
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
            assert lines <= 60, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_module_says_what_it_is_for_and_leaves_nothing_to_do(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source))
    assert not re.search(r"TODO|FIXME|XXX", source)


@pytest.mark.parametrize("path", CORE, ids=[path.name for path in CORE])
def test_core_knows_no_loop_and_nothing_above_it(path: Path) -> None:
    above = ("faults", "testing", "cli", "bench", "trio", "asyncio", "uvloop", "rich", "typer")
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        for name in names:
            assert name.split(".")[0] not in above, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", CORE, ids=[path.name for path in CORE])
def test_core_knows_no_backend_but_the_protocol(path: Path) -> None:
    if path.name == "_allocator.py":
        return  # it names the defaults
    assert not re.search(r"from \.+backends import|backends\._(mmap|heap|callback)", path.read_text())
