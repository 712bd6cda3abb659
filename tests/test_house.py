"""House rules, as tests: one direction, no circles, small parts, nobody's private affairs, nothing left to do."""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aslab"
MODULES = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}
"""Every module by its place, such as ``_kmem/_slab``; a package is its ``__init__``."""

FLOORS = """
_histogram _sites _variables _errors _checks _holder _events _reach
_flags _stats _clients _keywords _letters _health _snapshots _unix _answering
_fastpath/_native _fastpath/_views _fastpath/_magazine _fastpath/_dlpack _fastpath/_home _fastpath/_buffer
_fastpath/_lease _fastpath/_front _fastpath/_managed _fastpath/__init__
backends
pressure
faults
_options _config _lease
_kmem/__init__ _kmem/_trio _kmem/_clock _kmem/_wakeup _kmem/_state _kmem/_working_set _kmem/_holders
_kmem/_moving _kmem/_slab _kmem/_account _kmem/_budget _kmem/_rescue _kmem/_lingering _kmem/_late _kmem/_supply
_kmem/_filled _kmem/_held _kmem/_debug _kmem/_waiters _kmem/_line _kmem/_reserve _kmem/_depot
_kmem/_emergency _kmem/_arena
_kmem/_errands _kmem/_reports _kmem/_growth _kmem/_handover _kmem/_admission _kmem/_pool _kmem/_arrivals
_kmem/_attempts _kmem/_snapshot _kmem/_invariants _kmem/_frees _kmem/_worker _kmem/_reclaim _kmem/_slowpath
_kmem/_move
_home _checked _cache _reaper _faults _tasks _requests _allocator
_gather __init__
arrays
io protocols
emulation testing
share
observe/_figures observe/_http observe/_serving observe
lab/_simulation lab/__init__ lab/pytest_plugin
lab/_scenario lab/_report lab/scenarios
lab/_story lab/_staging
cli/_errors cli/_version cli/_prose cli/_progress cli/_loops
bench
cli/_demo cli/_lab cli/_top cli/_fault cli/_app cli/__init__
__main__
""".split()  # noqa: SIM905
"""The rooms of the house from the ground up: a folder, or a module. Each may import those before it and itself.

An import under ``TYPE_CHECKING`` or inside of a function is one like any other.
"""
UPWARDS = {"_fastpath/_buffer imports _cache"}
"""The one exception: the return type of `Buffer.cache`."""

LOOPS = {"trio", "asyncio", "uvloop", "rich", "typer"}
KNOWS = {"_kmem/_trio": "trio"}
"""The one module of the core that knows a loop, and is imported where that runs: a future, which trio lacks."""

SOURCES = ("pressure/", "emulation/_shrinker")
"""Sources of pressure, whose protocol is a callback."""
OF_OTHERS = {
    "_kmem/_lingering reads _objects",
    "lab/_simulation/_asyncio reads _waiter",
    "lab/_simulation/_queue reads _loop",
    "lab/_simulation/_queue reads _run",
    "lab/_simulation/_threads reads _worker",
    "lab/_simulation/_trio reads _heap",
}
"""Private attributes of ctypes, asyncio and trio that happen to have the same name as one of ours."""

STILL: dict[str, set[str]] = {}
"""What still breaks a rule, by rule. It only gets shorter: an entry that is not needed any more fails, too.

``python -m tests.test_house`` prints the dict as it would have to be now.
"""


@functools.lru_cache(maxsize=1)
def tree_of(module: str) -> ast.Module:
    """One at a time: hundreds of thousands of nodes would make each garbage collection of later tests slow."""
    return ast.parse(MODULES[module].read_text())


def room_of(module: str) -> int:
    """The number of the room that a module is in, from the ground up."""
    for place in (module, *(str(parent) for parent in Path(module).parents)):
        if place in FLOORS:
            return FLOORS.index(place)
    raise AssertionError(f"{module}: in which room of FLOORS is it?")


@functools.cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of the package that a module names in any import, wherever that stands."""
    package = ("aslab", *Path(module).parent.parts)
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            names = [(*base, alias.name) for alias in node.names]
        for name in names:
            if name[0] == "aslab" and (other := _module_named(name[1:])) is not None:
                found.add(other)
    return frozenset(found - {module})


def _module_named(name: tuple[str, ...]) -> str | None:
    """The module of a dotted name, whose last part may be something inside of it."""
    for parts in (name, name[:-1]):
        for module in ("/".join(parts), "/".join((*parts, "__init__"))):
            if module in MODULES:
                return module
    return None


def upward_imports() -> Iterator[str]:
    for module in MODULES:
        for other in imports_of(module):
            if room_of(other) > room_of(module) and f"{module} imports {other}" not in UPWARDS:
                yield f"{module} imports {other}"


def circles() -> Iterator[str]:
    """Modules that import one another, each circle as a whole, by Tarjan."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in sorted(imports_of(module)):
            if f"{module} imports {other}" in UPWARDS:
                continue
            if other not in number:
                visit(other)
            if other in path:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            at = path.index(module)
            found.append(path[at:])
            del path[at:]

    for module in MODULES:
        if module not in number:
            visit(module)
    return (" <-> ".join(sorted(circle)) for circle in found if len(circle) > 1)


def functions_of(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of a module, with the name of the class that each is in."""
    for node in ast.walk(tree_of(module)):
        for inside in ast.iter_child_nodes(node):
            if isinstance(inside, (ast.FunctionDef, ast.AsyncFunctionDef)):
                owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                yield f"{module}: {owner}{inside.name}", inside


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = function.args
    return [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def large_constructors() -> Iterator[str]:
    """More than six arguments besides self, not counting options of what users construct, which have a default."""
    for module in MODULES:
        for name, function in functions_of(module):
            optional = len(function.args.defaults) + sum(one is not None for one in function.args.kw_defaults)
            if function.name == "__init__" and len(parameters_of(function)) - 1 - optional > 6:
                yield name


def callbacks() -> Iterator[str]:
    for module in MODULES:
        for name, function in functions_of(module):
            if not module.startswith(SOURCES):
                yield from (f"{name}({one})" for one in parameters_of(function) if one.startswith("on_"))


@functools.cache
def private_names_of(module: str) -> frozenset[str]:
    """The private attributes that a module itself defines: of its classes, and its own functions."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef | ast.Module):
            found.update(_assigned(node))
        if isinstance(node, ast.ClassDef):
            found.update(_assigned(node))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node):
            found.add(node.attr)
    return frozenset(name for name in found if _is_private(name))


def _assigned(owner: ast.ClassDef | ast.Module) -> Iterator[str]:
    """What stands in the body of a class: assignments, annotations, and the names in its slots."""
    for node in owner.body:
        for inside in ast.walk(node) if isinstance(node, (ast.Assign, ast.AnnAssign)) else ():
            if isinstance(inside, ast.Name) and isinstance(inside.ctx, ast.Store):
                yield inside.id
            elif isinstance(inside, ast.Constant) and isinstance(inside.value, str):
                yield inside.value


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_reads() -> Iterator[str]:
    """Private attributes of other modules. Those that no module of the package has are of other libraries."""
    all_names = frozenset[str]().union(*map(private_names_of, MODULES))
    for module in MODULES:
        others = all_names - private_names_of(module)
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not _is_own(node):
                found = f"{module} reads {node.attr}"
                if node.attr in others and found not in OF_OTHERS:
                    yield found


def ways_round_the_seam() -> Iterator[str]:
    """Imports of a file of the fast path by name: a compiled module may take the place of all of them."""
    for module in MODULES:
        for other in imports_of(module):
            if other.startswith("_fastpath/_") and not module.startswith("_fastpath/") and "__init__" not in other:
                yield f"{module} imports {other}"


def long_modules() -> Iterator[str]:
    for module, path in MODULES.items():
        if path.read_text().count("\n") > 400:
            yield module


TOLD = ("_kmem", "_fastpath", "lab", "cli", "bench", "observe")
"""Packages whose docstrings list their files."""


def unnamed_modules() -> Iterator[str]:
    """What the docstring of its package does not name, so that a reader would have to guess which file to open."""
    for module in MODULES:
        folder = Path(module).parent
        if module.endswith("/__init__") and folder.parts[0] in TOLD:
            told = ast.get_docstring(tree_of(module)) or ""
            inside = {path.stem for path in PACKAGE.joinpath(folder).iterdir() if path.suffix in ("", ".py")}
            for other in inside - {"__init__", "__pycache__"}:
                if not re.search(rf"\b{other}\b", told):
                    yield f"{module} leaves {other} out"


RULES = {
    "no import upwards": upward_imports,
    "no circle": circles,
    "no constructor with more than six arguments": large_constructors,
    "no callback outside of pressure": callbacks,
    "no private attribute of another module": private_reads,
    "no file of the fast path but through its seam": ways_round_the_seam,
    "no module over 400 lines": long_modules,
    "no module that its room does not name": unnamed_modules,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    broken, still = set(RULES[rule]()), STILL.get(rule, set())
    assert not broken - still, f"{rule}, please"
    assert not still - broken, f"{rule}: these are mended, so take them from STILL"


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_longer_than_60_lines(module: str) -> None:
    for name, node in functions_of(module):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = node.end_lineno - body[0].lineno + 1 if body and node.end_lineno else 0
        assert lines <= 60, f"{name} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_module_says_what_it_is_for_and_leaves_nothing_to_do(module: str) -> None:
    assert ast.get_docstring(tree_of(module))
    assert not re.search(r"TODO|FIXME|XXX", MODULES[module].read_text())


CORE = [module for module in MODULES if module[0] == "_" and module not in ("__init__", "__main__")]


@pytest.mark.parametrize("module", CORE)
def test_core_knows_no_loop(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        for name in names:
            assert name.split(".")[0] not in LOOPS - {KNOWS.get(module)}, f"{module}: {name}"


@pytest.mark.parametrize("module", CORE)
def test_core_knows_no_backend_but_the_protocol(module: str) -> None:
    if module == "_allocator":
        return  # it names the defaults
    assert not re.search(r"from \.+backends import|backends\._(mmap|heap|callback)", MODULES[module].read_text())


if __name__ == "__main__":
    lines = ["STILL: dict[str, set[str]] = {"]
    for rule, check in RULES.items():
        if broken := sorted(set(check())):
            lines.append(f'    "{rule}": {{')
            for one in broken:
                first, *others = textwrap.wrap(one, 100, break_on_hyphens=False)
                lines.append("\n".join([f'        "{first}"', *(f'        " {other}"' for other in others)]) + ",")
            lines.append("    },")
    print("\n".join([*lines, "}"]))
