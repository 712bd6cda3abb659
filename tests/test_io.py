"""Reads, writes and copies between real files and buffers: direct, through the page cache, cancelled, refused."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import aslab
import aslab.io
from aslab import ConfigError
from aslab._fastpath import HAUNTED
from aslab.backends._libc import PAGE_SIZE
from aslab.io import _copy, _direct, _transfer, copy_file, open_direct, read_into, write_from

pytestmark = pytest.mark.anyio
BLOCK = 64 * 2**10
O_DIRECT = getattr(os, "O_DIRECT", 0)
needs_direct = pytest.mark.skipif(not O_DIRECT, reason="this system has no O_DIRECT")
content = random.Random(7).randbytes


@pytest.fixture(autouse=True)
def not_told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_direct, "_told", set())
    yield
    if HAUNTED:  # errors keep the frames of the tests, and their views, until they are collected
        gc.unfreeze()
        gc.collect()


@pytest.fixture(params=["disk", "shm"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk's filesystem, and one on tmpfs."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no tmpfs")
    path = Path(f"/dev/shm/aslab-{os.getpid()}-{threading.get_native_id()}")
    path.mkdir()
    try:
        yield path
    finally:
        for one in path.iterdir():
            one.unlink()
        path.rmdir()


@asynccontextmanager
async def blocks(size: int = BLOCK, **options: Any) -> AsyncIterator[aslab.Cache[memoryview]]:
    # its callers wait for slabs: on a loaded machine a thread may take longer than they have patience by default
    async with aslab.open_allocator(limit=64 * size, expire=0.1, grow_timeout=60) as kmem:
        cache = kmem.create_cache("blocks", size, **options)
        yield cache
        assert cache.stats().obj_held == 0


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def still_open(*paths: Path) -> list[str]:
    """Files at or below these paths that are open. Others come and go: a thread of another test has its own."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(str(fd.readlink()))
    return [file for file in found if file.startswith(tuple(map(str, paths)))]


async def closed(path: Path) -> None:
    with anyio.fail_after(30):
        while still_open(path):
            await anyio.sleep(0.001)


class TestTransfer:
    @pytest.mark.parametrize("flags", [0, pytest.param(O_DIRECT, marks=needs_direct)], ids=["plain", "direct"])
    async def test_what_is_written_from_one_buffer_is_read_into_another(self, folder: Path, flags: int) -> None:
        async with blocks() as cache:
            with opened(folder / "file", os.O_RDWR | os.O_CREAT | flags) as fd:
                data = content(BLOCK)
                async with cache.lease() as buf:
                    buf.view[:] = data
                    assert await write_from(fd, buf) == BLOCK
                    assert await write_from(fd, buf, BLOCK, PAGE_SIZE) == PAGE_SIZE
                async with cache.lease() as buf:
                    assert await read_into(fd, buf) == BLOCK
                    assert buf.view == data
                    assert await read_into(fd, buf, PAGE_SIZE, 2 * PAGE_SIZE) == 2 * PAGE_SIZE
                    assert buf.view[: 2 * PAGE_SIZE] == data[PAGE_SIZE : 3 * PAGE_SIZE]
                    assert await read_into(fd, buf, BLOCK) == PAGE_SIZE
                    assert await read_into(fd, buf, 2 * BLOCK) == 0

    @pytest.mark.parametrize("flags", [0, pytest.param(O_DIRECT, marks=needs_direct)], ids=["plain", "direct"])
    async def test_a_file_may_end_within_a_block(self, folder: Path, flags: int) -> None:
        data = content(10_001)
        (folder / "file").write_bytes(data)
        async with blocks() as cache, cache.lease() as buf:
            with opened(folder / "file", os.O_RDONLY | flags) as fd:
                assert await read_into(fd, buf) == len(data)
                assert buf.view[: len(data)] == data
                assert await read_into(fd, buf, 2 * PAGE_SIZE, PAGE_SIZE) == 10_001 - 2 * PAGE_SIZE

    async def test_a_path_is_opened_for_the_call_and_a_part_of_a_buffer_is_enough(self, tmp_path: Path) -> None:
        async with blocks(movable=True) as cache, cache.lease() as buf:
            with buf.pin() as view:
                view[:] = bytes([7]) * BLOCK
            assert await write_from(tmp_path / "file", buf, 3, 5) == 5
            assert (tmp_path / "file").read_bytes() == bytes(3) + bytes([7]) * 5
            with buf.pin() as view, view[10:20] as part:
                assert await read_into(os.fspath(tmp_path / "file"), part) == 8
                assert part == bytes(3) + bytes([7]) * 7
            del view, part  # an error keeps this frame until it is collected
            with pytest.raises(FileNotFoundError):
                await read_into(tmp_path / "none", buf)
        assert not still_open(tmp_path)

    async def test_short_calls_are_repeated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = content(BLOCK)
        monkeypatch.setattr(_transfer, "MOST", 10_000)
        async with blocks() as cache, cache.lease() as buf:
            buf.view[:] = data
            assert await write_from(tmp_path / "file", buf) == BLOCK
            assert (tmp_path / "file").read_bytes() == data
            buf.view[:] = bytes(BLOCK)
            assert await read_into(tmp_path / "file", buf) == BLOCK
            assert buf.view == data

    @needs_direct
    async def test_direct_io_says_what_it_needs(self, tmp_path: Path) -> None:
        async with blocks() as cache, cache.lease() as buf:
            with opened(tmp_path / "file", os.O_RDWR | os.O_CREAT | O_DIRECT) as fd:
                needs = _direct.needs_of(fd)
                if needs is None:
                    pytest.skip("the filesystem does not tell")
                for transfer in (read_into, write_from):
                    with pytest.raises(ConfigError, match=rf"^offset: 3 .* needs a multiple of {needs.offset} "):
                        await transfer(fd, buf, 3)
                    with pytest.raises(ConfigError, match=rf"^nbytes: 5 .* needs a multiple of {needs.offset} "):
                        await transfer(fd, buf, 0, 5)
                    with (
                        buf.view[needs.memory // 2 :][: needs.offset] as part,
                        pytest.raises(ConfigError, match=r"^buf: '0x.* memory at a multiple of .* with align="),
                    ):
                        await transfer(fd, part)
                    del part  # an error keeps this frame until it is collected

    @needs_direct
    async def test_a_refusal_that_was_not_foreseen_says_what_is_enough(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_transfer, "needs_of", lambda fd: None)
        async with blocks() as cache, cache.lease() as buf:
            with opened(tmp_path / "file", os.O_RDWR | os.O_CREAT | O_DIRECT) as fd:
                with pytest.raises(
                    OSError, match=r"direct I/O of 5 bytes at offset 0 .* multiples of 4096"
                ) as info:
                    await write_from(fd, buf, 0, 5)
                assert info.value.errno == errno.EINVAL

    async def test_it_refuses_what_is_not_allowed(self, tmp_path: Path) -> None:
        async with blocks() as cache:
            async with cache.lease() as buf:
                for bad in (-1, 1.0, True, "0"):
                    with pytest.raises(ConfigError, match=r"^offset: "):
                        await write_from(tmp_path / "file", buf, bad)  # type: ignore[arg-type]
                for bad in (-1, BLOCK + 1):
                    with pytest.raises(ConfigError, match=r"^nbytes: "):
                        await write_from(tmp_path / "file", buf, 0, bad)
                with pytest.raises(ConfigError, match=r"^buf: .* must be writable"):
                    await read_into(tmp_path / "file", memoryview(b"constant"))
                with pytest.raises(OSError, match="Bad file descriptor"):
                    await read_into(-1, buf)
            assert await write_from(tmp_path / "file", memoryview(b"constant")) == 8
            with pytest.raises(aslab.BufferFreedError):
                await read_into(tmp_path / "file", buf)


class Stuck:
    """A system call that does not return until it is let go."""

    def __init__(self, call: Callable[..., int]) -> None:
        self.call = call
        self.begun, self.go, self.done = threading.Event(), threading.Event(), threading.Event()
        self.fd = -1

    def __call__(self, fd: int, views: list[memoryview], offset: int) -> int:
        self.fd = fd
        self.begun.set()
        self.go.wait(30)
        try:
            return self.call(fd, views, offset)
        finally:
            self.done.set()

    async def until_begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, 30)


class TestCancellation:
    async def test_memory_stays_with_the_abandoned_thread_and_comes_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = Stuck(os.preadv)
        monkeypatch.setattr(os, "preadv", stuck)
        (tmp_path / "file").write_bytes(b"late" * 100)
        async with blocks() as cache:
            buf = await cache.alloc()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_into, tmp_path / "file", buf)
                await stuck.until_begun()
                tasks.cancel_scope.cancel()
            with pytest.raises(BufferError):  # the kernel may still write to it
                buf.free()
            stuck.go.set()
            while True:
                try:
                    buf.free()
                    break
                except BufferError:
                    await anyio.sleep(0.001)
            assert stuck.done.is_set()
        await closed(tmp_path)  # by the thread, after it has let go of the memory

    async def test_a_lease_parks_the_slot_until_the_thread_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = Stuck(os.preadv)
        monkeypatch.setattr(os, "preadv", stuck)
        (tmp_path / "file").write_bytes(b"late" * 100)
        async with blocks(max_objects=1, objects_per_slab=1, max_emergency=0) as cache:

            async def read() -> None:
                async with cache.lease() as buf:
                    await read_into(tmp_path / "file", buf)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await stuck.until_begun()
                tasks.cancel_scope.cancel()
            with pytest.raises(anyio.WouldBlock):
                cache.alloc_nowait()
            stuck.go.set()
            with anyio.fail_after(30):
                while True:
                    try:
                        cache.alloc_nowait().free()
                        break
                    except anyio.WouldBlock:
                        await anyio.sleep(0.001)
            assert stuck.done.is_set()

    async def test_who_waits_for_a_buffer_gets_it_as_soon_as_the_thread_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = Stuck(os.preadv)
        monkeypatch.setattr(os, "preadv", stuck)
        (tmp_path / "file").write_bytes(b"late" * 100)
        async with aslab.open_allocator(expire=None) as kmem:
            cache = kmem.create_cache("c", BLOCK, max_objects=1, objects_per_slab=1, max_emergency=0)

            async def read() -> None:
                async with cache.lease() as buf:
                    await read_into(tmp_path / "file", buf)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await stuck.until_begun()
                tasks.cancel_scope.cancel()
            with anyio.move_on_after(0.02):
                await cache.alloc()
            assert not cache.stats().waiters
            threading.Timer(0.02, stuck.go.set).start()
            (await cache.alloc(timeout=30)).free()
            assert stuck.done.is_set()

    async def test_the_descriptor_may_be_closed_and_its_number_used_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = Stuck(os.pwritev)
        monkeypatch.setattr(os, "pwritev", stuck)
        async with blocks() as cache:
            buf = await cache.alloc()
            buf.view[:4] = b"mine"
            with opened(tmp_path / "mine") as fd:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(write_from, fd, buf, 0, 4)
                    await stuck.until_begun()
                    tasks.cancel_scope.cancel()
            with opened(tmp_path / "other") as other:
                if other != fd:  # a lower number was free as well
                    os.dup2(other, fd)
                assert stuck.fd != fd
                stuck.go.set()
                assert await anyio.to_thread.run_sync(stuck.done.wait, 30)
            while True:
                try:
                    buf.free()
                    break
                except BufferError:
                    await anyio.sleep(0.001)
        assert (tmp_path / "other").read_bytes() == b""
        assert (tmp_path / "mine").read_bytes() == b"mine"

    async def test_one_that_has_not_begun_never_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_transfer, "MAX_THREADS", 1)
        monkeypatch.setattr(_transfer, "_limiter", anyio.lowlevel.RunVar("tests_io_threads"))
        stuck = Stuck(os.pwritev)
        monkeypatch.setattr(os, "pwritev", stuck)
        async with blocks() as cache, cache.lease() as first, anyio.create_task_group() as tasks:
            with opened(tmp_path / "one") as one, opened(tmp_path / "two") as two:
                tasks.start_soon(write_from, one, first, 0, 4)
                await stuck.until_begun()
                with anyio.move_on_after(0.01):
                    async with cache.lease() as second:
                        await write_from(two, second, 0, 4)
                assert cache.stats().obj_held == 1  # nothing is parked
            stuck.go.set()
        assert (tmp_path / "two").read_bytes() == b""
        assert not still_open(tmp_path)


SIZES = [0, 1, 511, 512, PAGE_SIZE, PAGE_SIZE + 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 12_345]


class TestCopy:
    @pytest.mark.parametrize("direct", [True, False], ids=["direct", "plain"])
    async def test_any_size_arrives_whole(self, folder: Path, direct: bool) -> None:
        async with blocks() as cache:
            for size in SIZES:
                data = content(size)
                (folder / "src").write_bytes(data)
                assert await copy_file(folder / "src", folder / "dst", cache, direct=direct) == size
                assert (folder / "dst").read_bytes() == data
        assert not still_open(folder)

    async def test_chunks_are_whole_blocks_where_buffers_are_not(self, tmp_path: Path) -> None:
        data = content(500_000)
        (tmp_path / "src").write_bytes(data)
        async with blocks(100_000) as cache:
            await copy_file(tmp_path / "src", tmp_path / "dst", cache, in_flight=1)
        assert (tmp_path / "dst").read_bytes() == data

    async def test_it_takes_no_more_buffers_than_are_in_flight(self, tmp_path: Path) -> None:
        (tmp_path / "src").write_bytes(content(20 * BLOCK))
        async with blocks() as cache:
            await copy_file(tmp_path / "src", tmp_path / "dst", cache, in_flight=3)
            assert cache.stats().obj_max <= 8

    async def test_holes_are_not_read_and_stay_holes(self, folder: Path) -> None:
        with (folder / "src").open("wb") as file:
            file.seek(3 * BLOCK)
            file.write(content(BLOCK))
            file.seek(40 * BLOCK)
            file.write(b"end")
            file.truncate(100 * BLOCK + 17)
        async with blocks() as cache:
            await copy_file(folder / "src", folder / "dst", cache)
        assert (folder / "dst").read_bytes() == (folder / "src").read_bytes()
        assert (folder / "dst").stat().st_blocks <= (folder / "src").stat().st_blocks + 8

    async def test_what_was_there_before_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / "src").write_bytes(b"short")
        (tmp_path / "dst").write_bytes(content(3 * BLOCK))
        async with blocks() as cache:
            await copy_file(tmp_path / "src", tmp_path / "dst", cache)
        assert (tmp_path / "dst").read_bytes() == b"short"

    @needs_direct
    async def test_it_is_direct(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        flags = []
        real = os.preadv

        def preadv(fd: int, *more: Any) -> int:
            flags.append(_direct.is_direct(fd))
            return real(fd, *more)

        monkeypatch.setattr(os, "preadv", preadv)
        (tmp_path / "src").write_bytes(content(3 * BLOCK + 5))
        async with blocks() as cache:
            await copy_file(tmp_path / "src", tmp_path / "dst", cache)
        with opened(tmp_path / "src", os.O_RDONLY | O_DIRECT):
            assert flags == [True, True, True, False]

    @needs_direct
    @pytest.mark.parametrize("when", ["open", "transfer"])
    async def test_where_it_is_refused_the_page_cache_is_used_and_one_line_says_so(
        self, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        refusal = OSError(errno.EINVAL, "Invalid argument")
        real_open, real_preadv = os.open, os.preadv

        def refusing_open(path: Any, flags: int, *more: Any) -> int:
            if flags & O_DIRECT:
                raise refusal
            return real_open(path, flags, *more)

        def refusing_preadv(fd: int, *more: Any) -> int:
            if _direct.is_direct(fd):
                raise refusal
            return real_preadv(fd, *more)

        data = content(5 * BLOCK + 5)
        (tmp_path / "src").write_bytes(data)
        if when == "open":
            monkeypatch.setattr(os, "open", refusing_open)
        else:
            monkeypatch.setattr(os, "preadv", refusing_preadv)
        async with blocks() as cache:
            for _ in range(2):
                await copy_file(tmp_path / "src", tmp_path / "dst", cache)
        assert (tmp_path / "dst").read_bytes() == data
        (line,) = [record.getMessage() for record in caplog.records if record.name == "aslab"]
        assert "no direct I/O for " in line
        assert "Invalid argument" in line

    @needs_direct
    async def test_a_file_of_proc_takes_no_direct_io_and_does_not_tell_its_size(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with blocks() as cache:
            with pytest.raises(OSError, match="does not tell its size"):
                await copy_file("/proc/self/maps", tmp_path / "dst", cache)
        assert "refuses O_DIRECT" in caplog.text

    @needs_direct
    async def test_a_cache_with_too_little_alignment_is_told_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "src").write_bytes(content(BLOCK))
        with opened(tmp_path / "src", os.O_RDONLY | O_DIRECT) as fd:
            if _direct.needs_of(fd) is None:
                pytest.skip("the filesystem does not tell")
        async with blocks(PAGE_SIZE + 64, align=64) as cache, cache.lease_many(2):
            with pytest.raises(ConfigError, match=r"create the cache with align=\d+"):
                for _ in range(3):  # the first slot may start at a page
                    async with cache.lease():
                        await copy_file(tmp_path / "src", tmp_path / "dst", cache)
        async with blocks(1024) as cache:
            with pytest.raises(ConfigError, match="at least 4096 bytes, one block"):
                await copy_file(tmp_path / "src", tmp_path / "dst", cache)

    async def test_it_refuses_to_copy_a_file_to_itself_and_what_is_no_file(self, tmp_path: Path) -> None:
        data = content(BLOCK)
        (tmp_path / "src").write_bytes(data)
        (tmp_path / "link").hardlink_to(tmp_path / "src")
        async with blocks() as cache:
            for dst in ("src", "link"):
                with pytest.raises(OSError, match="are the same file"):
                    await copy_file(tmp_path / "src", tmp_path / dst, cache)
            assert (tmp_path / "src").read_bytes() == data
            with pytest.raises(OSError, match="neither a regular file"):
                await copy_file("/dev/zero", tmp_path / "dst", cache, direct=False)
            with pytest.raises(FileNotFoundError):
                await copy_file(tmp_path / "none", tmp_path / "dst", cache)
            with pytest.raises(ConfigError, match="in_flight"):
                await copy_file(tmp_path / "src", tmp_path / "dst", cache, in_flight=0)
        assert not still_open(tmp_path, Path("/dev/zero"))

    async def test_a_source_that_shrinks_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "src").write_bytes(content(4 * BLOCK))
        real = _copy._Files.chunks

        def shrink(files: Any, most: int) -> Iterator[tuple[int, int]]:
            os.truncate(tmp_path / "src", BLOCK)
            return real(files, most)

        monkeypatch.setattr(_copy._Files, "chunks", shrink)
        async with blocks() as cache:
            with pytest.raises(OSError, match="became shorter"):
                await copy_file(tmp_path / "src", tmp_path / "dst", cache)

    async def test_a_full_device_is_the_systems_own_error(self, tmp_path: Path) -> None:
        if not os.access("/dev/full", os.W_OK):
            pytest.skip("no /dev/full")
        (tmp_path / "src").write_bytes(content(4 * BLOCK))
        async with blocks() as cache:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                await copy_file(tmp_path / "src", "/dev/full", cache, direct=False)

    async def test_when_cancelled_every_buffer_comes_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck = Stuck(os.pwritev)
        monkeypatch.setattr(os, "pwritev", stuck)
        (tmp_path / "src").write_bytes(content(20 * BLOCK))
        async with blocks() as cache:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(copy_file, tmp_path / "src", tmp_path / "dst", cache))
                await stuck.until_begun()
                tasks.cancel_scope.cancel()
            stuck.go.set()
            with anyio.fail_after(30):
                while cache.stats().obj_held:
                    await anyio.sleep(0.01)
        await closed(tmp_path)


@needs_direct
def test_open_direct_is_as_open_but_for_the_flag(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_direct(tmp_path / "none")
    fd = open_direct(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
