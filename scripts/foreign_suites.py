"""Other people's test suites on the simulated loop: as many tests pass as on the ordinary one.

    python scripts/foreign_suites.py [--json] [--only NAME ...] [--cache DIR]

CPython's own tests of asyncio come from the Python that runs this, the others from their sdists, by
``pip download``, each with an environment of its own in the cache folder. A suite that cannot be had is
told, and skipped. Each suite runs twice, each time in a process of its own. What failed on the simulated
loop alone, and is not documented in docs/lab.md, runs there a second time, each test by itself: it may have met
what another test left behind, such as a thread. That is told, too.

Prints a table: suite, tests, passed on the ordinary loop, passed on the simulated loop, of these at the
second try, and those of the rest that are documented and that are not. Exit code 0 if all of the rest are;
1 if not, or if nothing ran; 2 for a bad option.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import unittest
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "aslab-foreign-suites"
PER_TEST, PER_SUITE = 20, 1200  # seconds
TAKES = "about 10 minutes, and some more the first time, to download"
MOST_TOLD = 20  # tests of a suite, and most that are tried again; --json has all
CPYTHON = ("locks", "queues", "timeouts", "waitfor", "taskgroups", "tasks", "futures", "runners", "threads")
PYTEST = ("pytest>=8", "pytest-mock", "trio")


def has_ipv6() -> bool:
    """Whether localhost has an IPv6 address: without one, tests of it fail, and leave sockets to later ones."""
    try:
        socket.getaddrinfo("localhost", 0, socket.AF_INET6)
    except OSError:
        return False
    return True


class Sdist(NamedTuple):
    """A suite from an sdist."""

    requires: tuple[str, ...]
    tests: str = "tests"
    options: tuple[str, ...] = ()


SDISTS = {
    "anyio": Sdist(
        ("trustme", "psutil", "hypothesis", "blockbuster", "truststore", "exceptiongroup", "pytest-timeout"),
        options=("-k", "not uvloop" + " and not ipv6" * (not has_ipv6()), "-o", "timeout=0"),
    ),
    "aiotools": Sdist(("pytest-asyncio",)),
    "aiometer": Sdist(("anyio",)),
    "tenacity": Sdist(("pytest-asyncio", "tornado", "typeguard")),
}
HEAD = (
    f"{'suite':<20} {'tests':>6} {'ordinary':>9} {'simulated':>9} {'second try':>10} {'documented':>10} {'not':>4}"
)
NAMES = tuple(f"cpython {name}" for name in CPYTHON) + tuple(SDISTS)

EXCEPTIONS: dict[str, dict[str, str]] = {
    "aiotools": {
        "tests/test_fork.py::test_fork_signal*": "sleeps a tenth of a second for a child process to start",
        "tests/test_fork.py::test_fork_many*": "starts 32 processes, for more than 5 s on a busy machine",
    },
    "anyio": {
        "tests/streams/test_tls.py::TestTLSListener::test_extra_attributes*": (
            "a thread of its own connects, and the handshake's timeout is over at once"
        ),
        "tests/test_from_thread.py::TestBlockingPortal::test_start_task_soon_cancel_*": (
            "a thread of its own cuts short a sleep, which is over at once"
        ),
        "tests/test_from_thread.py::TestBlockingPortalProvider::test_exception_passed_to_portal_cm*": (
            "a thread of its own cuts short a sleep, which is over at once"
        ),
        "tests/test_from_thread.py::TestBlockingPortal::test_aexit_with*": (
            "threads of its own have a tenth of a second to begin with"
        ),
        "tests/test_pytest_plugin.py::test_dynamic_async_fixture_access_does_not_hang": (
            "gives a child process three real seconds"
        ),
    },
}
"""For each suite patterns of tests that pass on the ordinary loop alone, and why. docs/lab.md has them, too."""


class Missing(Exception):
    """A suite cannot be had; says why."""


class Outcome(NamedTuple):
    """How a suite went on both loops."""

    tests: int
    ordinary: int
    simulated: int
    again: tuple[str, ...]
    documented: tuple[str, ...]
    undocumented: tuple[str, ...]


# -- in the process of a suite


def simulate() -> None:
    """From now on every loop is a simulated one, asyncio's and trio's."""
    from asyncio import unix_events

    import trio

    from aslab.lab._simulation._asyncio import SimulatedLoop
    from aslab.lab._simulation._idle import Idle
    from aslab.lab._simulation._order import ordered
    from aslab.lab._simulation._trio import simulated_clock

    unix_events._UnixDefaultEventLoopPolicy._loop_factory = SimulatedLoop  # type: ignore[attr-defined]
    _for_good.enter_context(ordered())
    for module, name in ((trio, "run"), (trio.lowlevel, "start_guest_run")):
        original = getattr(module, name)

        def with_clock(*args: Any, original: Any = original, clock: Any = None, **options: Any) -> Any:
            return original(*args, clock=clock or simulated_clock(Idle()), **options)

        setattr(module, name, with_clock)


_for_good = contextlib.ExitStack()


def limit() -> None:
    """A test that hangs fails."""

    def hangs(*_: object) -> None:
        raise RuntimeError(f"hangs since {PER_TEST} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PER_TEST)


class Result(unittest.TestResult):
    """Keeps the outcome of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: dict[str, bool] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        """It begins."""
        super().startTest(test)
        self.passed[test.id()] = True
        limit()

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        """It has ended."""
        signal.alarm(0)
        super().stopTest(test)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        """It was skipped, and does not count."""
        self.passed.pop(test.id(), None)

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        """It raised."""
        super().addError(test, err)
        self.passed[test.id()] = False

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        """It failed."""
        super().addFailure(test, err)
        self.passed[test.id()] = False

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        """A part of it has ended."""
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.passed[test.id()] = False


def run_unittest(module: str, loop: str) -> dict[str, bool]:
    """The tests of a module of the standard library."""
    suite = unittest.defaultTestLoader.loadTestsFromName(module)
    if loop == "simulated":
        simulate()
    result = Result()
    with contextlib.redirect_stdout(sys.stderr):
        suite.run(result)
    for test, told in result.errors + result.failures:
        print(f"--- {test.id()}\n{told}", file=sys.stderr)
    return result.passed


_passed: dict[str, bool] = {}


def pytest_configure() -> None:
    """Of a suite that pytest runs, with this file as a plugin."""
    if os.environ["ASLAB_FOREIGN_LOOP"] == "simulated":
        simulate()


def pytest_runtest_logstart() -> None:
    """A test begins."""
    limit()


def pytest_runtest_logfinish() -> None:
    """It has ended."""
    signal.alarm(0)


def pytest_runtest_logreport(report: Any) -> None:
    """A part of a test has run."""
    if report.failed:
        _passed[report.nodeid] = False
    elif report.passed and report.when == "call":
        _passed.setdefault(report.nodeid, True)


def pytest_sessionfinish() -> None:
    """All have."""
    Path(os.environ["ASLAB_FOREIGN_OUT"]).write_text(json.dumps(_passed))


# -- around them


def environment(loop: str, out: Path) -> dict[str, str]:
    """For the process of a suite."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}",
        "ASLAB_FOREIGN_LOOP": loop,
        "ASLAB_FOREIGN_OUT": str(out),
    }


def called(command: list[str], log: Path, **options: Any) -> int:
    """Run a command with its output in a file; its exit code."""
    with log.open("w") as file:
        try:
            return subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, check=False, **options
            ).returncode
        except subprocess.TimeoutExpired:
            print(f"\ntook more than {PER_SUITE} s", file=file)
            return -1


def one_run(name: str, loop: str, cache: Path, again: str = "") -> dict[str, bool]:
    """One suite, or one test of it again, on one loop: which of its tests passed."""
    run = f"{name} {loop}{' again' if again else ''}"
    if sys.stderr.isatty():
        print(f"\r\033[K{run}, {PER_SUITE} s at most ... ", end="", file=sys.stderr, flush=True)
    out, log = cache / f"{run}.json", cache / f"{run}.log"
    out.unlink(missing_ok=True)
    options: dict[str, Any] = {"env": environment(loop, out), "timeout": PER_SUITE}
    if name in SDISTS:
        python, folder = prepared(name, cache)
        sdist = SDISTS[name]
        command = [
            str(python),
            "-m",
            "pytest",
            "-p",
            "foreign_suites",
            "-q",
            "-p",
            "no:cacheprovider",
            "--tb=native",
            "-o",
            "addopts=",
        ]
        code = called([*command, *sdist.options, again or sdist.tests], log, cwd=folder, **options)
    else:
        module = f"test.test_asyncio.test_{name.partition(' ')[2]}"
        code = called([sys.executable, __file__, "--child", module, loop], log, cwd=cache, **options)
    if not out.exists():
        raise Missing(f"its run ended with {code}, see {log}")
    passed: dict[str, bool] = json.loads(out.read_text())
    if not passed:
        raise Missing(f"none of its tests ran, see {log}")
    return passed


def prepared(name: str, cache: Path) -> tuple[Path, Path]:
    """The Python of a suite's environment, and the folder that its sdist was unpacked into."""
    folder, environ = cache / f"{name}-sdist", cache / f"{name}-environment"  # no blanks: a shell sees these
    python = environ / "bin" / "python"
    if not (folder / "ready").exists():
        folder.mkdir(exist_ok=True)
        log = cache / f"{name} install.log"
        pip = [sys.executable, "-m", "pip", "-q", "download", "--no-binary", ":all:", "--no-deps"]
        if called([*pip, "-d", str(folder), name], log):
            raise Missing(f"no sdist could be downloaded, see {log}")
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        source = next(path for path in folder.iterdir() if path.is_dir())
        called([sys.executable, "-m", "venv", str(environ)], log)
        wanted = [*PYTEST, *SDISTS[name].requires, "anyio>=4.7", str(source)]
        if called([str(python), "-m", "pip", "-q", "install", *wanted], log):
            raise Missing(f"it could not be installed, see {log}")
        (folder / "ready").touch()
    source = next(path for path in folder.iterdir() if path.is_dir())
    if not (source / SDISTS[name].tests).exists():
        raise Missing("its sdist has no tests")
    return python, source


def passes(name: str, test: str, cache: Path) -> bool:
    """Whether one test passes on the simulated loop, by itself."""
    try:
        return one_run(name, "simulated", cache, test).get(test, False)
    except Missing:  # it took the whole run down
        return False


def compared(name: str, cache: Path) -> Outcome:
    """One suite on both loops."""
    ordinary, simulated = (one_run(name, loop, cache) for loop in ("ordinary", "simulated"))
    lost = sorted(test for test, passed in ordinary.items() if passed and not simulated.get(test))
    patterns = EXCEPTIONS.get(name, {})
    known = tuple(test for test in lost if any(fnmatch.fnmatchcase(test, pattern) for pattern in patterns))
    rest = tuple(test for test in lost if test not in known)
    tried = rest[:MOST_TOLD] if name in SDISTS else ()
    again = tuple(test for test in tried if passes(name, test, cache))
    rest = tuple(test for test in rest if test not in again)
    passed = sum(simulated.values()) + len(again)
    return Outcome(len(ordinary), sum(ordinary.values()), passed, again, known, rest)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help=f"for sdists, environments, logs; default {CACHE}"
    )
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    if not options.only:
        print(f"all suites take {TAKES}; --help tells of less", file=sys.stderr, flush=True)
    outcomes: dict[str, Outcome] = {}
    missing: dict[str, str] = {}
    if not options.json:
        print(HEAD)
    for name in options.only or NAMES:
        try:
            outcome = outcomes[name] = compared(name, options.cache)
        except Missing as exc:
            missing[name] = str(exc)
            told = f"skipped: {exc}"
        else:
            told = (
                f"{outcome.tests:6} {outcome.ordinary:9} {outcome.simulated:9} {len(outcome.again):10} "
                f"{len(outcome.documented):10} {len(outcome.undocumented):4}"
            )
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        if not options.json:
            print(f"{name:<20} {told}", flush=True)
            rest = outcomes[name].undocumented if name in outcomes else ()
            for test in (*rest[:MOST_TOLD], *(["..."] if rest[MOST_TOLD:] else [])):
                print(f"    {test}")
    if options.json:
        rows = {name: outcome._asdict() for name, outcome in outcomes.items()}
        print(json.dumps({"suites": rows, "skipped": missing}))
    return int(not outcomes or any(outcome.undocumented for outcome in outcomes.values()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        Path(os.environ["ASLAB_FOREIGN_OUT"]).write_text(json.dumps(run_unittest(*sys.argv[2:])))
        os._exit(0)  # what a hanging test left behind must not hang the end
    raise SystemExit(main())
