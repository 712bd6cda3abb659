"""The pytest fixture ``lab``: async tests in simulated time, on both loops.

In a ``conftest.py``: ``pytest_plugins = ["aslab.lab.pytest_plugin"]``. Then

    def test_callers_wait_no_longer_than_a_second(lab):
        async def main():
            ...
        lab(main, until=60)

runs twice, once on asyncio and once on trio (skipped where trio is not installed).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import pytest

from . import Outcome, run
from ._simulation._run import LOOPS

T = TypeVar("T")
Args = TypeVarTuple("Args")


class LabRunner:
    """Calls `aslab.lab.run` on the loop of this test."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        """``asyncio`` or ``trio``."""

    def __call__(
        self, main: Callable[[*Args], Awaitable[T]], *args: *Args, seed: int = 0, until: float | None = None
    ) -> Outcome[T]:
        """As `aslab.lab.run`."""
        return run(main, *args, seed=seed, loop=self.loop, until=until)


@pytest.fixture(params=LOOPS)
def lab(request: pytest.FixtureRequest) -> LabRunner:
    """Run an async function in simulated time, on each loop in turn."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return LabRunner(request.param)
