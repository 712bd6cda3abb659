"""The pytest plugin, in use wherever aslab is installed; ``-p no:aslab`` turns it off.

A test fails if it leaves a buffer behind: in an allocator that is closed meanwhile, or to the garbage collector.
The message names the cache, and where the buffer was allocated and by which task. So does a test that damages
memory, as far as debug letters see it: ``@pytest.mark.aslab(debug="FZPU")`` sets them for a test, ``aslab_debug``
among the options of pytest for all: by default U, which tells where; ``aslab_debug =`` is none. They go by
``ASLAB_DEBUG``, so they hold for whatever allocator a test opens, and add to what that says already.

Fixtures, for async tests that anyio's own plugin runs:

    kmem          an allocator for one test, whose books must be right at its end
    kmem_options  what it is opened with: override it to return a dict
    aslab_faults  its backends, where memory can be made to fail or to get stuck

`aslab.testing.fail_nth` is for tests in which each acquire fails in turn, `aslab.lab.pytest_plugin` for simulated
time.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from typing import Any

import pytest

from .._allocator import Allocator, open_allocator
from .._errors import ConfigError
from .._letters import LETTERS, VARIABLE, letters
from ..backends import Heap, Mmap
from ..faults import Switch
from ._consistency import check_consistency

LEFT_BEHIND = (
    "error:cache .* was closed with .* still held:ResourceWarning",
    "error:cache .* was closed with damaged memory:ResourceWarning",
    "error:cache .* a Buffer was garbage-collected without free:ResourceWarning",
    # what a finaliser raises can be raised again only from what pytest makes of it
    "error:(?s).*a Buffer was garbage-collected without free:pytest.PytestUnraisableExceptionWarning",
)
"""Filters of warnings, which a test or the command line may override."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``aslab_debug``."""
    parser.addini("aslab_debug", "debug letters of aslab for all tests, such as FZPU", default="U")


def pytest_configure(config: pytest.Config) -> None:
    """Make errors of the warnings about buffers left behind, and describe the mark."""
    config.addinivalue_line("markers", 'aslab(debug="FZPU"): debug letters for allocators that the test opens')
    for line in LEFT_BEHIND:
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse marks that say anything else, and letters that there are not, before any test runs."""
    for item in items:
        if any(mark.args or set(mark.kwargs) - {"debug"} for mark in item.iter_markers("aslab")):
            raise pytest.UsageError(
                f"{item.nodeid}: the mark aslab takes debug and nothing else, by its name: "
                'write @pytest.mark.aslab(debug="FZPU")'
            )
        try:
            letters("debug", _letters_of(item))
        except ConfigError as exc:
            raise pytest.UsageError(f"{item.nodeid}: {exc}") from None


def _letters_of(item: pytest.Item) -> Any:
    mark = item.get_closest_marker("aslab")
    if mark is None or "debug" not in mark.kwargs:
        return item.config.getini("aslab_debug")
    return mark.kwargs["debug"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Set ``ASLAB_DEBUG`` for a test and its fixtures."""
    chosen = _letters_of(item)
    before = os.environ.get(VARIABLE)
    if chosen and set(before or "") <= set(LETTERS):  # else it names caches, or turns letters off
        os.environ[VARIABLE] = (before or "") + chosen
    try:
        return (yield)
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


@dataclass(frozen=True)
class Faults:
    """The backends of the fixture ``kmem``, well until a test turns faults on."""

    slabs: Switch
    """Where slabs come from."""
    emergency: Switch
    """Where emergency objects come from."""

    def heal(self) -> None:
        """End all faults."""
        self.slabs.heal()
        self.emergency.heal()


@pytest.fixture
def kmem_options() -> dict[str, Any]:
    """The options that ``kmem`` is opened with."""
    return {}


@pytest.fixture
def aslab_faults(kmem_options: dict[str, Any]) -> Faults:
    """Faults for ``kmem``: ``aslab_faults.slabs.fail(3)``, ``.stick()``, ``.heal()``. Healed at the end."""
    return Faults(Switch(kmem_options.get("slabs") or Mmap()), Switch(kmem_options.get("emergency") or Heap()))


@pytest.fixture
async def kmem(
    request: pytest.FixtureRequest, anyio_backend: Any, kmem_options: dict[str, Any]
) -> AsyncIterator[Allocator]:
    """An allocator for one test, with faults if the test has ``aslab_faults`` too."""
    options, faults = {"holders_sample": 1, **kmem_options}, None
    if "aslab_faults" in request.fixturenames:
        faults = request.getfixturevalue("aslab_faults")
        options.update(slabs=faults.slabs, emergency=faults.emergency)
    async with open_allocator(**options) as allocator:
        try:
            yield allocator
        finally:
            if faults is not None:
                faults.heal()
        for cache in allocator.caches:
            check_consistency(cache)
