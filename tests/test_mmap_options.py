"""Options of Mmap, as the kernel shows them in /proc/self/smaps, and what is done where it refuses."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from aslab import GFP, ConfigError
from aslab.backends import Mmap, Region, _wishes
from aslab.backends._libc import prefault

from .test_backends import HUGE, MIB, PAGE, exit_code_of_child, resident

pytestmark = pytest.mark.anyio


def mapping_of(region: Region) -> dict[str, str]:
    """What the kernel says of the mapping that a region begins in."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name.endswith(":"):
            if inside:
                found[name[:-1]] = rest.strip()
        else:
            start, end = (int(part, 16) for part in name.split("-"))
            inside = start <= region.address < end
    return found


def policies() -> str:
    return Path("/proc/self/numa_maps").read_text()


def free_huge_pages() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("HugePages_Free:")), 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("populate_threads", 0),
        ("populate_threads", 65),
        ("populate_threads", True),
        ("huge_pages", "always"),
        ("huge_pages", None),
        ("mlock", 1),
        ("numa_node", -1),
        ("numa_node", 1024),
        ("numa_node", "0"),
        ("dont_dump", None),
        ("unmergeable", "yes"),
    ],
)
def test_values_that_make_no_sense(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        Mmap(**{field: value})


async def test_several_threads_touch_every_page(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    both = threading.Barrier(2)

    def touch(address: int, nbytes: int) -> None:
        threads.append(threading.get_ident())
        if threads.count(threads[-1]) == 1:  # each of the two waits for the other one before its first piece
            both.wait(60)
        prefault(address, nbytes)

    monkeypatch.setattr("aslab.backends._mmap.prefault", touch)
    backend = Mmap(populate_threads=2)
    region = await backend.acquire(16 * MIB + PAGE, 64, GFP.KERNEL)
    assert len(set(threads)) == 2
    assert resident(region.address, 16 * MIB + PAGE) == 1
    await backend.release(region)
    assert resident(region.address + 8 * MIB, PAGE) is None


async def test_a_slab_of_few_pages_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    monkeypatch.setattr("aslab.backends._mmap.prefault", lambda address, nbytes: touched.append(nbytes))
    backend = Mmap(populate_threads=8)
    await backend.release(await backend.acquire(MIB, 64, GFP.KERNEL))
    assert touched == [MIB]


async def test_memory_that_runs_out_in_one_of_the_threads_is_memory_error_and_unmapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses: list[int] = []

    def touch(address: int, nbytes: int) -> None:
        addresses.append(address)
        if len(addresses) == 3:
            raise MemoryError("none left")

    monkeypatch.setattr("aslab.backends._mmap.prefault", touch)
    with pytest.raises(MemoryError, match="none left"):
        await Mmap(populate_threads=2).acquire(32 * MIB, 64, GFP.KERNEL)
    assert resident(min(addresses), PAGE) is None


async def test_abandoned_it_is_unmapped_when_the_last_thread_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, go = threading.Event(), threading.Event()
    addresses: list[int] = []

    def touch(address: int, nbytes: int) -> None:
        addresses.append(address)
        stuck.set()
        assert go.wait(60)

    monkeypatch.setattr("aslab.backends._mmap.prefault", touch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Mmap(populate_threads=2).acquire, 32 * MIB, 64, GFP.KERNEL)
        with anyio.fail_after(60):
            while not stuck.is_set():
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert resident(addresses[0], PAGE) is not None
    go.set()
    with anyio.fail_after(60):
        while resident(addresses[0], PAGE) is not None:
            await anyio.sleep(0.001)


@pytest.mark.parametrize("nowait", [False, True])
async def test_secrets_stay_in_memory(nowait: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Small enough for any RLIMIT_MEMLOCK there is."""
    backend = Mmap(mlock=True, dont_dump=True, unmergeable=True)
    region = backend.acquire_nowait(4 * PAGE, 64, GFP.NOWAIT) if nowait else await _acquired(backend, 4 * PAGE)
    region.memory[: 4 * PAGE] = b"s" * (4 * PAGE)
    kernel = mapping_of(region)
    flags = kernel["VmFlags"].split()
    assert "dd" in flags, "not dumped"
    assert "lo" in flags, "locked"
    assert "mg" not in flags, "not merged"
    assert kernel["Locked"] == f"{4 * PAGE // 1024} kB"
    assert not caplog.records
    await backend.release(region)


async def _acquired(backend: Mmap, nbytes: int) -> Region:
    return await backend.acquire(nbytes, 64, GFP.KERNEL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody without privileges")
def test_a_limit_on_locked_memory_is_told_once() -> None:
    def check() -> bool:
        import resource

        told: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("aslab").addHandler(handler)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (PAGE, PAGE))
        os.setuid(65534)
        backend = Mmap(mlock=True)
        regions = [backend.acquire_nowait(MIB, 64, GFP.NOWAIT) for _ in range(3)]
        for region in regions:
            region.memory[:4] = b"used"
        return len(told) == 1 and told[0].startswith("Mmap does without mlock: ") and "RLIMIT_MEMLOCK" in told[0]

    assert exit_code_of_child(check) == 0


async def test_pages_of_a_node(caplog: pytest.LogCaptureFixture) -> None:
    region = await Mmap(numa_node=0).acquire(MIB, 64, GFP.KERNEL)
    if not caplog.records:  # else there is no NUMA, or no right to say so
        assert " prefer:0 " in policies()
    await Mmap().release(region)


async def test_a_node_that_is_not_there_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    backend = Mmap(numa_node=1023)
    for _ in range(3):
        await backend.release(await backend.acquire(MIB, 64, GFP.KERNEL))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Mmap does without numa_node: ")


async def test_without_libnuma_and_without_a_number_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*args: object, **options: object) -> None:
        raise OSError(errno.ENOENT, "no such library")

    monkeypatch.setattr("ctypes.CDLL", none)
    monkeypatch.setattr("platform.machine", lambda: "vax")
    _wishes._mbind.cache_clear()
    await Mmap(numa_node=0).release(await Mmap(numa_node=0).acquire(MIB, 64, GFP.KERNEL))
    assert caplog.messages == ["Mmap does without numa_node: libnuma is not installed"]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert callable(_wishes._mbind())
    _wishes._mbind.cache_clear()


async def test_transparent_huge_pages_that_are_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr("aslab.backends._wishes._TRANSPARENT", setting)
    backend = Mmap(huge_pages="transparent")
    for _ in range(2):
        await backend.release(await backend.acquire(HUGE, 64, GFP.KERNEL))
    assert caplog.messages == [f"Mmap does without huge_pages: {setting} says never"]


@pytest.mark.skipif(free_huge_pages() > 0, reason="there are some")
async def test_transparent_ones_where_no_huge_pages_are_reserved(caplog: pytest.LogCaptureFixture) -> None:
    backend = Mmap(huge_pages="explicit")
    for _ in range(2):
        region = await backend.acquire(2 * HUGE, 64, GFP.KERNEL)
        assert region.address % HUGE == 0
        assert "hg" in mapping_of(region)["VmFlags"].split()
        await backend.release(region)
    assert len(caplog.messages) == 1
    assert "not enough are reserved" in caplog.messages[0]


@pytest.mark.skipif(free_huge_pages() < 4, reason="none are reserved: sysctl vm.nr_hugepages")
async def test_reserved_huge_pages(caplog: pytest.LogCaptureFixture) -> None:
    backend = Mmap(huge_pages="explicit", populate_threads=2)
    region = await backend.acquire(3 * HUGE + PAGE, 64, GFP.KERNEL)
    assert "ht" in mapping_of(region)["VmFlags"].split()
    region.memory[:] = bytes(region.memory.nbytes)
    await backend.release(region)
    assert not caplog.messages


@pytest.mark.parametrize("align", [64, HUGE, 4 * HUGE])
async def test_a_mapping_of_reserved_pages_has_room_for_the_alignment(
    monkeypatch: pytest.MonkeyPatch, align: int
) -> None:
    """With ordinary pages in their place."""
    monkeypatch.setattr(_wishes, "MAP_HUGETLB", 0)
    backend = Mmap(huge_pages="explicit")
    region = await backend.acquire(HUGE + PAGE, align, GFP.KERNEL)
    assert region.address % align == 0
    assert isinstance(region.token, mmap.mmap)
    assert len(region.token) % HUGE == 0
    region.memory[HUGE + PAGE - 1] = 1
    await backend.release(region)


async def test_where_there_is_no_linux_everything_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    backend = Mmap(huge_pages="explicit", mlock=True, numa_node=0, dont_dump=True, unmergeable=True)
    region = backend.acquire_nowait(PAGE, 64, GFP.NOWAIT)
    region.memory[0] = 1
    assert set(caplog.messages) >= {
        f"Mmap does without {name}: only Linux has this"
        for name in ("huge_pages", "mlock", "numa_node", "dont_dump")
    }
    assert len(caplog.messages) <= 5
