"""Event loops. A test takes `anyio_backend` (real time) or `virtual` (simulated) and names no loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import uvloop
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from aslab.cli import main
from aslab.lab._simulation._asyncio import SimulatedLoop
from aslab.lab._simulation._idle import Idle
from aslab.lab._simulation._trio import simulated_clock

hypothesis.settings.register_profile("aslab", deadline=None)  # how long an example takes says nothing
hypothesis.settings.load_profile("aslab")

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "asyncio+uvloop": ("asyncio", {"loop_factory": uvloop.new_event_loop}),
    "trio": ("trio", {}),
}
if sys.version_info >= (3, 12):

    def _eager_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOPS["asyncio+eager"] = ("asyncio", {"loop_factory": _eager_loop})


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """With ``-n``: the tests of these files run in one process, since they share long simulations."""

    TOGETHER = ("test_story.py", "test_cli_story.py", "test_scenarios.py", "test_lab_play.py")

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(self.TOGETHER) else nodeid.partition("[")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


_setups = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every simulated run collects all garbage: a tenth of a second, most of it to look at thousands of tests."""
    if next(_setups) % 100 == 0:
        gc.unfreeze()
        gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _what_a_test_leaves_ends_with_it() -> Iterator[None]:
    """Else its garbage goes in the middle of another test, with warnings, or in a thread that opens files."""
    yield
    gc.collect()  # what is older is frozen
    for thread in threading.enumerate():
        if thread.name == "aslab late releases":
            thread.join(30)


@pytest.fixture(params=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The loops that a behaviour is tested on."""
    return LOOPS[request.param]


@pytest.fixture(params=["asyncio", "trio"])
def virtual(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The same loops with a simulated clock."""
    if request.param == "trio":
        return "trio", {"clock": simulated_clock(Idle())}
    return "asyncio", {"loop_factory": SimulatedLoop}


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """The command line without a process of its own, which takes most of the time where input is refused."""

    def run(*args: str | os.PathLike[str]) -> subprocess.CompletedProcess[bytes]:
        with pytest.raises(SystemExit) as ended:
            main([os.fspath(arg) for arg in args])
        assert isinstance(ended.value.code, int)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(args, ended.value.code, out.encode(), err.encode())

    return run
