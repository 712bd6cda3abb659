"""The command line, run as users run it: in a process of its own, on real files."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import anyio
import pytest

from aslab import ConfigError
from aslab._checks import format_size, parse_size
from aslab.backends import Mmap
from aslab.cli._demo import _run
from aslab.cli._demo._acts import Act, play
from aslab.cli._demo._checksums import Both, checksums
from aslab.cli._demo._files import Found, check_paths, find_files
from aslab.cli._demo._frames import fitting_size, room_for_segments
from aslab.cli._demo._hashing import Done, Hasher
from aslab.cli._demo._once import print_sums
from aslab.cli._demo._other import Other
from aslab.cli._demo._pair import Pair
from aslab.cli._demo._processes import ENDING, FITS, FileQueue, in_processes
from aslab.cli._demo._run import Run, perform_in, processes
from aslab.cli._demo._service import Service, Settings, checksum
from aslab.cli._demo._words import Told
from aslab.cli._errors import BadInput
from aslab.cli._loops import Loop

ROOT = Path(__file__).parent.parent
BUFFER = 16 * 2**10
SMALL = ("--buffer", "16KiB", "--limit", "256KiB")
NAMES = (
    b"empty",
    b"large",
    b"exactly one buffer",
    b"two\nlines",
    b"carriage\rreturn",
    b"back\\slash",
    b"both\\n\n",
    b"not utf-8 \xff\xfe",
    b" spaces ",
    b"-dash",
)

TOO_LONG = "x" * 256
"""A symlink to it cannot be followed, by root either."""

Argument = str | os.PathLike[str]
Finished = subprocess.CompletedProcess[bytes]
Here = Callable[..., Finished]


def aslab(*args: Argument, cwd: Path | None = None, without: str = "") -> Finished:
    """Run the command; ``without`` names a package that is not to be found."""
    start = f"import sys; sys.modules[{without!r}] = None; " if without else ""
    return python("-c", start + "from aslab.cli import main; main()", *args, cwd=cwd)


def python(*args: Argument, cwd: Path | None = None, stdout: int | IO[bytes] = subprocess.PIPE) -> Finished:
    return subprocess.run(
        [sys.executable, *args],
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(),
        timeout=60,
        check=False,
    )


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "PYTHONWARNINGS"}}
    return {**plain, "PYTHONPATH": str(ROOT)}


def told(finished: Finished, code: int) -> str:
    """The one line on stderr of a command that ended with ``code``."""
    message = finished.stderr.decode()
    assert finished.returncode == code, message
    assert message.startswith("aslab: ")
    assert message.count("\n") == 1
    assert finished.stdout == b""
    return message


def answer_of(finished: Finished, code: int = 0) -> dict[str, Any]:
    assert finished.returncode == code, finished.stderr.decode()
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


def acts_of(finished: Finished, code: int = 0) -> list[dict[str, Any]]:
    acts: list[dict[str, Any]] = answer_of(finished, code)["acts"]
    return acts


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of many sizes and names, some in folders, one behind a symlink; and what is no file."""
    top = tmp_path / "tree"
    (top / "deep" / "er").mkdir(parents=True)
    contents = {name: name * 7 for name in NAMES}
    contents |= {b"empty": b"", b"large": os.urandom(5 * BUFFER + 3), b"exactly one buffer": b"x" * BUFFER}
    for name, content in contents.items():
        (top / os.fsdecode(name)).write_bytes(content)
    for number in range(40):
        (top / "deep" / "er" / f"small {number}").write_bytes(bytes([number]) * number)
    (top / "link to a file").symlink_to("large")
    (top / "link to a folder").symlink_to("deep")
    os.mkfifo(top / "pipe")
    return top


def files_in(top: Path) -> list[Path]:
    return [top / os.fsdecode(name) for name in NAMES] + [top / "link to a file", *(top / "deep" / "er").iterdir()]


def verify(sums: Finished, cwd: Path) -> None:
    assert sums.returncode == 0, sums.stderr.decode()
    assert sums.stderr == b""
    checked = subprocess.run(
        ["/usr/bin/env", "sha256sum", "-c", "--quiet", "--strict"],
        input=sums.stdout,
        cwd=cwd,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, (checked.stdout + checked.stderr).decode(errors="replace")


@pytest.mark.parametrize(
    "options",
    [
        ("--loop", "asyncio"),
        ("--loop", "trio"),
        ("--loop", "uvloop"),
        ("--loop", "asyncio", "--inject", "deadlock:300ms"),
        ("--loop", "trio", "--inject", "deadlock:300ms"),
    ],
)
def test_sha256sum_accepts_the_sums_of_every_name_and_size(tree: Path, options: tuple[str, ...]) -> None:
    sums = aslab("demo", "--sums", *SMALL, *options, tree.name, cwd=tree.parent)
    verify(sums, tree.parent)
    assert sums.stdout.count(b"\n") == len(files_in(tree))


def test_the_sums_are_those_of_hashlib_sorted_by_path(tree: Path) -> None:
    folder = tree / "deep" / "er"
    sums = aslab("demo", "--sums", *SMALL, folder)
    expected = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}" for path in sorted(folder.iterdir())]
    assert sums.stdout.decode().splitlines() == expected


def test_the_sums_of_no_files_are_none(tmp_path: Path) -> None:
    finished = aslab("demo", "--sums", tmp_path)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"", b"")


def test_sums_alone_need_no_extra(tree: Path) -> None:
    verify(aslab("demo", tree.name, "--sums", cwd=tree.parent, without="typer"), tree.parent)
    assert "No such file" in told(aslab("demo", "--sums", "missing", cwd=tree, without="typer"), 2)


def test_names_are_escaped_as_sha256sum_escapes_them(tree: Path) -> None:
    sums = aslab("demo", "--sums", tree, cwd=tree.parent)
    assert b"/two\\nlines\n" in sums.stdout
    assert b"/carriage\\rreturn\n" in sums.stdout
    assert b"/back\\\\slash\n" in sums.stdout
    assert b"/not utf-8 \xff\xfe\n" in sums.stdout
    assert sum(line.startswith(b"\\") for line in sums.stdout.splitlines()) == 4


def test_a_file_named_dash_is_not_taken_for_stdin(tmp_path: Path) -> None:
    (tmp_path / "-").write_bytes(b"dash")
    verify(aslab("demo", "--sums", "--", "-", cwd=tmp_path), tmp_path)


def test_a_reader_that_stops_early_gets_no_complaint(tree: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        finished = python("-m", "aslab", "demo", "--sums", tree, stdout=write)
    finally:
        os.close(write)
    assert finished.stderr == b""
    assert finished.returncode == 1


def test_a_full_disk_is_told_in_one_line(tree: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        finished = python("-m", "aslab", "demo", "--sums", tree, stdout=full)
    assert finished.returncode == 1
    assert finished.stderr == b"aslab: cannot write the output: No space left on device\n"


def test_sums_that_are_cut_off_are_told_where_stdout_is_unbuffered(tree: Path, tmp_path: Path) -> None:
    code = (
        "import resource\nfrom aslab.cli import main\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))\n"  # a write is cut off there
        f"try: main(['demo', '--sums', {os.fspath(tree)!r}])\n"
        "finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))"  # coverage writes, too
    )
    with (tmp_path / "sums").open("wb") as sums:
        finished = python("-u", "-c", code, stdout=sums)
    assert (finished.returncode, finished.stderr) == (1, b"aslab: cannot write the output: File too large\n")


def test_json_tells_what_a_healthy_run_did(tree: Path) -> None:
    run = answer_of(aslab("demo", "--json", "--loop", "trio", *SMALL, tree))
    files = files_in(tree)
    assert run.pop("seconds") > 0
    assert run.pop("bytes_per_second") > 0
    waited, median, longest = run.pop("waited"), run.pop("wait_median"), run.pop("wait_longest")
    assert 0 < waited <= run["allocations"]
    assert run["allocations"] >= len(files)  # a task for each, and all ask before the first one is done
    assert 0 <= median <= longest
    assert run == {
        "loop": "trio",
        "injected": [],
        "files": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "allocations": run["allocations"],
        "emergency_used": run["emergency_used"],
        "emergency_max": run["emergency_max"],
        "deadlocks": run["deadlocks"],
        "resumed": True,
        "unreadable": [],
    }


def test_a_run_that_never_waits_has_no_wait_times(tmp_path: Path) -> None:
    run = answer_of(aslab("demo", "--json", "--loop", "asyncio", tmp_path))
    assert (run["files"], run["waited"], run["wait_median"], run["wait_longest"]) == (0, 0, None, None)


@pytest.mark.parametrize(
    ("fault", "resumed"),
    [
        ("latency:150ms", True),
        ("deadlock:300ms", True),
        ("deadlock:300ms,at=2", True),
        ("deadlock", False),
        ("failslab:probability=50", True),
        ("failslab:probability=100", False),
    ],
)
def test_every_file_is_hashed_whatever_is_injected(tree: Path, fault: str, resumed: bool) -> None:
    run = answer_of(aslab("demo", "--json", "--inject", fault, *SMALL, tree))
    assert run["injected"] == [fault]
    assert run["files"] == len(files_in(tree))
    assert run["resumed"] is resumed


def test_emergency_objects_carry_the_service_over_a_stuck_grow(tree: Path) -> None:
    finished = aslab("demo", "--json", "--inject", "deadlock", *SMALL, tree)
    run = answer_of(finished)
    assert finished.stderr == b""
    assert run["emergency_used"] == run["allocations"] >= run["waited"] > 0
    assert 0 < run["emergency_max"] <= 256 // 16
    assert run["deadlocks"] == 1


def test_faults_stack(tree: Path) -> None:
    faults = ("--inject", "latency:10ms", "--inject", "failslab:probability=20,seed=3")
    run = answer_of(aslab("demo", "--json", *faults, *SMALL, tree))
    assert run["injected"] == ["latency:10ms", "failslab:probability=20,seed=3"]


def test_people_get_the_figures_and_the_table(tree: Path) -> None:
    # growth is late after 100 ms, however long the machine then does something else
    finished = aslab("demo", "--inject", "deadlock:600ms", *SMALL, tree)
    assert finished.returncode == 0
    assert finished.stderr == b""
    text = finished.stdout.decode()
    for word in ("asyncio, deadlock:600ms", "median", "growth was late once", "back to normal"):
        assert word in text
    assert "\x1b" not in text


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_acts_are_played_with_aslab_and_without_on_both_loops(tree: Path, loop: str) -> None:
    frames, stuck, checksums = acts_of(aslab("demo", "--json", "--quick", *ALL_ACTS, "--loop", loop, *SMALL, tree))
    assert (frames["act"], frames["name"], frames["in_order"]) == (1, "frames", True)
    assert frames["pooled"] > 0
    assert frames["fresh"] > 0
    assert (stuck["act"], stuck["name"], stuck["resumed"], stuck["plain_served"]) == (2, "stuck", True, 0)
    assert stuck["served"] > 0
    assert stuck["plain_afterwards"] > 0, "the service without aslab works when it has memory"
    assert stuck["seconds"] >= 0.5
    assert stuck["seconds"] > stuck["longest"] > 0
    assert (checksums["act"], checksums["name"], checksums["differing"]) == (3, "checksums", [])
    assert (checksums["files"], checksums["left"]) == (len(files_in(tree)), 0)
    assert checksums["nbytes"] == sum(path.stat().st_size for path in files_in(tree))
    assert 0 < checksums["memory"] <= 256 * 2**10


ALL_ACTS = ("--act", "1", "--act", "2", "--act", "3")


def test_each_act_has_one_line_and_the_last_words_are_a_verdict_and_where_to_go_on(tree: Path) -> None:
    finished = aslab("demo", "--quick", "--act", "3", "--act", "2", *SMALL, tree)
    first, acts, end = finished.stdout.decode().split("\n\n")
    assert first.startswith("aslab at work")
    assert [line[:2] for line in acts.splitlines()] == ["2.", "3."]
    assert "longest wait" in acts
    assert f"SHA-256 of {len(files_in(tree))} files" in acts
    verdict, _, where = " ".join(end.split()).partition(" Read next: ")
    assert verdict == (
        "Verdict: all is well: requests were served while memory was stuck and both ways made the same checksums."
    )
    named = re.findall(r"(?:docs|examples)/\w+\.\w+", where)
    assert named
    assert all((ROOT / path).exists() for path in named)


def test_an_act_that_cannot_be_played_is_told_and_the_others_are_played(tree: Path) -> None:
    code = (
        "import operator, aslab.cli._demo._frames as frames\n"
        "frames.consume = operator.is_\n"  # with which the other process ends at once
        "from aslab.cli import main\n"
        f"main(['demo', '--quick', '--act', '1', '--act', '3', {str(tree)!r}])"
    )
    finished = python("-c", code)
    text = finished.stdout.decode()
    assert (finished.returncode, finished.stderr) == (1, b"")
    assert "1. Not played: the other process ended early" in text
    assert "3. SHA-256" in text
    assert "Verdict: NOT well: the other process ended early" in text


def test_an_act_that_takes_far_too_long_says_so() -> None:
    async def hang(pair: Pair) -> Told:
        with anyio.fail_after(0):
            await anyio.sleep_forever()
        raise AssertionError

    act = Act(number=1, name="", title="", ways=("", ""), unit="", play=hang)
    assert play(act, Loop.ASYNCIO, Pair()).wrong() == ["it took far too long"]


def test_what_is_not_well_with_checksums_is_told(tree: Path) -> None:
    (tree / "deep" / "broken link").symlink_to(TOO_LONG)
    code = (
        "import aslab.cli._demo._service as service\n"
        "class Wrong(service.Hasher):\n"
        "    def go_on(self, view, *, alone):\n"
        "        done = super().go_on(view, alone=alone)\n"
        "        done.sums = {path: digest[::-1] for path, digest in done.sums.items()}\n"
        "        return done\n"
        "service.Hasher = Wrong\n"
        "from aslab.cli import main\n"
        f"main(['demo', '--act', '3', {str(tree / 'deep')!r}])"
    )
    finished = python("-c", code)
    assert finished.returncode == 1
    assert finished.stderr.decode() == f"aslab: cannot read '{tree}/deep/broken link': File name too long\n"
    verdict = " ".join(finished.stdout.decode().partition("Verdict: ")[2].split())
    assert verdict.startswith("NOT well: 40 checksums differ; the first is of ")
    assert "; 1 of the files and folders could not be read. Read next" in verdict


def test_the_ways_take_turns_in_being_first() -> None:
    """The first one waits for the disk, where files are not in the page cache."""
    order: list[str] = []

    class Ours:
        seconds = 1.0

        async def hash(self, part: list[str]) -> None:
            order.append("ours")

    class Theirs:
        async def ask(self, part: list[str]) -> tuple[dict[str, str], float]:
            order.append("theirs")
            return {}, 1.0

    async def take_turns() -> None:
        both = Both(cast("Service", Ours()), cast("Other", Theirs()), Pair())
        for _ in range(3):
            await both.hash(["file"])

    anyio.run(take_turns)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


@pytest.mark.parametrize(("mib", "width"), [(4096, 3840), (64, 1920), (16, 640)])
def test_frames_fit_the_room_for_segments(mib: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a segment beyond it ends a program by a signal."""
    room = SimpleNamespace(f_bavail=mib * 256, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: room)
    assert fitting_size(room_for_segments()) == width * (width * 9 // 16 if width > 640 else 480) * 3


def test_frames_are_left_out_where_segments_have_no_room(tmp_path: Path) -> None:
    code = (
        "import aslab.cli._demo._frames as frames\n"
        "frames.room_for_segments = lambda: 2**20\n"
        "from aslab.cli import main\n"
        f"main(['demo', '--act', '1', '--act', '3', {str(tmp_path)!r}])"
    )
    finished = python("-c", code)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert (
        b"1. Left out: frames to another process need 7.0 MiB in /dev/shm, which has 1 MiB.\n3. "
        in finished.stdout
    )


def test_a_segment_that_a_killed_consumer_had_begun_to_remove_leaves_no_warning() -> None:
    code = (
        "import os\n"
        "from multiprocessing.shared_memory import SharedMemory\n"
        "from aslab.cli._demo._frames import remove\n"
        "begun, done, untouched = (SharedMemory(create=True, size=1) for _ in range(3))\n"
        "os.unlink('/dev/shm/' + begun.name)\n"
        "done.unlink()\n"
        "for segment in (begun, done, untouched): remove(segment)\n"
        "assert not os.path.exists('/dev/shm/' + untouched.name)\n"
    )
    assert python("-c", code).stderr == b""


def test_a_command_imports_what_it_needs_alone(tree: Path) -> None:
    code = (
        "import sys\nbefore = set(sys.modules)  # coverage brings its own\nfrom aslab.cli import main\n"
        "try: main(['demo', '--sums', 'deep'])\nexcept SystemExit: pass\n"
        "print({'typer', 'pydantic', 'rich', 'trio', 'importlib.metadata', 'multiprocessing', 'aslab.bench',\n"
        "'aslab.lab'} & set(sys.modules) - before)"
    )
    assert python("-c", code, cwd=tree).stdout.endswith(b"\nset()\n")


def test_without_a_path_the_third_act_ends_in_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aslab.cli._demo._checksums.FEW", 8)
    there = find_files([os.fspath(tree)])
    settings = Settings(buffer=BUFFER, limit=16 * BUFFER, tasks=4)
    found = anyio.run(checksums, Pair(), there, settings, -1.0)
    assert (found.files, found.left) == (0, len(there.files))
    found = anyio.run(checksums, Pair(), there, settings, None)
    assert (found.files, found.left, found.differing) == (len(there.files), 0, [])


def test_what_took_long_is_not_hashed_a_second_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aslab.cli._demo._checksums.SECOND", -1.0)
    hashed: list[object] = []
    real = Service.hash

    async def hash_and_note(self: Service, part: Sequence[str]) -> None:
        hashed.append(part)
        await real(self, part)

    monkeypatch.setattr(Service, "hash", hash_and_note)
    large = os.fspath(tree / "large")
    found = anyio.run(checksums, Pair(), Found([large]), Settings(buffer=BUFFER, limit=BUFFER, tasks=1), None)
    assert (hashed, found.files, found.nbytes) == ([[large]], 1, 5 * BUFFER + 3)


def test_the_verdict_names_what_is_not_well(tree: Path) -> None:
    (tree / "broken link").symlink_to(TOO_LONG)
    finished = aslab("demo", "--loop", "asyncio", *SMALL, tree)
    assert finished.returncode == 1
    assert "Verdict: NOT well: 1 of the files and folders could not be read." in finished.stdout.decode()


@pytest.mark.parametrize(
    ("fault", "flags", "word"), [("1s", "0x00080", "back to normal"), ("", "0x0c080", "never ends")]
)
def test_table_and_prose_are_of_one_moment(tmp_path: Path, fault: str, flags: str, word: str) -> None:
    # All files are read long before the grow is over. What is said then is said of the state afterwards.
    (tmp_path / "file").write_bytes(b"x")
    text = aslab("demo", "--table", "--inject", f"deadlock:{fault}".rstrip(":"), tmp_path).stdout.decode()
    [row] = [line.split() for line in text.splitlines() if line.startswith("chunks ")]
    assert row[1] == flags
    assert word in text
    slabs = int(row[6])
    assert f"{slabs} slab" in text
    assert (slabs > 0) is ("a buffer came from a slab" in text)


def test_where_there_is_no_file_nothing_is_run_and_nothing_claimed(tmp_path: Path) -> None:
    finished = aslab("demo", "--loop", "asyncio", tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == b"There are no files to read, so nothing was run.\n"
    finished = aslab("demo", "--act", "3", tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert b"3. There were no files to read." in finished.stdout
    assert b"well" not in finished.stdout


def test_the_table_of_spl_is_shown_on_demand(tree: Path) -> None:
    plain, table = (aslab("demo", "--loop", "asyncio", *SMALL, *more, tree).stdout for more in ((), ("--table",)))
    assert b"slabsize" not in plain
    assert b"\nchunks   " in table


def test_without_a_path_it_reads_the_standard_library_alone() -> None:
    code = (
        "import aslab.cli._demo._files as files\n"
        "def stop(where, skip): print(where, skip); raise SystemExit\n"
        "files.find_files = stop\n"
        "from aslab.cli import main; main(['demo', '--loop', 'asyncio'])"
    )
    finished = python("-c", code)
    assert sysconfig.get_path("stdlib").encode() in finished.stdout
    assert b"site-packages" in finished.stdout


def test_a_file_that_cannot_be_read_is_named_and_skipped(tree: Path) -> None:
    (tree / "broken\nlink").symlink_to(TOO_LONG)
    finished = aslab("demo", "--json", "--loop", "asyncio", *SMALL, tree)
    run = answer_of(finished, code=1)
    assert run["files"] == len(files_in(tree))
    assert run["unreadable"] == [{"path": f"{tree}/broken\nlink", "error": "File name too long"}]
    assert finished.stderr.decode() == f"aslab: cannot read '{tree}/broken\\nlink': File name too long\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named_and_skipped(tree: Path) -> None:
    (tree / "empty").chmod(0)
    run = answer_of(aslab("demo", "--json", "--loop", "asyncio", tree), code=1)
    assert run["unreadable"] == [{"path": f"{tree}/empty", "error": "Permission denied"}]


def test_an_error_while_reading_is_told_and_the_others_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "bad").write_bytes(b"bad")
    code = (
        "import errno, os\n"
        "def fail(fd, *others):\n"
        "    if os.path.samestat(os.fstat(fd), os.stat('bad')): raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
        "    return real(fd, *others)\n"
        "real, os.readv = os.readv, fail\n"
        "from aslab.cli import main; main(['demo', '--sums', 'bad', 'good'])"
    )
    finished = python("-c", code, cwd=tmp_path)
    assert finished.returncode == 1
    assert finished.stderr == b"aslab: cannot read 'bad': Input/output error\n"
    assert finished.stdout.endswith(b"  good\n")
    assert finished.stdout.count(b"\n") == 1


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("demo", "no such file"), "No such file or directory"),
        (("demo", "/dev/null"), "neither a file nor a folder"),
        (("demo", "/proc/self"), "generated by the kernel"),
        (("demo", "/proc/kmsg"), "generated by the kernel"),
        (("demo", "--json", "--sums"), "--json"),
        (("demo", "--act", "4"), "--act"),
        (("demo", "--act", "1", "--act", "2", "/etc/hostname"), "PATH is read by act 3 alone"),
        (("demo", "--act", "1", "--inject", "deadlock"), "--inject does one run"),
        (("demo", "--quick", "--sums"), "--sums does one run"),
        (("demo", "--buffer", "1MiB", "--limit", "64KiB", "/etc/hostname"), "limit"),
        (("demo", "--buffer", "0"), "buffer"),
        (("demo", "--limit", "many"), "limit"),
        (("demo", "--tasks", "0"), "--tasks"),
        (("demo", "--inject", "gremlins"), "inject"),
        (("demo", "--loop", "curio"), "--loop"),
        (("demo", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
    ],
)
def test_bad_input_is_refused_in_one_line(here: Here, args: tuple[str, ...], word: str) -> None:
    assert word in told(here(*args), 2)


@pytest.mark.parametrize(
    ("package", "args"),
    [
        ("typer", ("demo",)),
        ("rich", ("demo",)),
        ("trio", ("demo", "--loop", "trio")),
        ("uvloop", ("demo", "--loop", "uvloop")),
    ],
)
def test_a_missing_package_is_told_with_the_extra_that_brings_it(package: str, args: tuple[str, ...]) -> None:
    assert "run pip install '.[demo]' in a clone of aslab" in told(aslab(*args, without=package), 2)


def test_another_missing_module_is_not_hidden() -> None:
    finished = aslab("demo", without="json")
    assert b"ModuleNotFoundError" in finished.stderr


@pytest.mark.parametrize("args", [(), ("--help",), ("demo", "--help"), ("bench", "--help")])
def test_help_goes_to_stdout(args: tuple[str, ...]) -> None:
    finished = aslab(*args)
    assert finished.returncode == 0
    assert finished.stdout.startswith(b"Usage: aslab")
    assert finished.stderr == b""


@pytest.mark.parametrize("without", ["", "typer"])
def test_the_version_is_told_with_no_extra_too(without: str) -> None:
    assert re.fullmatch(rb"aslab \S+ \(fast path in (C|Python)\)\n", aslab("--version", without=without).stdout)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_ctrl_c_ends_quietly(tmp_path: Path, loop: str) -> None:
    # The service itself sends the signal, when it is at work for sure.
    code = (
        "import os, signal, aslab.cli._demo._hashing as hashing\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a job in the background has not
        "def stop(path): os.kill(os.getpid(), signal.SIGINT); return real(path)\n"
        "real, hashing._open = hashing._open, stop\n"
        f"from aslab.cli import main; main(['demo', '--loop', '{loop}', '--inject', 'deadlock', '.'])"
    )
    (tmp_path / "file").write_bytes(b"x")
    finished = python("-c", code, cwd=tmp_path)
    assert (finished.returncode, finished.stderr, finished.stdout) == (130, b"aslab: interrupted\n", b"")


def test_a_call_ends_in_time_even_within_a_file_and_else_when_no_file_is_left(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [os.fspath(tree / name) for name in ("empty", "missing", "large", "exactly one buffer")]
    expected = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files[::2] + files[3:]}
    monkeypatch.setattr("aslab.cli._demo._hashing.TOGETHER", math.inf)
    for seconds in (-1.0, math.inf):
        monkeypatch.setattr("aslab.cli._demo._hashing.CALL", seconds)
        paths, calls = deque(files), list[Done]()
        hasher = Hasher(paths)
        while not hasher.finished:
            calls.append(hasher.go_on(memoryview(bytearray(BUFFER))))
        # one for what is empty; for what is missing; for 5 full pieces and the rest; for a full one and the end
        assert len(calls) == (1 + 1 + 6 + 2 if seconds < 0 else 1)
        assert {path: digest for done in calls for path, digest in done.sums.items()} == expected
        assert [one.error for done in calls for one in done.unreadable] == ["No such file or directory"]
        assert sum(done.nbytes for done in calls) == 6 * BUFFER + 3


@pytest.mark.parametrize(
    ("alone", "slow", "large", "several"),
    [
        (True, False, True, True),
        (True, True, False, True),
        (True, False, False, None),
        (False, True, False, False),
        (False, True, True, None),
    ],
)
def test_a_call_ends_where_more_threads_or_fewer_are_worth_it(
    tree: Path, alone: bool, slow: bool, large: bool, several: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by the bytes of a piece; alone also by the time, which says nothing of one among others."""
    limits = {
        "ALONE": -1.0,
        "WAITING": -1.0,
        "TOGETHER": -1.0,
        "QUICK": 0.0 if slow else math.inf,
        "SMALL": 0 if large else BUFFER,
    }
    for name, limit in limits.items():
        monkeypatch.setattr(f"aslab.cli._demo._hashing.{name}", limit)
    paths = deque(os.fspath(tree / "deep" / "er" / f"small {number}") for number in range(1, 40))
    done = Hasher(paths).go_on(memoryview(bytearray(BUFFER)), alone=alone)
    assert (done.several, len(done.sums)) == (several, 39 if several is None else 1)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_one_thread_is_alone_until_a_call_says_that_several_are_worth_it(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    two = threading.Barrier(2)

    class Told(Hasher):
        """A path is whether others are at work; and what the call says of it afterwards."""

        def go_on(self, view: memoryview, *, alone: bool = False) -> Done:
            said = self._paths.popleft()
            calls.append(f"{'alone' if alone else 'together'}: {said}")
            if not alone:
                two.wait(timeout=10)
            return Done(several={"more": True, "fewer": False, "": None}[said])

    monkeypatch.setattr("aslab.cli._demo._service.Hasher", Told)
    paths = ["", "more", "fewer", "fewer", "", ""]
    anyio.run(checksum, paths, Settings.parse(tasks=2), Mmap(), 1.0, lambda *_: None, backend=loop)
    assert calls == ["alone: ", "alone: more", "together: fewer", "together: fewer", "alone: ", "alone: "]


def test_several_share_the_files_and_none_is_hashed_twice(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aslab.cli._demo._hashing.CALL", -1.0)
    shared = deque(map(os.fspath, files_in(tree)))
    hashers = [Hasher(shared), Hasher(shared)]
    hashed: list[str] = []
    while not all(hasher.finished for hasher in hashers):
        for hasher in hashers:
            hashed += hasher.go_on(memoryview(bytearray(BUFFER))).sums
    assert sorted(hashed) == sorted(map(os.fspath, files_in(tree)))


def test_processes_share_the_files_and_what_they_find(tree: Path) -> None:
    (tree / "gone").write_bytes(b"gone")
    code = (
        "import os, aslab.cli._demo._hashing as hashing, aslab.cli._demo._run as run\n"
        "run.FROM, os.sched_getaffinity = 2, lambda pid: {1, 2, 3}\n"
        "said, real = [], hashing._open\n"
        "(come, comes), (go, goes) = os.pipe(), os.pipe()\n"
        "os.write(comes, b'012')\n"
        "def sharing(path):\n"  # each waits at its first file until all three have one
        "    if not said:\n"
        "        said.append(os.read(come, 1))\n"
        "        if said == [b'2']: os.write(goes, b'...')\n"
        "        os.read(go, 1)\n"
        "    return real('nowhere' if path.endswith('gone') else path)\n"
        "hashing._open = sharing\n"
        "from aslab.cli import main\n"
        f"main(['demo', '--sums', {tree.name!r}])"
    )
    sums = python("-c", code, cwd=tree.parent)
    assert sums.stderr.decode() == f"aslab: cannot read '{tree.name}/gone': No such file or directory\n"
    assert sums.returncode == 1
    (tree / "gone").unlink()
    assert sums.stdout == aslab("demo", "--sums", tree.name, cwd=tree.parent).stdout


@pytest.mark.parametrize(
    ("differs", "number"),
    [
        ("nothing", _run.MOST),
        ("few files", 1),
        ("a fault", 1),
        ("a terminal", 1),
        ("a thread", 1),
        ("a system without affinity", 1),
        ("three processors", 3),
        ("room for two buffers", 2),
    ],
)
def test_there_is_a_process_for_each_processor_where_it_is_worth_it(
    differs: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = differs.__eq__
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=partial(on, "a terminal")))
    monkeypatch.setattr(threading, "active_count", lambda: 1 + on("a thread"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3 if on("three processors") else 99)))
    if on("a system without affinity"):
        monkeypatch.delattr(os, "sched_getaffinity")
    run = Run(Loop.ASYNCIO, ("latency:1ms",) * on("a fault"))
    settings = Settings(buffer=BUFFER, limit=BUFFER * (2 if on("room for two buffers") else 99), tasks=1)
    assert processes(run, settings, ["file"] * (_run.FROM - on("few files"))) == number


def test_processes_share_the_limit_and_one_is_no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    here, settings = os.getpid(), Settings(buffer=BUFFER, limit=BUFFER * 9, tasks=1)
    monkeypatch.setattr(_run, "perform", lambda run, settings, files: (settings.limit, os.getpid() == here))
    for number in (1, 2):
        results: list[Any] = [*perform_in(number, Run(Loop.ASYNCIO), settings, ["file"])]
        assert results == [(settings.limit // number, number == 1)] * number


def test_files_are_taken_in_parts_that_fit_a_pipe() -> None:
    files = list(map(str, range(FITS * 2 + 1)))
    with closing(FileQueue(files)) as queue:
        assert [queue.popleft() for _ in files] == files
        assert len(queue) > 0
        with pytest.raises(IndexError):
            queue.popleft()
        assert len(queue) == 0


class Forks:
    """Forks made in a test.

    :param here: called in this process after each of them
    :param there: called in each of them
    :param most: so many are made; the system refuses more
    """

    def __init__(self, here: Callable[[], object] = int, there: Callable[[], object] = int, most: int = 9) -> None:
        self.pids: list[int] = []
        self._fork = os.fork
        self._here, self._there = here, there
        self._most = most

    def __call__(self) -> int:
        if len(self.pids) == self._most:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.pids.append(self._fork())
        if self.pids[-1]:
            self._here()
            return self.pids[-1]
        try:
            self._there()
        except BaseException:
            os._exit(1)
        return 0

    def gone(self) -> bool:
        """Whether none is left, not even one to be reaped."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return False
        return True


def pause() -> None:
    while True:
        signal.pause()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """It raises KeyboardInterrupt, also in a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_workers_end_when_the_first_process_is_gone() -> None:
    read, write = os.pipe()

    def work() -> None:
        os.write(write, f"{os.getpid():9}".encode())
        pause()

    first = os.fork()
    if first == 0:
        try:
            in_processes(2, work)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb", buffering=0) as said:  # noqa: PTH123
        workers = [int(said.read(9)) for _ in range(2)]
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        ended = bool(select.select([said], [], [], 10)[0])
        if not ended:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
        assert ended, "only they had the other end open"
        assert said.read() == b""


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_right_after_a_fork_is_told_once_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        for one in ENDING:
            signal.raise_signal(one)

    monkeypatch.setattr(os, "fork", Forks(there=end))
    assert in_processes(2, lambda: "as if nothing had come") == ["as if nothing had come"] * 2
    forks = Forks(here=partial(signal.raise_signal, signal.SIGINT))  # to this thread: in tests there are others
    monkeypatch.setattr(os, "fork", forks)
    with pytest.raises(KeyboardInterrupt):
        in_processes(2, pause)
    assert len(forks.pids) == 2
    assert forks.gone()


@pytest.mark.parametrize("most", [0, 1])
def test_where_the_system_refuses_a_process_fewer_do_the_work(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes: list[Path] = []
    make = os.pipe

    def pipe() -> tuple[int, int]:
        both = make()
        pipes.append(Path(f"/proc/self/fd/{both[0]}").readlink())
        return both

    monkeypatch.setattr(os, "pipe", pipe)
    monkeypatch.setattr(os, "fork", Forks(most=most))
    (pid,) = in_processes(3, os.getpid)
    assert (pid == os.getpid()) == (most == 0)
    assert pipes
    assert not opened(pipes)


@pytest.mark.parametrize("ended", ["was killed", "failed"])
def test_a_worker_that_ends_early_is_told_at_once_and_none_is_left(
    ended: str, tree: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    forks = Forks()

    def work(*_: object) -> None:
        if len(forks.pids) == 2 and ended == "failed":
            raise ValueError("no")
        if len(forks.pids) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        pause()

    monkeypatch.setattr(os, "fork", forks)
    monkeypatch.setattr("aslab.cli._demo._once.processes", lambda *_: 3)
    monkeypatch.setattr("aslab.cli._demo._run.perform", work)
    assert print_sums([os.fspath(tree)]) == 1
    told = capfd.readouterr().err.splitlines()
    assert told[-1] == f"aslab: a worker process {ended}"
    assert told[:-1] == [] or "ValueError: no" in told
    assert len(forks.pids) == 3
    assert forks.gone()


def opened(names: Sequence[Path]) -> bool:
    """Whether one of them is open in this process, by what ``/proc/self/fd`` calls it.

    Others come and go: the garbage collector, or a thread of another test, closes what nobody counts on.
    """
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if fd.readlink() in names:
                return True
    return False


def test_a_hasher_that_is_given_up_closes_its_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aslab.cli._demo._hashing.CALL", -1.0)
    large = tree / "large"
    with closing(Hasher(deque([os.fspath(large)]))) as hasher:
        hasher.go_on(memoryview(bytearray(BUFFER)))
        assert opened([large])
    assert not opened([large])


def test_no_file_is_found_twice(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    deep = os.fspath(tree / "deep")
    found = find_files([".", "large", "./large", deep, "deep/", os.fspath(tree)])
    assert len(found.files) == len(files_in(tree))


def test_a_symlinked_folder_is_walked_only_if_it_is_named(tree: Path) -> None:
    assert not [file for file in find_files([os.fspath(tree)]).files if "link to a folder" in file]
    assert len(find_files([os.fspath(tree / "link to a folder")]).files) == 40


def test_what_the_kernel_makes_up_is_passed_over(tree: Path) -> None:
    (tree / "mounts").symlink_to("/proc/self/mounts")
    found = find_files([os.fspath(tree), "/proc/self/fdinfo"])
    assert len(found.files) == len(files_in(tree))
    assert not found.unreadable


def test_broken_symlinks_are_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for name, target in {"dangling": "nowhere", "loop": "loop", "through a file": "file/name"}.items():
        (tmp_path / name).symlink_to(target)
    assert find_files([os.fspath(tmp_path)]) == Found([f"{tmp_path}/file"], broken=3)
    finished = aslab("demo", "--act", "3", tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert b"3. SHA-256 of 1 file (3 broken links skipped): " in finished.stdout


def test_a_folder_that_cannot_be_listed_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    (one,) = find_files([os.fspath(tmp_path)]).unreadable
    assert (one.path, one.error) == (os.fspath(tmp_path), "Permission denied")


def test_a_file_that_vanishes_after_the_check_is_unreadable(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "gone")
    assert [one.path for one in find_files([path]).unreadable] == [path]
    with pytest.raises(BadInput, match="No such file"):
        check_paths([path])


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4096", 4096), ("64KiB", 65536), ("64k", 65536), ("1M", 2**20), ("1MiB", 2**20), ("1gib", 2**30)],
)
def test_sizes_are_read(text: str, nbytes: int) -> None:
    assert parse_size("buffer", text, 2**30) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "1MB", "1iB", "M", "2G", "9" * 99, "\uff11"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="buffer"):
        parse_size("buffer", text, 2**30)


def test_sizes_are_written() -> None:
    assert [format_size(size) for size in (0, 517, 1024, 1536, 2**20, 33.2 * 2**20, 250.4 * 2**30)] == [
        "0 B",
        "517 B",
        "1 KiB",
        "1.5 KiB",
        "1 MiB",
        "33.2 MiB",
        "250 GiB",
    ]
