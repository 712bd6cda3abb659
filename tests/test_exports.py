"""What is public is listed, documented, and importable with anyio alone."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import aslab
import aslab.backends
import aslab.emulation
import aslab.faults
import aslab.io
import aslab.lab
import aslab.lab.scenarios
import aslab.pressure
import aslab.protocols
import aslab.share
import aslab.testing

ROOT = Path(__file__).parent.parent
MODULES = [
    aslab,
    aslab.backends,
    aslab.emulation,
    aslab.faults,
    aslab.io,
    aslab.lab,
    aslab.lab.scenarios,
    aslab.pressure,
    aslab.protocols,
    aslab.share,
    aslab.testing,
]
NAMES = [
    pytest.param(module, name, id=f"{module.__name__}.{name}") for module in MODULES for name in module.__all__
]
PLAIN = ("Delay", "METRICS")  # a type alias or a dictionary has no docstring of its own


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_is_sorted_complete_and_without_repetition(module: ModuleType) -> None:
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public - {"annotations"} == set(module.__all__)
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_exists_and_is_documented(module: ModuleType, name: str) -> None:
    thing = getattr(module, name)
    if name not in PLAIN:
        assert _own_doc(thing), f"{name} has no docstring"


def _own_doc(thing: object) -> str | None:
    return thing.__dict__.get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_method_and_property_is_documented(module: ModuleType, name: str) -> None:
    thing = getattr(module, name)
    if not isinstance(thing, type):
        return
    undocumented = [
        attribute
        for attribute, value in vars(thing).items()
        if not attribute.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, (property, classmethod, staticmethod)))
        and not value.__doc__
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", aslab.__all__)
def test_top_level_names_say_that_they_are_aslabs(name: str) -> None:
    assert getattr(aslab, name).__module__ == "aslab"


@pytest.mark.parametrize("name", [name for name in aslab.__all__ if name.endswith("Error")])
def test_every_error_is_a_slab_error_with_a_text_that_says_whose_fault(name: str) -> None:
    error = getattr(aslab, name)
    assert issubclass(error, aslab.SlabError)


def test_errors_are_also_what_a_user_would_catch() -> None:
    import anyio

    assert issubclass(aslab.ConfigError, ValueError)
    assert issubclass(aslab.BufferFreedError, ValueError)
    assert issubclass(aslab.WrongCacheError, ValueError)
    assert issubclass(aslab.CacheClosedError, anyio.ClosedResourceError)
    assert issubclass(aslab.ImpossibleTransition, RuntimeError)


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_works_where_nothing_but_anyio_is_installed() -> None:
    absent = ("trio", "rich", "typer", "numpy", "uvloop", "hypothesis", "pytest", "pydantic")
    run(f"""
import sys
sys.modules.update(dict.fromkeys({absent!r}))
import anyio, aslab, aslab.backends, aslab.emulation, aslab.faults, aslab.lab, aslab.share, aslab.testing

async def main():
    async with aslab.open_allocator() as kmem:
        async with kmem.create_cache("c", 4096).lease() as buf:
            buf.view[0] = 1

anyio.run(main)
aslab.lab.run(main)
""")


def test_importing_it_imports_no_event_loop_and_no_optional_package() -> None:
    names = "aslab, aslab.backends, aslab.emulation, aslab.faults, aslab.observe, aslab.share, aslab.testing"
    script = f"import sys, {names}; print(*sys.modules)"
    loaded = run(script).split()
    assert "aslab" in loaded
    optional = {"trio", "rich", "typer", "numpy", "uvloop", "pydantic", "pytest", "textual"}
    assert not (optional | {"prometheus_client", "opentelemetry"}) & set(loaded)


def test_anyio_is_the_only_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split(r"[<>=~! \[]", one)[0] for one in project["dependencies"]] == ["anyio"]


def test_it_is_marked_as_typed() -> None:
    assert (Path(aslab.__file__).parent / "py.typed").is_file()
