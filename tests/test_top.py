"""Statistics at a socket, and the command that shows them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import socket
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from rich.console import Console
from textual.widgets import DataTable, Static

from aslab import _answering, _unix
from aslab._snapshots import snapshot_json
from aslab.cli._errors import BadInput
from aslab.cli._top import _command, _source
from aslab.cli._top._rows import Order, cells, heading, holders_of, rows_of, seconds, sparkline
from aslab.cli._top._screen import KEYS, TITLES, Top
from aslab.cli._top._source import ask
from aslab.cli._top._text import LATE, SPARK, fitting, print_table

from .support import SIZE, Gate, allocator
from .test_cli import told

Here = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may come late from a busy machine."""
    monkeypatch.setattr(_source, "PATIENCE", 60.0)


def raises(error: type[Exception]) -> Callable[[object], bool]:
    def call(_: object) -> bool:
        raise error

    return call


def snapshot() -> dict[str, Any]:
    """A late cache, and a quiet one that has more objects."""

    async def main() -> dict[str, Any]:
        async with allocator(slabs=Gate(), grow_timeout=0.01, kick_after=None) as kmem:
            quiet = kmem.create_cache("quiet", SIZE)
            late = kmem.create_cache("late", 2 * SIZE, holders_sample=1)
            held = [late.alloc_nowait() if n else await late.alloc() for n in range(2)]
            assert quiet.stats().obj_held == 0
            found = json.loads(snapshot_json(kmem.stats(), kmem.holders()))
            for buf in held:
                buf.free()
        cache = found["stats"]["caches"][0]
        cache.update(obj_total=8, slab_total=1)
        for held_by in found["holders"]:
            held_by["seconds"] = 0.012  # however long it took to look
        return dict(found)

    return anyio.run(main)


class TestServing:
    pytestmark = pytest.mark.anyio

    async def test_an_answer_comes_while_the_loop_is_blocked_and_only_for_the_time_of_the_block(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "stats"
        answers: list[dict[str, Any]] = []
        async with allocator() as kmem:
            cache = kmem.create_cache("frames", SIZE)
            async with kmem.serve_stats(path), cache.lease():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                with pytest.raises(FileExistsError):
                    async with kmem.serve_stats(path):
                        pass
                thread = threading.Thread(target=lambda: answers.append(ask(path)))
                thread.start()
                thread.join(60)  # blocks the loop
            assert not path.exists()
        (answer,) = answers
        assert (answer["version"], answer["pid"], answer["health"]["state"]) == (1, os.getpid(), "ok")
        (found,) = answer["stats"]["caches"]
        assert (found["name"], found["obj_held"]) == ("frames", 1)
        assert "aslab stats" not in {thread.name for thread in threading.enumerate()}

    async def test_clients_of_others_and_clients_that_do_not_read_keep_nobody_from_an_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(_answering, "PATIENCE", 3600.0)
        large = b"x" * 2**22
        path = tmp_path / "stats"

        def read(sock: socket.socket) -> int:
            sock.setblocking(True)
            with contextlib.suppress(BrokenPipeError):  # it was refused
                sock.sendall(b"\n")
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := sock.recv(2**20):
                    got += len(piece)
            return got

        def write(sock: socket.socket) -> None:
            sock.setblocking(True)
            sock.sendall(b"\n")
            sock.sendall(large)  # nobody reads it

        async with _answering.answering(path, lambda request: large):
            with _unix.dial(path) as silent, _unix.dial(path) as reader:
                silent.sendall(b"\n")
                assert await to_thread.run_sync(read, reader) == len(large)
                with monkeypatch.context() as patch:
                    patch.setattr(_unix, "ours", lambda sock: False)
                    with _unix.dial(path) as stranger:
                        assert await to_thread.run_sync(read, stranger) == 0
                with monkeypatch.context() as patch:
                    patch.setattr(_unix, "ours", raises(ConnectionResetError))
                    with _unix.dial(path) as gone:
                        assert await to_thread.run_sync(read, gone) == 0
                with monkeypatch.context() as patch:
                    patch.setattr(_answering, "PATIENCE", 0.01)
                    with _unix.dial(path) as dropped, pytest.raises((BrokenPipeError, ConnectionResetError)):
                        await to_thread.run_sync(write, dropped)
                assert silent.recv(1) == b"x"
                with _unix.dial(path) as another:
                    assert await to_thread.run_sync(read, another) == len(large)
                late = silent.dup()  # does not read on, and the block ends all the same
        late.close()
        assert "refused" in caplog.text

    async def test_only_a_whole_request_is_answered(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_answering, "SILENCE", 0.01)
        path, sent = tmp_path / "stats", threading.Event()
        accept = _unix.accept

        def accept_then(listener: socket.socket) -> socket.socket:
            sock = accept(listener)
            sent.wait(60)  # its time begins when it has sent: what came later would be taken for silence
            return sock

        monkeypatch.setattr(_unix, "accept", accept_then)

        def send(request: bytes, *, end: bool = False) -> bytes:
            sent.clear()
            with _unix.dial(path) as sock:
                sock.setblocking(True)
                sock.sendall(request)
                if end:
                    sock.shutdown(socket.SHUT_WR)
                sent.set()
                with contextlib.suppress(ConnectionResetError):
                    return sock.recv(100)
                return b""

        async with _answering.answering(path, lambda request: f"<{request}>".encode()):
            for request, answer in (
                (b"", b"<>"),
                (b"one\ntwo", b"<one>"),
                (b"stuck 3", b""),
                (b"x" * 300 + b"\n", b""),
            ):
                assert await to_thread.run_sync(send, request) == answer
            for request, answer in ((b"", b"<>"), (b"stuck 3", b""), (b"stuck 3s\n", b"<stuck 3s>")):
                assert await to_thread.run_sync(partial(send, request, end=True)) == answer

    async def test_those_that_have_left_are_not_served_and_all_that_ask_at_once_get_one_answer(
        self, tmp_path: Path
    ) -> None:
        asked = list[str]()
        busy, go_on = threading.Event(), threading.Event()

        def answer(request: str) -> bytes:
            asked.append(request)
            if request == "first":
                busy.set()
                go_on.wait(60)
            return f"<{request}>".encode()

        path = tmp_path / "stats"
        with contextlib.ExitStack() as stack:

            def send(request: bytes) -> socket.socket:
                sock = stack.enter_context(_unix.dial(path))
                sock.sendall(request)
                return sock

            async with _answering.answering(path, answer):
                send(b"first\n")
                await to_thread.run_sync(busy.wait, 60)
                for request in (b"fault growth stuck\n", b"fault growth stuck ", b"\n", b""):
                    send(request).close()
                stay = [send(request) for request in (b"\n", b"again\n", b"\n", b"again\n", b"\n")]
                go_on.set()
                for sock in stay:
                    await anyio.wait_readable(sock)
                answers = [sock.recv(100) for sock in stay]
        assert answers == [b"<>", b"<again>", b"<>", b"<again>", b"<>"]
        assert sorted(asked) == ["", "again", "again", "first"]

    async def test_a_child_made_by_fork_keeps_nobody_in_the_block(self, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        async with allocator() as kmem:
            async with kmem.serve_stats(tmp_path / "stats"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # as there are threads
                    child = os.fork()
                if not child:
                    os.close(writing)
                    os.read(reading, 1)
                    os._exit(0)
            os.close(reading)
            os.close(writing)  # the child lives until here
        await to_thread.run_sync(os.waitpid, child, 0)


class TestStopped:
    """A service that was stopped by a signal takes no connection, or answers none."""

    @pytest.fixture
    def stopped(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "stats"
        with contextlib.ExitStack() as stack:
            stack.enter_context(_unix.listen(path)).listen(0)
            with contextlib.suppress(OSError):
                while True:
                    stack.enter_context(_unix.dial(path, 0.001))
            yield path

    def test_top_says_so_and_its_place_is_in_use(self, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_source, "PATIENCE", 0.01)
        with pytest.raises(BadInput, match=r"no answer came within|refused"):  # macOS refuses
            ask(stopped)
        if sys.platform == "linux":
            with pytest.raises(FileExistsError):
                _unix.listen(stopped)

    def test_a_command_whose_answer_is_lost_is_said_to_be_in_doubt(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_source, "PATIENCE", 0.01)
        path = tmp_path / "stats"
        with _unix.listen(path):
            with pytest.raises(BadInput, match=r"no answer came within 0\.01 s; it may be done all the same"):
                ask(path, "fault growth stuck")
            with pytest.raises(BadInput, match=r"no answer came within 0\.01 s$"):
                ask(path)
        answers = _answering.Answers(path := tmp_path / "other", lambda request: b"")
        answers.start()
        try:
            monkeypatch.setattr(_source, "PATIENCE", 10.0)
            with pytest.raises(BadInput, match="ended without an answer; it may be done all the same"):
                ask(path, "fault growth stuck")
        finally:
            answers.stop()


class TestCommand:
    def test_once_json_and_sorting_without_textual(
        self, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = snapshot()
        path = tmp_path / "stats"
        answers = _answering.Answers(path, lambda request: json.dumps(found).encode())
        answers.start()
        try:
            lines = here("top", path, "--once").stdout.decode().splitlines()
            assert lines[0] == f"process {os.getpid()} is degraded"
            assert lines[1] == "slabs 0 B, emergency objects 16 KiB"
            assert lines[2].startswith("- cache 'late': growth has been late for ")
            assert lines[3].split() == list(cells(rows_of(found, Order.NAME)[0]))
            assert [line.split()[:4] for line in lines[4:6]] == [
                ["quiet", "8", "0", "0%"],
                ["late", "2", "2", "100%"],
            ]
            assert lines[5].split()[-1] == "DEADLOCKED"
            assert lines[6].split() == ["HELD", "CACHE", "BY", "ALLOCATED", "AT"]
            assert sum("ms late " in line for line in lines[7:]) == 2
            assert "test_top.py" in "".join(lines[7:]).replace(" ", "")
            assert max(map(len, lines[3:])) <= 80
            by_use = here("top", path, "--once", "-s", "u").stdout.decode().splitlines()
            assert [line.split()[0] for line in by_use[4:6]] == ["late", "quiet"]
            assert json.loads(here("top", path, "--json").stdout) == found
            monkeypatch.delitem(sys.modules, "aslab.cli._top._screen")
            monkeypatch.setitem(sys.modules, "textual.app", None)
            assert here("top", path).stdout.decode().splitlines() == lines  # there is no terminal
            monkeypatch.setattr(_command, "at_a_terminal", lambda: True)
            assert told(here("top", path), 2).startswith("aslab: aslab top needs the extra 'top'")
        finally:
            answers.stop()
        gone = here("top", path, "--once")
        assert gone.returncode == 2
        assert gone.stderr.decode().startswith(
            f"aslab: '{path}': No such file or directory; it must be the socket"
        )

    @pytest.mark.parametrize("answer", [b"", b"hello", b"[]", b"{}", b'{"version": 2}'])
    def test_whatever_else_listens_there_is_refused(self, tmp_path: Path, answer: bytes) -> None:
        answers = _answering.Answers(tmp_path / "stats", lambda request: answer)
        answers.start()
        try:
            with pytest.raises(BadInput, match=r"no statistics|another version"):
                ask(tmp_path / "stats")
        finally:
            answers.stop()

    @pytest.mark.parametrize("order", list(Order))
    def test_each_order_puts_the_largest_first_and_names_from_a(self, order: Order) -> None:
        names = [row.name for row in rows_of(SNAPSHOT, order)]
        late_first = {Order.ACTIVE, Order.NAME, Order.SIZE, Order.USE}
        ties = {Order.WAIT, Order.ACTIVE_SLABS}
        assert names == (["late", "quiet"] if order in late_first | ties else ["quiet", "late"])

    def test_faults_that_are_on_stand_above_the_table(self) -> None:
        found = json.loads(json.dumps(SNAPSHOT))
        found["stats"]["faults"] = ["growth stuck"]
        assert heading(found)[-1] == "- fault on: growth stuck"
        assert heading(SNAPSHOT)[-1].startswith("- cache 'late'")

    def test_the_screen_is_for_three_streams_that_are_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        streams, (other, end) = ("stdin", "stdout", "stderr"), pty.openpty()
        with os.fdopen(end, "w") as terminal, os.fdopen(other):
            for one in streams:
                monkeypatch.setattr(sys, one, terminal)
            assert _command.at_a_terminal()
            for one in streams:
                for none in (None, io.StringIO()):
                    with monkeypatch.context() as patch:
                        patch.setattr(sys, one, none)
                        assert not _command.at_a_terminal()

    def test_what_others_chose_does_nothing_to_the_terminal(self) -> None:
        evil = "\x1b]0;owned\x07ü\nprocess 1 is ok"
        found = json.loads(json.dumps(SNAPSHOT))
        found["holders"] = [{"seconds": 1, "cache": evil, "task": evil, "place": evil}]
        found["stats"]["caches"][0]["name"] = found["health"]["reasons"][0] = evil
        found["stats"]["faults"] = [evil]
        out = Console(file=io.StringIO(), width=120)
        print_table(out, heading(found), rows_of(found, Order.NAME), holders_of(found))
        printed = out.file.getvalue()  # type: ignore[attr-defined]
        assert all(line.isprintable() for line in printed.splitlines())
        assert printed.replace("\n", "").count("\\x1b]0;owned\\x07ü\\n") == 6

    @pytest.mark.parametrize(
        ("room", "letters", "columns"),
        [
            (200, 100, "NAME OBJS ACTIVE USE SIZE SLABS MEMORY EMERG WAIT OLDEST STATE LATELY"),
            (79, 18, "NAME ACTIVE USE MEMORY EMERG WAIT OLDEST STATE LATELY"),
            (79, 100, "NAME ACTIVE USE MEMORY EMERG WAIT OLDEST STATE LATELY"),
            (40, 18, "NAME ACTIVE WAIT STATE"),
            (5, 18, "NAME"),
        ],
    )
    def test_the_name_is_always_there_and_what_matters_most_at_80_columns(
        self, room: int, letters: int, columns: str
    ) -> None:
        (late, _) = rows_of(SNAPSHOT, Order.NAME)
        found = fitting([cells(late) | {"NAME": "x" * letters, SPARK: "█" * 10}], room)
        assert list(found) == columns.split()
        assert sum(width + 1 for width in found.values()) <= room
        assert found["NAME"] >= min(16, room - 1)
        assert found.get("STATE", 10) == 10

    def test_a_name_is_wrapped_in_a_narrow_table(self) -> None:
        found = json.loads(json.dumps(SNAPSHOT).replace('"late"', f'"{"x" * 30}"'))
        out = Console(file=io.StringIO(), width=40)
        print_table(out, [], rows_of(found, Order.NAME))
        lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert lines[0].split() == ["NAME", "ACTIVE", "WAIT", "STATE"]
        assert max(map(len, lines)) <= 40
        assert "".join(lines).count("x") == 30

    def test_figures_are_short(self) -> None:
        assert [seconds(value) for value in (0.0123, 5, 125, 7300)] == ["12ms", "5.0s", "2m", "2h"]
        assert sparkline([0, 1, 8, 100]) == " ▁▁█"
        assert sparkline([0, 0]) == "  "


SNAPSHOT = snapshot()


class TestScreen:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"  # Textual's only loop

    async def test_it_shows_sorts_refreshes_and_outlives_the_service(self) -> None:
        answers: list[dict[str, Any] | BadInput] = [SNAPSHOT]

        def answer() -> dict[str, Any]:
            found = answers[-1]
            if isinstance(found, BadInput):
                raise found
            return found

        screen = Top(answer, 3600.0, Order.OBJECTS, SNAPSHOT)
        async with screen.run_test(size=(120, 30)) as pilot:
            table, head = screen.query_one(DataTable), screen.query_one("#heading", Static)
            holders = screen.query_one("#holders", Static)
            assert holders.size.height >= 3  # the headings, and two that may be wrapped

            def shown() -> list[str]:
                return [str(table.get_row_at(number)[0]).strip() for number in range(table.row_count)]

            assert shown() == ["quiet", "late"]
            assert table.get_cell("late", "NAME").style == LATE
            assert table.get_cell("quiet", "NAME").style == ""
            await pilot.press("u")
            assert shown() == ["late", "quiet"]
            later = json.loads(json.dumps(SNAPSHOT))
            later["stats"]["caches"][0]["obj_held"] = 4
            later["holders"] = []
            later["health"] = {"state": "stuck", "reasons": ["because"]}
            answers.append(later)
            await pilot.press("space")
            await screen.workers.wait_for_complete()
            await pilot.pause()
            assert str(table.get_cell("quiet", "ACTIVE")) == "     4 "
            assert str(table.get_cell("quiet", SPARK)) == " █         "
            assert "stuck" in str(head.render())
            assert holders.size.height < 2
            answers.append(BadInput("nobody"))
            await pilot.press("space")
            await screen.workers.wait_for_complete()
            await pilot.pause()
            assert "no answer any more, these are the last figures: nobody" in str(head.render())
            assert shown() == ["late", "quiet"]
            await pilot.press("q")
        assert screen.return_code == 0

    async def test_all_that_matters_and_all_keys_fit_80_columns_and_ctrl_c_ends_it(self) -> None:
        found = json.loads(json.dumps(SNAPSHOT).replace('"late"', '"uploads-thumbnails"'))
        screen = Top(lambda: SNAPSHOT, 3600.0, Order.OBJECTS, found)
        async with screen.run_test(size=(120, 24)) as pilot:
            table, keys = screen.query_one(DataTable), screen.query_one("#keys", Static)
            assert len(table.columns) == 12
            await pilot.resize_terminal(80, 24)
            await pilot.pause()
            shown = [str(key.value) for key in table.columns]
            assert shown == ["NAME", "ACTIVE", "USE", "MEMORY", "EMERG", "WAIT", "OLDEST", "STATE", SPARK]
            assert str(table.get_cell("uploads-thumbnails", "STATE")) == "DEADLOCKED "
            assert table.virtual_size.width <= 79
            assert keys.size.height == 2
            assert all(f"{order.value} {title}" in str(KEYS) for order, title in TITLES.items())
            await pilot.resize_terminal(40, 24)
            await pilot.pause()
            assert str(table.get_cell("uploads-thumbnails", "NAME")) == "uploads-thumbnails "
            assert table.size.height >= 3  # the headings, and both rows
            await pilot.resize_terminal(12, 24)
            await pilot.pause()
            assert str(table.get_cell("uploads-thumbnails", "NAME")) == "uploads-t… "
            await pilot.press("ctrl+c")
        assert screen.return_code == 0
