"""Sources of memory pressure: what they hear from the kernel, and that they leave nothing behind."""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aslab import GFP, ConfigError
from aslab.backends._libc import PAGE_SIZE
from aslab.emulation import Block, PhysicalMemory
from aslab.emulation._shrinker import Shrinker
from aslab.pressure import Cgroup, Psi, Source
from aslab.pressure._cgroup import find_directory
from aslab.pressure._inotify import DELETE, MODIFY, Inotify
from aslab.pressure._psi import arm

from .helpers import Loop, join_late_threads
from .support import settle, start

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify, epoll and cgroups are Linux'")
PRESSURE = "/proc/pressure/memory"
UNIFIED = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


class Heard:
    """What was asked for, to be waited for."""

    def __init__(self) -> None:
        self.asked: list[int | None] = []
        self._event = anyio.Event()

    def __call__(self, nbytes: int | None) -> None:
        self.asked.append(nbytes)
        self._event.set()

    async def next(self) -> int | None:
        """The first that was not told yet; each is told once."""
        with anyio.fail_after(60):
            while not self.asked:
                self._event = anyio.Event()
                await self._event.wait()
        return self.asked.pop(0)


async def ended(source: Source, heard: Heard) -> None:
    """Run it; it has to end by itself."""
    with anyio.fail_after(60):
        await source.run(heard)


def open_files() -> set[str]:
    """What this process has open, by number and target."""
    join_late_threads()  # of earlier tests
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            found.add(f"{link.name} {link.readlink()}")
    return found


class Group:
    """A directory with the files of a cgroup, to be written by the test."""

    def __init__(self, path: Path, *, current: int, high: str = "max", most: str = "max") -> None:
        self.path = path
        path.mkdir()
        self.counters = dict.fromkeys(("low", "high", "max", "oom", "oom_kill"), 0)
        (path / "memory.current").write_text(f"{current}\n")
        (path / "memory.high").write_text(f"{high}\n")
        (path / "memory.max").write_text(f"{most}\n")
        self.count()

    def count(self, **counters: int) -> None:
        """Set counters; the kernel's file changes as a whole, so this one does too."""
        self.counters |= counters
        text = "".join(f"{name} {count}\n" for name, count in self.counters.items())
        (self.path / "memory.events").write_text(text)

    def remove(self) -> None:
        for file in self.path.iterdir():
            file.unlink()
        self.path.rmdir()


@linux
class TestCgroup:
    @pytest.mark.parametrize("counter", ["high", "max", "oom"])
    async def test_a_counter_that_rises_asks_for_what_is_above_the_limit(
        self, tmp_path: Path, counter: str
    ) -> None:
        group, heard = Group(tmp_path / "group", current=70_000, high="65536", most="131072"), Heard()
        async with anyio.create_task_group() as tasks:
            await start(tasks, Cgroup(group.path).run, heard)
            group.count(**{counter: 1})
            assert await heard.next() == 70_000 - 65_536
            group.count(**{counter: 3})
            assert await heard.next() == 70_000 - 65_536
            tasks.cancel_scope.cancel()

    @pytest.mark.parametrize(
        ("current", "high", "most", "wanted"),
        [
            (70_000, "max", "65536", 4_464),
            (65_536, "max", "65536", None),
            (60_000, "65536", "50000", None),
            (70_000, "max", "max", None),
        ],
    )
    async def test_it_asks_for_everything_where_the_group_is_not_above_its_limit(
        self, tmp_path: Path, current: int, high: str, most: str, wanted: int | None
    ) -> None:
        group, heard = Group(tmp_path / "group", current=current, high=high, most=most), Heard()
        async with anyio.create_task_group() as tasks:
            await start(tasks, Cgroup(str(group.path)).run, heard)
            group.count(max=1)
            assert await heard.next() == wanted
            tasks.cancel_scope.cancel()

    async def test_other_counters_and_old_events_ask_for_nothing(self, tmp_path: Path) -> None:
        group, heard = Group(tmp_path / "group", current=70_000, high="65536"), Heard()
        group.count(high=7, oom=2)
        async with anyio.create_task_group() as tasks:
            await start(tasks, Cgroup(group.path).run, heard)
            group.count(low=1, oom_kill=1)
            group.count(oom=1)  # fewer than before
            (tmp_path / "beside").mkdir()
            (tmp_path / "beside").rmdir()
            await settle()
            assert heard.asked == []
            (group.path / "memory.current").write_text("65546\n")
            group.count(high=8)
            assert await heard.next() == 10
            group.count(low=2)  # the high one is told already
            await settle()
            assert heard.asked == []
            tasks.cancel_scope.cancel()

    async def test_what_happens_while_it_is_asked_is_heard_too(self, tmp_path: Path) -> None:
        group, heard = Group(tmp_path / "group", current=70_000, high="65536"), Heard()

        def meanwhile(nbytes: int | None) -> None:
            heard(nbytes)
            if group.counters["high"] == 1:
                group.count(high=2)

        async with anyio.create_task_group() as tasks:
            await start(tasks, Cgroup(group.path).run, meanwhile)
            group.count(high=1)
            await heard.next()
            await heard.next()
            tasks.cancel_scope.cancel()

    async def test_what_the_caller_raises_comes_out(self, tmp_path: Path) -> None:
        """An OSError too: only its own are taken for a group that is gone."""
        group = Group(tmp_path / "group", current=0)

        def failing(nbytes: int | None) -> None:
            raise OSError("the caller's own")

        async def watch() -> None:
            with pytest.raises(OSError, match="the caller's own"):
                await Cgroup(group.path).run(failing)

        async with anyio.create_task_group() as tasks:
            await start(tasks, watch)
            group.count(max=1)

    @pytest.mark.parametrize("told_by_the_file", [True, False])
    async def test_it_ends_when_the_group_is_removed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, told_by_the_file: bool
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        group, heard, before = Group(tmp_path / "group", current=0), Heard(), open_files()
        if not told_by_the_file:  # as the kernel's: what lives on elsewhere does not say that it is deleted
            (tmp_path / "kept").hardlink_to(group.path / "memory.events")
        async with anyio.create_task_group() as tasks:
            await start(tasks, ended, Cgroup(group.path), heard)
            group.remove()
        assert heard.asked == []
        assert "gone" in caplog.text
        assert open_files() <= before

    async def test_a_new_group_of_the_same_name_is_not_the_old_one(self, tmp_path: Path) -> None:
        group, heard = Group(tmp_path / "group", current=0), Heard()
        async with anyio.create_task_group() as tasks:
            await start(tasks, ended, Cgroup(group.path), heard)
            group.remove()
            Group(tmp_path / "group", current=0).count(high=5)
        assert heard.asked == []

    async def test_cancelled_it_holds_nothing_open(self, tmp_path: Path) -> None:
        group = Group(tmp_path / "group", current=0)
        before = open_files()
        async with anyio.create_task_group() as tasks:
            await start(tasks, Cgroup(group.path).run, Heard())
            assert len(open_files() - before) >= 2, "the group and the inotify"
            tasks.cancel_scope.cancel()
        assert open_files() <= before

    async def test_it_is_quietly_absent_where_there_is_no_such_group(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        before, heard = open_files(), Heard()
        await ended(Cgroup(tmp_path / "nowhere"), heard)
        await ended(Cgroup(tmp_path), heard)  # a group without a memory controller
        assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 2
        assert heard.asked == []
        assert open_files() <= before

    async def test_it_is_quietly_absent_where_the_system_has_no_inotify(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        monkeypatch.setattr("aslab.pressure._inotify._libc", object())
        group, before = Group(tmp_path / "group", current=0), open_files()
        await ended(Cgroup(group.path), Heard())
        assert "no inotify_init1 on this system" in caplog.text
        assert open_files() <= before

    async def test_by_default_it_is_the_group_of_this_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        group, heard = Group(tmp_path / "group", current=0), Heard()
        monkeypatch.setattr("aslab.pressure._cgroup.own_directory", lambda: str(group.path))
        async with anyio.create_task_group() as tasks:
            await start(tasks, Cgroup().run, heard)
            group.count(oom=1)
            assert await heard.next() is None
            tasks.cancel_scope.cancel()
        monkeypatch.undo()
        monkeypatch.setattr("aslab.pressure._cgroup.find_directory", lambda cgroup, mountinfo: None)
        await ended(Cgroup(), heard)
        assert "no cgroup v2 of this process" in caplog.text


V2 = "31 23 0:28 {root} {point} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "22 27 0:21 / /proc rw - proc proc rw\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


class TestFindingTheGroup:
    @pytest.mark.parametrize(
        ("path", "root", "point", "found"),
        [
            ("/", "/", "/sys/fs/cgroup", "/sys/fs/cgroup"),
            ("/a.slice/b.service", "/", "/sys/fs/cgroup", "/sys/fs/cgroup/a.slice/b.service"),
            ("/pod/box", "/pod/box", "/sys/fs/cgroup", "/sys/fs/cgroup"),
            ("/pod/box/in", "/pod/box", "/sys/fs/cgroup", "/sys/fs/cgroup/in"),
            ("/a:b c", "/", r"/mnt/my\040groups", "/mnt/my groups/a:b c"),
            ("/podium", "/pod", "/sys/fs/cgroup", None),
            ("/../other", "/", "/sys/fs/cgroup", None),
        ],
    )
    def test_it_is_below_the_mount_point_as_far_as_that_is_mounted(
        self, path: str, root: str, point: str, found: str | None
    ) -> None:
        cgroup = f"4:memory:/v1\n0::{path}\n"
        assert find_directory(cgroup, OTHERS + V2.format(root=root, point=point)) == found

    def test_there_is_none_without_a_v2_hierarchy_or_its_mount(self) -> None:
        assert find_directory("4:memory:/v1\n", OTHERS + V2.format(root="/", point="/c")) is None
        assert find_directory("0::/a\n", OTHERS) is None

    def test_the_first_mount_that_has_it_counts(self) -> None:
        mounts = V2.format(root="/other", point="/one") + V2.format(root="/", point="/two")
        assert find_directory("0::/a\n", mounts) == "/two/a"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A real cgroup v2, where the test may make one."""
    root = next((path for path in UNIFIED if (path / "cgroup.controllers").exists()), None)
    if root is None:
        pytest.skip("no cgroup v2 is mounted")
    path = root / f"aslab-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as exc:
        pytest.skip(f"no cgroup may be made: {exc}")
    yield path
    if path.exists():
        path.rmdir()


def remove(cgroup: Path) -> None:
    cgroup.rmdir()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.send_signal(signal.SIGKILL)


@linux
class TestOnARealCgroup:
    async def test_files_of_the_kernel_tell_their_changes(
        self, cgroup: Path, child: subprocess.Popen[bytes]
    ) -> None:
        events = cgroup / "cgroup.events"
        with Inotify() as inotify, anyio.fail_after(60):
            inotify.watch(str(events), MODIFY)
            assert "populated 0" in events.read_text()
            (cgroup / "cgroup.procs").write_text(str(child.pid))
            await inotify.changed()
            assert "populated 1" in events.read_text()
            (cgroup.parent / "cgroup.procs").write_text(str(child.pid))
            await inotify.changed()
            assert "populated 0" in events.read_text()
            with anyio.move_on_after(0.02) as scope:
                await inotify.changed()
            assert scope.cancelled_caught, "each change was told once"

    async def test_the_removal_of_a_group_is_told_by_the_directory_above(self, cgroup: Path) -> None:
        with Inotify() as inotify, anyio.fail_after(60):
            inotify.watch(str(cgroup / ".."), DELETE)
            remove(cgroup)
            await inotify.changed()

    async def test_a_trigger_of_the_group_ends_with_it(
        self, cgroup: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        path, heard = cgroup / "memory.pressure", Heard()
        try:
            os.close(arm(str(path), "some 150000 2000000"))
        except OSError as exc:
            pytest.skip(f"no trigger may be set: {exc}")
        async with anyio.create_task_group() as tasks:
            await start(tasks, ended, Psi(path=path), heard)
            assert caplog.text == ""
            remove(cgroup)
        assert "gone" in caplog.text
        assert heard.asked == []


Urgent = tuple[Psi, socket.socket, Callable[[], int]]


@pytest.fixture
def urgent() -> Iterator[Urgent]:
    """A Psi whose trigger is a socket: out-of-band data is what makes it report POLLPRI.

    With the peer, and a function that takes the data, as the kernel takes a trigger's event.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    psi, fd = Psi(), receiver.fileno()
    psi._arm = lambda path, trigger: os.dup(fd)
    with peer, receiver:
        receiver.setblocking(False)
        yield psi, peer, lambda: len(receiver.recv(1, socket.MSG_OOB))


@linux
class TestPsi:
    async def test_each_event_asks_for_everything_once(self, urgent: Urgent) -> None:
        psi, peer, take = urgent
        heard = Heard()

        def on_pressure(nbytes: int | None) -> None:
            take()
            heard(nbytes)

        async with anyio.create_task_group() as tasks:
            await start(tasks, psi.run, on_pressure)
            assert heard.asked == []
            for _ in range(3):
                peer.send(b"!", socket.MSG_OOB)
                assert await heard.next() is None
                await settle()
                assert heard.asked == []
            tasks.cancel_scope.cancel()

    async def test_the_loops_waking_up_is_the_event_though_nothing_is_left_of_it(
        self, urgent: Urgent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A trigger gives its event to whoever looks first, and that is the loop."""
        psi, peer, take = urgent
        heard, wait = Heard(), anyio.wait_readable

        async def look(fd: int) -> None:
            await wait(fd)
            take()

        monkeypatch.setattr(anyio, "wait_readable", look)
        async with anyio.create_task_group() as tasks:
            await start(tasks, psi.run, heard)
            for _ in range(2):
                peer.send(b"!", socket.MSG_OOB)
                assert await heard.next() is None
            await settle()
            assert heard.asked == []
            tasks.cancel_scope.cancel()

    async def test_an_event_from_before_the_wait_is_not_lost_to_the_look_of_a_loop_that_begins_it(
        self, urgent: Urgent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        psi, peer, take = urgent
        heard, wait = Heard(), anyio.wait_readable

        async def look(fd: int) -> None:
            with suppress(OSError):
                take()
            await wait(fd)

        def on_pressure(nbytes: int | None) -> None:
            take()
            if len(heard.asked) < 2:
                peer.send(b"!", socket.MSG_OOB)  # meanwhile
            heard(nbytes)

        monkeypatch.setattr(anyio, "wait_readable", look)
        peer.send(b"!", socket.MSG_OOB)
        async with anyio.create_task_group() as tasks:
            await start(tasks, psi.run, on_pressure)
            assert heard.asked == [None] * 3
            tasks.cancel_scope.cancel()

    async def test_ordinary_data_is_no_event(self, urgent: Urgent) -> None:
        psi, peer, take = urgent
        heard = Heard()

        def on_pressure(nbytes: int | None) -> None:
            take()
            heard(nbytes)

        async with anyio.create_task_group() as tasks:
            await start(tasks, psi.run, on_pressure)
            peer.send(b"data")
            await settle()
            assert heard.asked == []
            peer.send(b"!", socket.MSG_OOB)
            await heard.next()
            tasks.cancel_scope.cancel()

    async def test_the_loop_goes_round_however_often_events_come(self, urgent: Urgent) -> None:
        psi, peer, _ = urgent
        heard = Heard()
        peer.send(b"!", socket.MSG_OOB)  # never taken: always there
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(psi.run, heard)
            await settle()
            tasks.cancel_scope.cancel()
        assert heard.asked

    async def test_it_ends_when_what_it_watches_is_gone(
        self, urgent: Urgent, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        psi, peer, _ = urgent
        heard = Heard()
        async with anyio.create_task_group() as tasks:
            await start(tasks, ended, psi, heard)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()  # a reset: EPOLLERR
        assert heard.asked == []
        assert "gone" in caplog.text

    async def test_cancelled_it_holds_nothing_open(self, urgent: Urgent) -> None:
        psi, _, _ = urgent
        before = open_files()
        async with anyio.create_task_group() as tasks:
            await start(tasks, psi.run, Heard())
            assert len(open_files() - before) >= 2, "the trigger and its epoll"
            tasks.cancel_scope.cancel()
        assert open_files() <= before

    async def test_it_holds_nothing_open_when_the_caller_raises(self, urgent: Urgent) -> None:
        psi, peer, _ = urgent

        def failing(nbytes: int | None) -> None:
            raise OSError("the caller's own")

        before = open_files()
        peer.send(b"!", socket.MSG_OOB)
        with pytest.raises(OSError, match="the caller's own"):
            await psi.run(failing)
        assert open_files() <= before

    async def test_the_kernel_takes_the_trigger_and_it_goes_with_the_run(self) -> None:
        try:
            os.close(arm(PRESSURE, "some 150000 2000000"))
        except OSError as exc:
            pytest.skip(f"no trigger may be set: {exc}")
        before = open_files()
        async with anyio.create_task_group() as tasks:
            await start(tasks, Psi().run, Heard())
            assert any(PRESSURE in name for name in open_files() - before)
            tasks.cancel_scope.cancel()
        assert open_files() <= before

    async def test_what_the_kernel_is_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        told = []

        def refuse(path: str, trigger: str) -> int:
            told.append((path, trigger))
            raise PermissionError

        for psi in (Psi(), Psi(stall=0.07, window=10, full=True, path=tmp_path)):
            psi._arm = refuse
            await ended(psi, Heard())
        assert told == [(PRESSURE, "some 150000 2000000"), (str(tmp_path), "full 70000 10000000")]

    def test_the_text_of_a_trigger_ends_with_a_byte_that_the_kernel_may_overwrite(self, tmp_path: Path) -> None:
        file = tmp_path / "pressure"
        file.touch()
        os.close(arm(str(file), "some 150000 2000000"))
        assert file.read_bytes() == b"some 150000 2000000\0"

    async def test_it_is_quietly_absent_where_the_kernel_has_none_or_refuses(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        before, heard = open_files(), Heard()
        (tmp_path / "file").touch()
        await ended(Psi(path=tmp_path / "nowhere"), heard)
        await ended(Psi(path=tmp_path), heard)
        await ended(Psi(path=tmp_path / "file"), heard)  # what no epoll takes is no pressure file
        assert {record.levelno for record in caplog.records} == {logging.DEBUG}
        assert len(caplog.records) == 3
        assert heard.asked == []
        assert open_files() <= before

    async def test_it_is_quietly_absent_where_the_system_has_no_epoll(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "aslab.pressure")
        monkeypatch.delattr(select, "epoll")
        await ended(Psi(), Heard())
        assert "no epoll" in caplog.text


BAD = [
    *((Cgroup, "path", bad) for bad in (7, b"/sys", True)),
    *((Psi, "stall", bad) for bad in (0, -1, "0.1", None, True, float("nan"), float("inf"), 1e-7, 2.01)),
    *((Psi, "window", bad) for bad in (0, 0.49, 10.01, "2", None, True, float("nan"))),
    *((Psi, "full", bad) for bad in (0, None, "full")),
    *((Psi, "path", bad) for bad in (7, None, b"/proc")),
    *((Shrinker, "memory", bad) for bad in (None, 64)),
]


@pytest.mark.parametrize(("kind", "field", "given"), BAD)
def test_a_bad_option_is_refused_by_name_value_and_what_is_allowed(
    kind: Callable[..., Source], field: str, given: Any
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{field}: {given!r} is not allowed; it must be ')}"):
        kind(**{field: given})


@pytest.mark.parametrize(
    "options", [{"stall": 0.5, "window": 0.5}, {"stall": 1e-6, "window": 10}, {"window": 0.5}]
)
def test_the_bounds_themselves_are_allowed(options: dict[str, float]) -> None:
    Psi(**options)  # type: ignore[arg-type]


def test_all_of_them_are_sources_and_other_things_are_not() -> None:
    for source in (Cgroup(), Psi(), Shrinker(PhysicalMemory(64))):
        assert isinstance(source, Source)
    assert not isinstance(object(), Source)


def take(memory: PhysicalMemory, count: int) -> list[Block]:
    return [memory.allocate(0, GFP.KERNEL) for _ in range(count)]


class TestShrinker:
    """64 pages: 16 for the urgent, kswapd from 20 to 24."""

    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    @pytest.fixture
    def memory(self) -> PhysicalMemory:
        return PhysicalMemory(64, min=16, low=20, high=24)

    async def test_it_asks_for_what_is_missing_to_high_once_for_each_wake_up(self, memory: PhysicalMemory) -> None:
        heard = Heard()
        async with anyio.create_task_group() as tasks:
            await start(tasks, Shrinker(memory).run, heard)
            take(memory, 44)
            await settle()
            assert (memory.free_pages, heard.asked) == (20, [])
            take(memory, 3)
            assert heard.asked == [], "never in the middle of an allocation"
            await settle()
            assert heard.asked == [7 * PAGE_SIZE], "three wake-ups before it ran are one"
            await anyio.sleep(3600)
            assert len(heard.asked) == 1
            take(memory, 1)
            await settle()
            assert heard.asked == [7 * PAGE_SIZE, 8 * PAGE_SIZE]
            tasks.cancel_scope.cancel()

    async def test_it_asks_nobody_where_enough_came_back_meanwhile(self, memory: PhysicalMemory) -> None:
        heard = Heard()
        async with anyio.create_task_group() as tasks:
            await start(tasks, Shrinker(memory).run, heard)
            blocks = take(memory, 45)
            for block in blocks[:5]:
                memory.free(block)
            await settle()
            assert (memory.free_pages, heard.asked) == (24, [])
            take(memory, 5)
            await settle()
            assert heard.asked == [5 * PAGE_SIZE]
            tasks.cancel_scope.cancel()

    async def test_what_is_allocated_while_it_asks_wakes_it_again(self, memory: PhysicalMemory) -> None:
        asked: list[int | None] = []

        def greedy(nbytes: int | None) -> None:
            asked.append(nbytes)
            if len(asked) < 3:
                take(memory, 1)

        async with anyio.create_task_group() as tasks:
            await start(tasks, Shrinker(memory).run, greedy)
            take(memory, 45)
            await settle()
            tasks.cancel_scope.cancel()
        assert asked == [5 * PAGE_SIZE, 6 * PAGE_SIZE, 7 * PAGE_SIZE]

    async def test_pressure_from_before_it_ran_is_heard(self, memory: PhysicalMemory) -> None:
        heard = Heard()
        take(memory, 46)
        async with anyio.create_task_group() as tasks:
            await start(tasks, Shrinker(memory).run, heard)
            assert heard.asked == [6 * PAGE_SIZE]
            tasks.cancel_scope.cancel()

    async def test_it_is_unhooked_when_it_ends_and_can_run_again(self, memory: PhysicalMemory) -> None:
        shrinker, heard = Shrinker(memory), Heard()
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                await start(tasks, shrinker.run, heard)
                assert memory.wake_kswapd is not None
                tasks.cancel_scope.cancel()
            assert memory.wake_kswapd is None
        take(memory, 46)
        await settle()
        assert heard.asked == []

    async def test_it_is_unhooked_when_the_caller_raises(self, memory: PhysicalMemory) -> None:
        def failing(nbytes: int | None) -> None:
            raise LookupError

        take(memory, 46)
        with pytest.raises(LookupError):
            await Shrinker(memory).run(failing)
        assert memory.wake_kswapd is None

    async def test_a_hook_that_is_taken_is_refused_and_left_alone(self, memory: PhysicalMemory) -> None:
        def kswapd() -> None: ...

        memory.wake_kswapd = kswapd
        with pytest.raises(ConfigError, match=r"^wake_kswapd: .*kswapd.* is not allowed; it must be None"):
            await Shrinker(memory).run(Heard())
        assert memory.wake_kswapd is kswapd

    async def test_a_hook_that_was_taken_over_is_left_to_its_owner(self, memory: PhysicalMemory) -> None:
        def kswapd() -> None: ...

        async with anyio.create_task_group() as tasks:
            await start(tasks, Shrinker(memory).run, Heard())
            memory.wake_kswapd = kswapd
            tasks.cancel_scope.cancel()
        assert memory.wake_kswapd is kswapd
