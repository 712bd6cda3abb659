"""The backend whose slabs other processes can map."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import secrets
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from aslab import GFP
from aslab.backends import Region, Segment, SharedMemory, _memfd
from aslab.backends._protocol import address_of
from aslab.backends._shared import segment_at

from .helpers import no_descriptors
from .test_backends import resident

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd")]
MIB = 2**20


def is_open(file: os.stat_result) -> bool:
    """Whether this process has a descriptor of that file. Others come and go: of threads, and of the collector."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(int(link.name)), file):
                return True
    return False


def segment_of(region: Region) -> Segment:
    assert isinstance(region.token, Segment)
    return region.token


async def test_pages_are_there_and_the_file_is_sealed_and_has_no_name() -> None:
    region = await SharedMemory().acquire(4 * MIB, 64, GFP.KERNEL)
    assert resident(region.address, 4 * MIB) == 1
    segment = segment_of(region)
    assert segment_at(region.address + 4 * MIB - 1) is segment
    assert segment_at(region.address + 4 * MIB) is not segment
    with segment.descriptor() as fd:
        file = os.fstat(fd)
        assert is_open(file)
        assert file.st_blocks * 512 == 4 * MIB
        assert Path(f"/proc/self/fd/{fd}").readlink() == Path("/memfd:aslab (deleted)")
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        for size in (0, 8 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    await SharedMemory().release(region)
    assert segment.closed
    assert segment_at(region.address) is None
    with pytest.raises(ValueError, match="given back"), segment.descriptor():
        pass
    assert resident(region.address, 4 * MIB) is None
    assert not is_open(file)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG])
@pytest.mark.parametrize("call", ["memfd_create", "posix_fallocate"])
async def test_what_the_kernel_refuses_is_a_memory_error(
    monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    files: list[os.stat_result] = []

    def refuse(fd: int | str, *_: object) -> NoReturn:
        if isinstance(fd, int):
            files.append(os.fstat(fd))
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(MemoryError, match=os.strerror(code)):
        await SharedMemory().acquire(MIB, 64, GFP.KERNEL)
    assert len(files) == (call == "posix_fallocate")
    assert not any(map(is_open, files))


async def test_no_descriptor_left_is_a_memory_error_and_passes() -> None:
    with no_descriptors(), pytest.raises(MemoryError, match="Too many open files"):
        SharedMemory().acquire_nowait(4096, 64, GFP.NOWAIT)
    region = SharedMemory().acquire_nowait(4096, 64, GFP.NOWAIT)
    await SharedMemory().release(region)


async def test_more_than_there_is_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memfd, "_available", lambda: MIB)
    with pytest.raises(MemoryError):
        await SharedMemory().acquire(2 * MIB, 64, GFP.KERNEL)


async def test_a_large_object_is_not_allocated_while_the_loop_waits() -> None:
    with pytest.raises(anyio.WouldBlock):
        SharedMemory().acquire_nowait(MIB, 64, GFP.NOWAIT)


async def test_a_mapping_without_write_refuses_until_it_is_allowed() -> None:
    fd = _memfd.create(4096)
    mapping, offset = _memfd.map_shared(fd, 4096, align=1 << 21, writable=False)
    with memoryview(mapping) as whole:
        address = address_of(whole) + offset
    assert address % (1 << 21) == 0
    flags = next(
        line.split()[1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if int(line.split("-")[0], 16) == address
    )
    assert flags == "r--s"
    _memfd.make_writable(address, 4096)
    mapping[offset] = 7
    assert os.pread(fd, 1, 0) == b"\x07"
    os.close(fd)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
async def test_a_child_by_fork_has_private_memory_there_and_no_descriptor() -> None:
    region = await SharedMemory().acquire(MIB, 64, GFP.KERNEL)
    region.memory[:5] = b"hello"
    with segment_of(region).descriptor() as fd:
        pass
    child = os.fork()
    if not child:
        code = 1
        try:
            assert bytes(region.memory[:5]) == bytes(5)
            region.memory[:5] = b"child"
            assert segment_of(region).closed
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)
            region.token = None
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(region.memory[:5]) == b"hello"
    await SharedMemory().release(region)


async def test_where_memfd_is_missing_the_name_is_gone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = secrets.token_hex(8)
    monkeypatch.setattr(secrets, "token_hex", lambda _: name)
    monkeypatch.delattr(os, "memfd_create")
    region = await SharedMemory().acquire(MIB, 64, GFP.KERNEL)
    region.memory[:] = b"x" * MIB
    with segment_of(region).descriptor() as fd:
        assert Path(f"/proc/self/fd/{fd}").readlink() == Path(f"/dev/shm/aslab-{name} (deleted)")
    await SharedMemory().release(region)
