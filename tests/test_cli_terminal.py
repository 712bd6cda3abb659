"""The command line at a terminal: Ctrl-C, widths, colours. In real processes, as users run it."""

from __future__ import annotations

import concurrent.futures
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aslab.lab._story._chapters import play_story
from aslab.lab._story._machines import MACHINES
from aslab.lab.scenarios import builtin

from .test_cli import ROOT, SMALL, Here, environment, python

AT_WORK = {
    "demo --act 1": ("aslab.cli._demo._frames", "SharedMemory"),
    "demo --act 2 --loop trio": ("aslab.cli._demo._stuck", "_Service"),
    "demo --act 3": ("aslab.cli._demo._hashing", "_open"),
    "demo --loop trio --inject deadlock": ("aslab.cli._demo._hashing", "_open"),
    "demo --loop uvloop": ("aslab.cli._demo._hashing", "_open"),
    "lab run deadlock-for-good": ("aslab.lab._scenario._play", "shuffled"),
    "lab run deadlock-for-good --loop trio": ("aslab.lab._scenario._play", "shuffled"),
    "lab run deadlock-for-good --real-time": ("aslab.lab._scenario._play", "shuffled"),
    "lab story --seeds 2000": ("aslab.lab._story._chapters", "tell"),
    "lab story --seeds 2000 --jobs 2": ("aslab.lab._simulation._parallel", "_next"),
    "lab story --grid examples/grids/smoke.toml --seeds 2000": ("aslab.lab._story._experiments", "experiment"),
    "lab story --grid examples/grids/smoke.toml --seeds 2000 --jobs 2": (
        "aslab.lab._simulation._parallel",
        "_next",
    ),
    "bench lab": ("aslab.bench._app", "bar"),
    "bench pair --rounds 9999": ("aslab.bench._pair", "_list"),
    "bench index --rounds 99999": ("aslab.bench._index", "removal_cost"),
}
"""Commands that take minutes, and a function that each calls when it is at work for sure."""


def not_measured(env: dict[str, str]) -> dict[str, str]:
    """Coverage takes a lock when a function is first called; Ctrl-C in there leaves it taken, for ever."""
    return {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}


def start(command: str, at: tuple[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Run it in a group of its own, until it is at work, or calls that function, whatever it says before."""
    module, name = at or AT_WORK[command]
    code = (
        f"import signal, sys, threading, {module} as module\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background has not
        f"real = module.{name}\n"
        "told = threading.Lock()\n"  # by the first of several threads
        "def tell(*args, **options):\n"
        "    if told.acquire(blocking=False):\n"
        "        print('at work', flush=True)\n"
        "    return real(*args, **options)\n"
        f"module.{name} = tell\n"
        "from aslab.cli import main\n"
        "if __name__ == '__main__': main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=not_measured(environment()),
        start_new_session=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != b"at work\n":
        assert line
    return process


def wait_until_none_is_left(group: int) -> None:
    """The helper of multiprocessing ends itself when it sees that its parent is gone."""
    patience = time.monotonic() + 30
    while time.monotonic() < patience:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("processes are left")


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "terminal"])
@pytest.mark.parametrize("command", list(AT_WORK))
def test_ctrl_c_ends_all_of_it(command: str, send: object) -> None:
    process = start(command)
    assert callable(send)
    send(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)  # of commands that take many minutes
    finally:
        process.kill()
        process.wait()  # a zombie is in its group, too
        wait_until_none_is_left(process.pid)
    told = [line for line in err.decode().splitlines() if not line.startswith("aslab: this takes")]
    assert (process.returncode, out, told) == (130, b"", ["aslab: interrupted"])


def assert_interrupted_in_one_line(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, b"aslab: interrupted\n")


@pytest.mark.parametrize("caught", ["", "\n    except KeyboardInterrupt: loop = None; raise"])
def test_ctrl_c_while_an_event_loop_is_made_is_one_line(caught: str) -> None:
    code = (
        "import asyncio, aslab.cli\ndef run(args):\n    try:\n"
        "        loop = asyncio.SelectorEventLoop.__new__(asyncio.SelectorEventLoop)\n"
        f"        loop._closed = False; raise KeyboardInterrupt{caught or chr(10) + '    finally: pass'}\n"
        "aslab.cli._run = run\naslab.cli.main([])"
    )
    assert_interrupted_in_one_line(code)


def test_ctrl_c_while_a_task_is_made_is_one_line() -> None:
    code = (
        "import asyncio, aslab.cli\n"
        "def run(args):\n"
        "    task = asyncio.ensure_future(asyncio.sleep(1), loop=asyncio.new_event_loop())\n"
        "    raise KeyboardInterrupt\n"
        "aslab.cli._run = run\naslab.cli.main([])"
    )
    assert_interrupted_in_one_line(code)


@pytest.mark.parametrize("module", ["asyncio.runners", "typer.core", "aslab.cli._app"])
def test_ctrl_c_before_a_coroutine_begins_is_one_line_wherever_it_is_dropped(module: str) -> None:
    code = (
        "import aslab.cli\n"
        "drop = 'async def main(): pass\\ndef run(args):\\n    main()\\n    raise KeyboardInterrupt'\n"
        f"exec(drop, names := {{'__name__': {module!r}}})\n"
        "aslab.cli._run = names['run']\naslab.cli.main([])"
    )
    assert_interrupted_in_one_line(code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_demo_and_its_other_process_without_a_traceback(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    connected = ("aslab.cli._demo._frames", "_Pooled.turn")
    process = start("demo --act 1", at=connected)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        wait_until_none_is_left(process.pid)
    if number == signal.SIGKILL:  # all that is left to do is the other process's
        assert b"Traceback" not in err
    else:
        assert (process.returncode, err.decode()) == (128 + number, f"aslab: ended by {number.name}\n")
        assert not list(tmp_path.glob("aslab-*"))


def test_ctrl_c_in_the_middle_of_a_finaliser_is_not_lost() -> None:
    """Python prints and forgets it there. So ran ``bench lab`` on: trio's nurseries have finalisers."""
    code = (
        "import sys, signal, threading, aslab.cli as cli\n"
        "class Caught:\n"
        "    def __del__(self): raise KeyboardInterrupt\n"
        "def run(args):\n"
        "    Caught()\n"
        "    threading.Event().wait(60)\n"
        "    return 0\n"
        "cli._run = run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=not_measured(environment())
    )
    assert (done.returncode, done.stderr) == (130, b"aslab: interrupted\n")


def test_ctrl_c_takes_no_lock_of_a_job_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for several jobs at once holds the locks of all; their pool then never ends."""
    waits: list[object] = []
    monkeypatch.setattr(concurrent.futures._base, "_AcquireFutures", waits.append)
    assert len(play_story([MACHINES[0]], range(2), jobs=2)) == 1
    assert not waits


def at_a_terminal(*args: str, columns: int = 80) -> str:
    """What the command writes to a terminal, stderr included."""
    terminal, end = pty.openpty()
    env = {**environment(), "COLUMNS": f"{columns}", "LINES": "24", "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "aslab", *args], stdin=end, stdout=end, stderr=end, env=env, cwd=ROOT
    )
    os.close(end)
    written = b""
    while True:
        try:
            some = os.read(terminal, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            break
        if not some:
            break
        written += some
    os.close(terminal)
    process.wait()
    return written.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def too_wide(text: str, columns: int = 80) -> list[str]:
    return [line for part in text.split("\n") for line in part.split("\r") if len(line.rstrip()) > columns]


COMMANDS = [
    ("demo", "--quick", *SMALL, "aslab"),
    ("demo", *SMALL, "--inject", "latency:10ms", "--inject", "failslab:probability=50", "aslab/cli"),
    ("lab", "list"),
    ("lab", "run", "pushpage-against-sleep"),
    ("lab", "story", "--seeds", "1", "--machine", "original"),
    (
        "lab",
        "story",
        "--grid",
        "examples/grids/smoke.toml",
        "--seeds",
        "1",
        "--machine",
        "emergency",
    ),
]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_all_fits_80_columns_and_colours_are_for_terminals(args: tuple[str, ...]) -> None:
    shown = at_a_terminal(*args)
    assert "\x1b[" in shown
    assert not too_wide(plain(shown))
    finished = python("-m", "aslab", *args, cwd=ROOT)
    text = finished.stdout.decode()
    assert "\x1b" not in text
    assert not too_wide(text)
    assert not finished.stderr


def test_a_wide_terminal_is_used() -> None:
    longest = max(map(len, plain(at_a_terminal("lab", "list", columns=120)).splitlines()))
    assert 100 < longest <= 120


@pytest.mark.parametrize("name", list(builtin()))
def test_what_a_scenario_shows_fits_80_columns(here: Here, name: str) -> None:
    assert not too_wide(here("lab", "run", name).stdout.decode())


@pytest.mark.parametrize(
    "command", ["", "demo", "lab", "lab list", "lab run", "lab story", "bench", "bench lab", "bench waiters"]
)
def test_help_fits_80_columns(here: Here, command: str) -> None:
    assert not too_wide(here(*command.split(), "--help").stdout.decode())


def test_no_hint_names_a_package_that_no_index_has() -> None:
    for path in (ROOT / "README.md", *(ROOT / "aslab").rglob("*.py"), *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"pip install\W+aslab", path.read_text(encoding="utf-8")), path


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_without_columns_set_a_pipe_is_80_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    (tmp_path / "file").write_bytes(b"x")
    text = python("-m", "aslab", "demo", "--loop", "asyncio", tmp_path).stdout.decode()
    assert not too_wide(text)
    assert "Verdict: all is well." in text
