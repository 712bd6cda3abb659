"""Where the core may be mutated, and a sample of it from a seed.

The operators are cosmic-ray's, and one that it lacks: a statement left out. A place of the source is drawn first,
then one of the mutations there, so that a ``+`` with eleven replacements weighs as much as a ``not`` with one.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast  # type: ignore[import-untyped]
from cosmic_ray.mutating import mutate_code  # type: ignore[import-untyped]
from cosmic_ray.operators.operator import Example, Operator  # type: ignore[import-untyped]
from cosmic_ray.plugins import get_operator, operator_names  # type: ignore[import-untyped]
from parso.python.tree import Keyword

Position = tuple[int, int]

ORDERED = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")


class DropStatement(Operator):  # type: ignore[misc]
    """Leave out a statement that only acts: a call, setting an attribute or item, a raise, a bare return."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """The statement of a line, if it is of that kind."""
        if node.type == "simple_stmt" and self._acts(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """``pass`` in its place."""
        first = node.children[0]
        node.children[0] = Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node

    @staticmethod
    def _acts(statement: Any) -> bool:
        if statement.type == "expr_stmt":
            target, sign = statement.children[:2]
            if sign.type == "annassign":
                return False
            return str(sign.get_code()).strip() != "=" or any(c in target.get_code() for c in ".[")
        bare_return = statement.type == "keyword" and statement.value == "return"
        return bare_return or statement.type in {"atom_expr", "power", "raise_stmt", "del_stmt"}

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Before and after."""
        return (Example("a.b()", "pass"), Example("a.b = 1", "pass"), Example("a += 1", "pass"))


@dataclass(frozen=True)
class Mutant:
    """One mutation of one module. ``where`` is the qualified name; ``was`` and ``now`` are the changed lines."""

    module: str
    where: str
    lines: tuple[int, int]
    operator: str
    was: str
    now: str
    source: str
    diff: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What a listed mutant is known by, wherever its function has moved."""
        return self.where, self.was, self.now


def core(tree: Path) -> list[str]:
    """The private modules of the package and of its private subpackages, by glob: they move."""
    package = tree / "aslab"
    files = {*package.glob("_*.py"), *package.glob("_*/**/*.py")}
    return sorted(str(file.relative_to(tree)) for file in files if not file.name.startswith("__"))


def is_there(tree: Path, text: str) -> bool:
    """Whether the core has that text, whatever the spaces and line breaks."""
    return any(text in " ".join((tree / module).read_text().split()) for module in core(tree))


def operators() -> dict[str, Operator]:
    """By name. Left out: what needs arguments, and comparisons that cannot matter, such as ``is`` for ``==``."""
    found: dict[str, Operator] = {"DropStatement": DropStatement()}
    for name in operator_names():
        kind = get_operator(name)
        compared = re.fullmatch(r".*/ReplaceComparisonOperator_(\w+)_(\w+)", name)
        sensible = compared is None or (
            all(sign in ORDERED for sign in compared.groups())
            or all(sign in ("Is", "IsNot") for sign in compared.groups())
        )
        if sensible and not kind.arguments():
            found[name.removeprefix("core/")] = kind()
    return found


def draw(tree: Path, seed: int, count: int, only: str = "") -> list[Mutant]:
    """So many mutants, each of another place; ``only`` is a pattern for ``path:Qualified.name``."""
    places: dict[tuple[str, Position, str], list[tuple[str, int]]] = {}
    for module in core(tree):
        source = (tree / module).read_text()
        parsed = ast.parse(source)
        for position, name, occurrence in _mutations(source):
            where = _place(parsed, position[0])[0]
            if name == "DropStatement" and where.endswith("__init__"):
                continue  # what is not there at all is found at once: that proves nothing
            if re.search(only, f"{module}:{where}"):
                places.setdefault((module, position, name.partition("_")[0]), []).append((name, occurrence))
    chance = random.Random(seed)
    chosen = chance.sample(sorted(places), min(count, len(places)))
    return [_mutant(tree, place[0], place[1], *chance.choice(places[place])) for place in chosen]


def _mutations(source: str) -> Iterator[tuple[Position, str, int]]:
    left_out = list(_left_out(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in operators().items():
        positions = (position for node in nodes for position in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            if not any(first <= start and end <= last for first, last in left_out):
                yield start, name, occurrence


def _left_out(module: ast.Module) -> Iterator[tuple[Position, Position]]:
    """Parts that do nothing when they run: annotations, types alone, other versions of Python."""
    for node in ast.walk(module):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns]
            if any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
                parts = [*node.decorator_list, node]
        elif isinstance(node, ast.ClassDef):
            parts = [node] if any("Protocol" in ast.unparse(base) for base in node.bases) else [*node.bases]
        elif isinstance(node, ast.If) and re.search(r"TYPE_CHECKING|sys\.version_info", ast.unparse(node.test)):
            parts = [node]
        for part in parts:
            if isinstance(part, ast.expr | ast.stmt) and part.end_lineno and part.end_col_offset is not None:
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def _mutant(tree: Path, module: str, position: Position, name: str, occurrence: int) -> Mutant:
    source = (tree / module).read_text()
    mutated = mutate_code(source, operators()[name], occurrence)
    if mutated is None:
        raise AssertionError(f"{name} does not apply to {module}:{position[0]} any more")
    diff = list(difflib.unified_diff(source.splitlines(), mutated.splitlines(), module, module, lineterm="", n=2))
    was, now = (" ".join(" ".join(line[1:] for line in diff[2:] if line[0] == sign).split()) for sign in "-+")
    where, lines = _place(ast.parse(source), position[0])
    return Mutant(module, where, lines, name, was, now, mutated, "\n".join(diff))


def _place(module: ast.Module, line: int) -> tuple[str, tuple[int, int]]:
    """The qualified name around a line, and the lines of the statement there (of its head, if it has a body)."""
    names: list[str] = []
    lines = (line, line)
    body: list[ast.stmt] = module.body
    while True:
        found = next((node for node in body if _first_line(node) <= line <= (node.end_lineno or 0)), None)
        if found is None:
            return ".".join(names) or "<module>", lines
        if isinstance(found, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(found.name)
        inner = [
            node
            for field in ("body", "orelse", "finalbody", "handlers", "cases")
            for part in getattr(found, field, ())
            for node in ([part] if isinstance(part, ast.stmt) else part.body)
        ]
        head_ends = min((_first_line(node) for node in inner), default=(found.end_lineno or line) + 1) - 1
        lines = (found.lineno, max(found.lineno, head_ends)) if line <= head_ends else (line, line)
        body = inner


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
