"""The command line, run as users run it: in a process of its own, on real files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest
from rich.progress import Progress

from aslab import ConfigError
from aslab._checks import format_size, parse_size
from aslab.cli._demo._files import File, Found, check_paths, find_files
from aslab.cli._demo._hashing import BYTES_MOST, Batch, Done, batches
from aslab.cli._demo._progress import progress_bar
from aslab.cli._errors import BadInput

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


def runs_of(finished: Finished, code: int = 0) -> list[dict[str, Any]]:
    assert finished.returncode == code, finished.stderr.decode()
    answer = json.loads(finished.stdout)
    assert set(answer) == {"runs", "checksums_equal"}
    assert answer["checksums_equal"] is True
    runs: list[dict[str, Any]] = answer["runs"]
    return runs


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


def test_json_tells_what_a_healthy_run_did(tree: Path) -> None:
    (run,) = runs_of(aslab("demo", "--json", "--loop", "trio", *SMALL, tree))
    files = files_in(tree)
    assert run.pop("seconds") > 0
    assert run.pop("bytes_per_second") > 0
    waited, median, longest = run.pop("waited"), run.pop("wait_median"), run.pop("wait_longest")
    assert 0 < waited <= run["allocations"]
    assert run["allocations"] >= len(files)  # more tasks than files, so none shares a call with another
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
    (run,) = runs_of(aslab("demo", "--json", "--loop", "asyncio", tmp_path))
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
    (run,) = runs_of(aslab("demo", "--json", "--inject", fault, *SMALL, tree))
    assert run["injected"] == [fault]
    assert run["files"] == len(files_in(tree))
    assert run["resumed"] is resumed


def test_emergency_objects_carry_the_service_over_a_stuck_grow(tree: Path) -> None:
    finished = aslab("demo", "--json", "--inject", "deadlock", *SMALL, tree)
    (run,) = runs_of(finished)
    assert finished.stderr == b""
    assert run["emergency_used"] == run["allocations"] >= run["waited"] > 0
    assert 0 < run["emergency_max"] <= 256 // 16
    assert run["deadlocks"] == 1


def test_faults_stack(tree: Path) -> None:
    faults = ("--inject", "latency:10ms", "--inject", "failslab:probability=20,seed=3")
    (run,) = runs_of(aslab("demo", "--json", *faults, *SMALL, tree))
    assert run["injected"] == ["latency:10ms", "failslab:probability=20,seed=3"]


def test_by_default_it_runs_three_times_and_recovers(tree: Path) -> None:
    runs = runs_of(aslab("demo", "--json", *SMALL, tree))
    assert [(run["loop"], run["injected"]) for run in runs] == [
        ("asyncio", []),
        ("trio", []),
        ("asyncio", ["deadlock:3s"]),
    ]
    assert [run["resumed"] for run in runs] == [True, True, True]
    assert runs[2]["emergency_used"] > 0


def test_people_get_the_figures_and_the_table(tree: Path) -> None:
    finished = aslab("demo", "--inject", "deadlock:300ms", *SMALL, tree)
    assert finished.returncode == 0
    assert finished.stderr == b""
    text = finished.stdout.decode()
    for word in ("1. asyncio, deadlock:300ms", "median", "growth was late once", "back to normal"):
        assert word in text
    assert "\x1b" not in text


def test_the_last_word_is_a_verdict(tree: Path) -> None:
    text = aslab("demo", *SMALL, tree).stdout.decode()
    verdict = " ".join(text.split("\n\n")[-1].split())
    number = len(files_in(tree))
    assert verdict == (
        f"Verdict: all is well. Each of the 3 runs read {number} files and got the same checksums. "
        "When no slab arrived in time, tasks continued with emergency objects, until slabs arrived again."
    )


def test_the_verdict_names_what_is_not_well(tree: Path) -> None:
    (tree / "broken link").symlink_to("nowhere")
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
    finished = aslab("demo", tmp_path)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert finished.stdout == b"There are no files to read, so nothing was run.\n"


def test_the_table_of_spl_is_shown_on_demand(tree: Path) -> None:
    plain, table = (aslab("demo", "--loop", "asyncio", *SMALL, *more, tree).stdout for more in ((), ("--table",)))
    assert b"slabsize" not in plain
    assert b"\nchunks   " in table


def test_without_a_path_it_reads_the_standard_library_alone() -> None:
    code = (
        "import aslab.cli._demo._command as demo\n"
        "def stop(where, skip): print(where, skip); raise SystemExit\n"
        "demo.find_files = stop\n"
        "from aslab.cli import main; main(['demo', '--loop', 'asyncio'])"
    )
    finished = python("-c", code)
    assert sysconfig.get_path("stdlib").encode() in finished.stdout
    assert b"site-packages" in finished.stdout


def test_a_file_that_cannot_be_read_is_named_and_skipped(tree: Path) -> None:
    (tree / "broken\nlink").symlink_to("nowhere")
    finished = aslab("demo", "--json", "--loop", "asyncio", *SMALL, tree)
    (run,) = runs_of(finished, code=1)
    assert run["files"] == len(files_in(tree))
    assert run["unreadable"] == [{"path": f"{tree}/broken\nlink", "error": "No such file or directory"}]
    assert finished.stderr.decode() == f"aslab: cannot read '{tree}/broken\\nlink': No such file or directory\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named_and_skipped(tree: Path) -> None:
    (tree / "empty").chmod(0)
    (run,) = runs_of(aslab("demo", "--json", "--loop", "asyncio", tree), code=1)
    assert run["unreadable"] == [{"path": f"{tree}/empty", "error": "Permission denied"}]


def test_an_error_while_reading_is_told_and_the_others_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "bad").write_bytes(b"bad")
    code = (
        "import errno, os, aslab.cli._demo._hashing as hashing\n"
        "def fail(fd, *others):\n"
        "    if os.path.samestat(os.fstat(fd), os.stat('bad')): raise OSError(errno.EIO, os.strerror(errno.EIO))\n"
        "    return real(fd, *others)\n"
        "real, hashing._read_and_hash = hashing._read_and_hash, fail\n"
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
        ("trio", ("demo",)),
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


def test_the_version_is_told() -> None:
    assert aslab("--version").stdout.startswith(b"aslab ")


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


def test_small_files_go_together_and_a_large_one_alone() -> None:
    small, large = [File("small", 1000)] * 1000, File("large", BYTES_MOST + 1)
    assert [len(batch) for batch in batches([*small, large, *small], 2)] == [64] * 15 + [40, 1] + [64] * 15 + [40]
    assert [len(batch) for batch in batches([File("middling", BYTES_MOST // 2)] * 16, 1)] == [2] * 8
    assert [len(batch) for batch in batches(small, 50)] == [5] * 200  # each task gets its share
    assert not list(batches([], 1))


def test_a_call_ends_in_time_even_within_a_file_and_else_with_the_batch(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [File(os.fspath(tree / name), 0) for name in ("empty", "missing", "large", "exactly one buffer")]
    expected = {
        file.path: hashlib.sha256(Path(file.path).read_bytes()).hexdigest() for file in files[::2] + files[3:]
    }
    for seconds in (-1.0, math.inf):
        monkeypatch.setattr("aslab.cli._demo._hashing.CALL", seconds)
        batch, calls = Batch(files), [Done()]
        while not calls[-1].over:
            calls.append(batch.go_on(memoryview(bytearray(BUFFER))))
        # empty: open and read; missing; large: open, 5 full reads and a short one; the last: open, 1 and 1; over
        assert len(calls[1:]) == (2 + 1 + 7 + 3 + 1 if seconds < 0 else 1)
        assert {path: digest for done in calls for path, digest in done.sums.items()} == expected
        assert [one.error for done in calls for one in done.unreadable] == ["No such file or directory"]
        assert sum(done.nbytes for done in calls) == 6 * BUFFER + 3


def test_a_batch_that_is_given_up_closes_its_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aslab.cli._demo._hashing.CALL", -1.0)
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir()))
    with closing(Batch([File(os.fspath(tree / "large"), 0)])) as batch:
        batch.go_on(memoryview(bytearray(BUFFER)))
        assert len(list(folder.iterdir())) == before + 1
    assert len(list(folder.iterdir())) == before


def test_no_file_is_found_twice(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    deep = os.fspath(tree / "deep")
    found = find_files([".", "large", "./large", deep, "deep/", os.fspath(tree)])
    assert len(found.files) == len(files_in(tree))


def test_a_symlinked_folder_is_walked_only_if_it_is_named(tree: Path) -> None:
    assert not [file for file in find_files([os.fspath(tree)]).files if "link to a folder" in file.path]
    assert len(find_files([os.fspath(tree / "link to a folder")]).files) == 40


def test_what_the_kernel_makes_up_is_passed_over(tree: Path) -> None:
    (tree / "mounts").symlink_to("/proc/self/mounts")
    found = find_files([os.fspath(tree), "/proc/self/fdinfo"])
    assert len(found.files) == len(files_in(tree))
    assert not found.unreadable


def test_progress_goes_no_further_than_its_end_where_files_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, float]] = []
    monkeypatch.setattr(Progress, "update", lambda bar, task, **fields: shown.append(fields))
    with progress_bar("growing", Found([File("log", 100)])) as advance:
        advance(60, 0)
        advance(60, 1)
    assert [(one["completed"], one["total"], one["files"]) for one in shown] == [(60, 100, 0), (120, 120, 1)]


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
