"""pytest's side of a mutant: which tests, in which order, for how long, and what came of it.

``MUTANTS_ORDER`` is a file with the tests to run, ``MUTANTS_RESULT`` the file for what came of it. A test that
takes many times as long as it should ends the process: what hangs would otherwise cost the whole cap.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HANGS = 99
"""The exit status where a test hangs."""
MEMORY = 8 * 2**30
"""Bytes of address space: a mutant that allocates without end must not take the machine with it."""


class Plugin:
    """Runs the tests of one mutant, or times those of a file."""

    def __init__(self) -> None:
        self.order: dict[str, float] | None = None
        self.cap = float(os.environ.get("MUTANTS_CAP", "inf"))
        self.result: dict[str, Any] = {"ran": 0, "failed": [], "capped": False, "seconds": {}}
        self.path = Path(os.environ["MUTANTS_RESULT"])
        self.begun = time.monotonic()
        if "MUTANTS_ORDER" in os.environ:
            self.order = json.loads(Path(os.environ["MUTANTS_ORDER"]).read_text())
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        self.write()

    def write(self) -> None:
        """Also at the start: what dies leaves a result."""
        self.path.write_text(json.dumps(self.result))

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Only the tests named, in that order."""
        if self.order is not None:
            rank = {test: number for number, test in enumerate(self.order)}
            config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in rank])
            items[:] = sorted((item for item in items if item.nodeid in rank), key=lambda item: rank[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Each with an alarm; none once the cap is reached."""
        if self.order is not None:
            signal.signal(signal.SIGALRM, lambda *_: self._hangs(item.nodeid))
            signal.setitimer(signal.ITIMER_REAL, 10 + 10 * self.order[item.nodeid])
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.result["ran"] += 1
            if time.monotonic() - self.begun > self.cap:
                self.result["capped"] = True
                item.session.shouldstop = "the cap is reached"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note its time, and whether it failed."""
        seconds = self.result["seconds"]
        seconds[report.nodeid] = round(seconds.get(report.nodeid, 0.0) + report.duration, 5)
        if report.failed:
            self.result["failed"].append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Leave the result behind."""
        self.write()

    def _hangs(self, test: str) -> None:
        self.result["failed"].append(test)
        self.write()
        os._exit(HANGS)


def pytest_configure(config: pytest.Config) -> None:
    """Take part."""
    config.pluginmanager.register(Plugin(), "mutants")
