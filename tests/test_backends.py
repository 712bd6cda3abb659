"""Backends on real memory, looked at with the kernel's own eyes."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import pickle
import warnings
from collections.abc import Callable

import anyio
import anyio.lowlevel
import numpy as np
import pytest

from aslab import GFP
from aslab.backends import Backend, Callback, Heap, Mmap, Region, SharedMemory, _libc
from aslab.testing import check_backend

pytestmark = pytest.mark.anyio

PAGE = mmap.PAGESIZE
MIB = 2**20
HUGE = 2 * MIB
_c = ctypes.CDLL(None, use_errno=True)
_c.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def resident(address: int, nbytes: int) -> float | None:
    """Which part of these pages has memory; None where nothing is mapped."""
    pages = nbytes // PAGE
    vector = ctypes.create_string_buffer(pages)
    if _c.mincore(address, nbytes, vector):
        assert ctypes.get_errno() == errno.ENOMEM
        return None
    return sum(byte & 1 for byte in vector.raw[:pages]) / pages


async def slow_acquire(nbytes: int, align: int, gfp: GFP) -> bytearray:
    await anyio.lowlevel.checkpoint()
    return bytearray(nbytes + align)


async def slow_release(given: object) -> None:
    await anyio.lowlevel.checkpoint()


def plain(nbytes: int, align: int, gfp: GFP) -> bytearray:
    return bytearray(nbytes + align)


def nothing(given: object) -> None:
    pass


BACKENDS: dict[str, Callable[[], Backend]] = {
    "mmap": Mmap,
    "mmap, huge pages": lambda: Mmap(huge_pages=True),
    "mmap, everything": lambda: Mmap(
        populate_threads=3,
        huge_pages="explicit",
        mlock=True,
        numa_node=0,
        dont_dump=True,
        unmergeable=True,
    ),
    "heap": Heap,
    "shared memory": SharedMemory,
    "callback": lambda: Callback(plain, nothing),
    "async callback": lambda: Callback(slow_acquire, slow_release),
    "callback with regions": lambda: Callback(
        lambda n, align, _: Region.over(bytearray(n + align), align=align), nothing
    ),
    "callback with arrays": lambda: Callback(lambda n, align, _: np.zeros(n + align, np.uint8), nothing),
    "callback with words": lambda: Callback(lambda n, align, _: np.zeros(n // 8 + align, np.int64), nothing),
    "callback with mappings": lambda: Callback(lambda n, align, _: mmap.mmap(-1, n + align), nothing),
}


@pytest.mark.parametrize("factory", BACKENDS.values(), ids=BACKENDS.keys())
async def test_it_keeps_the_contract(factory: Callable[[], Backend]) -> None:
    await check_backend(factory)


@pytest.mark.parametrize("backend", [Mmap(), Heap(), SharedMemory()], ids=["mmap", "heap", "shared memory"])
class TestBoth:
    async def test_memory_error_for_absurd_sizes_and_nothing_is_left_behind(self, backend: Backend) -> None:
        before = len(mappings())
        for nbytes in (2**60, 2**62):
            with pytest.raises(MemoryError):
                await backend.acquire(nbytes, 64, GFP.KERNEL)
            with pytest.raises((MemoryError, anyio.WouldBlock)):
                backend.acquire_nowait(nbytes, 64, GFP.NOWAIT)
        gc.collect()
        assert all(int(end, 16) - int(start, 16) < 2**50 for start, end in mappings())
        assert len(mappings()) < before + 40
        region = await backend.acquire(PAGE, 64, GFP.KERNEL)
        await backend.release(region)

    @pytest.mark.parametrize("nbytes", [PAGE, 4 * MIB])
    async def test_memory_that_is_still_exported_at_release_stays_intact(
        self, backend: Backend, nbytes: int
    ) -> None:
        region = await backend.acquire(nbytes, 64, GFP.KERNEL)
        array = np.frombuffer(region.memory, np.uint8)
        array[:] = 0x5A
        await backend.release(region)
        others = [await backend.acquire(nbytes, 64, GFP.KERNEL) for _ in range(8)]
        for other in others:
            other.memory[:] = bytes(other.memory.nbytes)
        assert int(array.min()) == int(array.max()) == 0x5A
        array[:] = 7
        assert not any(any(bytes(other.memory)) for other in others)
        for other in others:
            await backend.release(other)

    async def test_memory_exported_directly_at_release_stays_intact(self, backend: Backend) -> None:
        region = await backend.acquire(PAGE, 64, GFP.KERNEL)
        exported = pickle.PickleBuffer(region.memory)
        await backend.release(region)
        raw = exported.raw()
        raw[:] = b"x" * len(raw)
        assert bytes(raw) == b"x" * len(raw)


def mappings() -> list[list[str]]:
    with open("/proc/self/maps") as file:  # noqa: PTH123  (a file that is no file)
        return [line.split()[0].split("-") for line in file]


class TestMmap:
    async def test_pages_are_faulted_in_beforehand(self) -> None:
        region = await Mmap().acquire(16 * MIB, 64, GFP.KERNEL)
        assert resident(region.address, 16 * MIB) == 1
        await Mmap().release(region)

    async def test_acquire_nowait_leaves_the_page_faults_to_the_caller(self) -> None:
        region = Mmap().acquire_nowait(16 * MIB, 64, GFP.NOWAIT)
        assert resident(region.address, 16 * MIB) == 0
        region.memory[:PAGE] = b"x" * PAGE
        assert resident(region.address, PAGE) == 1
        await Mmap().release(region)

    @pytest.mark.parametrize("huge_pages", [False, True])
    async def test_memory_goes_back_on_release(self, huge_pages: bool) -> None:
        backend = Mmap(huge_pages=huge_pages)
        region = await backend.acquire(32 * MIB, 64, GFP.KERNEL)
        middle = region.address + 16 * MIB
        assert resident(middle, PAGE) == 1
        await backend.release(region)
        assert resident(middle, PAGE) is None

    async def test_memory_that_was_still_exported_goes_back_when_they_let_go(self) -> None:
        region = await Mmap().acquire(32 * MIB, 64, GFP.KERNEL)
        middle = region.address + 16 * MIB
        part = region.memory[:10]
        await Mmap().release(region)
        assert resident(middle, PAGE) == 1
        del part, region
        gc.collect()
        assert resident(middle, PAGE) is None

    async def test_a_forked_child_writes_into_copies(self) -> None:
        region = await Mmap().acquire(PAGE, 64, GFP.KERNEL)
        region.memory[:6] = b"parent"
        assert exit_code_of_child(lambda: bytes(region.memory[:6]) == b"parent") == 0

        def write() -> bool:
            region.memory[:6] = b"child!"
            return ctypes.string_at(region.address, 6) == b"child!"

        assert exit_code_of_child(write) == 0
        assert bytes(region.memory[:6]) == b"parent"
        await Mmap().release(region)

    @pytest.mark.parametrize("align", [64, PAGE, 16 * PAGE, MIB])
    async def test_any_power_of_two_is_an_alignment(self, align: int) -> None:
        for _ in range(3):
            region = await Mmap().acquire(3 * PAGE, align, GFP.KERNEL)
            assert region.address % align == 0
            assert region.memory.nbytes == 3 * PAGE
            await Mmap().release(region)

    async def test_huge_pages_are_asked_for_on_aligned_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, int]] = []
        monkeypatch.setattr(
            "aslab.backends._wishes.madvise", lambda _, nbytes, advice: asked.append((nbytes, advice))
        )
        region = await Mmap(huge_pages=True).acquire(HUGE, 64, GFP.KERNEL)
        assert region.address % HUGE == 0
        assert asked == [(HUGE, mmap.MADV_HUGEPAGE)]

    async def test_plain_pages_where_the_kernel_refuses_huge_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refused: list[int] = []

        def refuse(address: int, nbytes: int, advice: int) -> None:
            refused.append(advice)
            raise OSError(errno.EINVAL, "no such advice")

        monkeypatch.setattr("aslab.backends._wishes.madvise", refuse)
        backend = Mmap(huge_pages=True)
        region = await backend.acquire(HUGE, 64, GFP.KERNEL)
        assert refused == [mmap.MADV_HUGEPAGE]
        assert resident(region.address, HUGE) == 1
        region.memory[-1] = 1
        await backend.release(region)

    async def test_an_old_kernel_has_its_pages_touched_instead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        advised = fail_madvise(monkeypatch, errno.EINVAL)
        region = await Mmap().acquire(MIB, 64, GFP.KERNEL)
        assert advised == [region.address]
        assert resident(region.address, MIB) == 1
        await Mmap().release(region)

    async def test_no_call_holds_the_address_space_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spans: list[tuple[int, int]] = []
        monkeypatch.setattr(
            "aslab.backends._libc.madvise", lambda address, nbytes, advice: spans.append((address, nbytes))
        )
        region = await Mmap().acquire(32 * MIB + PAGE, 64, GFP.KERNEL)
        assert max(nbytes for _, nbytes in spans) <= 4 * MIB
        starts = [address for address, _ in spans]
        assert [*starts[1:], region.address + 32 * MIB + PAGE] == [start + nbytes for start, nbytes in spans]
        await Mmap().release(region)

    @pytest.mark.parametrize("code", [errno.ENOMEM, errno.EAGAIN, errno.EFAULT])
    async def test_memory_that_cannot_be_faulted_in_is_memory_error_and_unmapped(
        self, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        advised = fail_madvise(monkeypatch, code)
        with pytest.raises(MemoryError, match="cannot populate 33554432 bytes"):
            await Mmap().acquire(32 * MIB, 64, GFP.KERNEL)
        gc.collect()
        assert len(advised) == 1
        assert resident(advised[0] + 16 * MIB, PAGE) is None


def fail_madvise(monkeypatch: pytest.MonkeyPatch, code: int) -> list[int]:
    advised: list[int] = []

    def refuse(address: int, nbytes: int, advice: int) -> None:
        assert advice == _libc.MADV_POPULATE_WRITE
        advised.append(address)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("aslab.backends._libc.madvise", refuse)
    return advised


def exit_code_of_child(check: Callable[[], bool]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; this child only looks and exits
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestHeap:
    @pytest.mark.parametrize("nbytes", [64, 300_000])
    async def test_memory_outlives_its_release_and_its_holders_finalisers(self, nbytes: int) -> None:
        """The collector runs weak references' callbacks before finalisers, which may still write."""

        class Holder:
            def __init__(self, part: memoryview) -> None:
                self.part = part
                self.me = self

            def __del__(self) -> None:
                self.part[0] = 99
                written.append(self.part[0])

        written: list[int] = []
        region = await Heap().acquire(nbytes, 64, GFP.NOIO)
        holder = Holder(region.memory[1:3])
        await Heap().release(region)
        del region, holder
        gc.collect()
        assert written == [99]

    @pytest.mark.parametrize("nbytes", [PAGE, 300_000])
    async def test_acquire_answers_zeros(self, nbytes: int) -> None:
        for _ in range(3):
            region = await Heap().acquire(nbytes, 64, GFP.NOIO)
            assert not any(bytes(region.memory))
            region.memory[:] = b"x" * nbytes
            await Heap().release(region)


class TestCallback:
    async def test_acquire_nowait_would_always_block(self) -> None:
        called: list[int] = []
        backend = Callback(lambda nbytes, align, gfp: called.append(nbytes), nothing)
        with pytest.raises(anyio.WouldBlock):
            backend.acquire_nowait(64, 8, GFP.NOWAIT)
        assert not called

    async def test_it_uses_the_aligned_part_of_a_buffer_that_is_large_enough(self) -> None:
        given = bytearray(PAGE + 512)
        start = ctypes.addressof(ctypes.c_char.from_buffer(given))
        backend = Callback(lambda *_: memoryview(given)[-start % 512 + 8 :], nothing)
        region = await backend.acquire(64, 512, GFP.KERNEL)
        assert region.address % 512 == 0
        region.memory[0] = 9
        assert given[region.address - start] == 9

    async def test_both_functions_get_what_they_should(self) -> None:
        asked: list[tuple[int, int, GFP]] = []
        released: list[object] = []
        given = np.zeros(500, np.uint8)

        def acquire(nbytes: int, align: int, gfp: GFP) -> object:
            asked.append((nbytes, align, gfp))
            return given

        backend = Callback(acquire, released.append)
        region = await backend.acquire(64, 8, GFP.NOIO)
        await backend.release(region)
        assert asked == [(64, 8, GFP.NOIO)]
        assert len(released) == 1
        assert released[0] is given

    @pytest.mark.parametrize("error", [MemoryError, RuntimeError])
    async def test_what_acquire_raises_comes_out_as_it_is(self, error: type[Exception]) -> None:
        def acquire(nbytes: int, align: int, gfp: GFP) -> object:
            raise error("as it is")

        with pytest.raises(error, match=r"^as it is$"):
            await Callback(acquire, nothing).acquire(64, 8, GFP.KERNEL)

    @pytest.mark.parametrize(
        "given", [bytes(64), np.zeros((64, 2), np.uint8)[:, 0], 7], ids=["bytes", "strided", "int"]
    )
    async def test_what_is_no_writable_buffer_is_refused_and_given_back(self, given: object) -> None:
        released: list[object] = []
        with pytest.raises(TypeError):
            await Callback(lambda *_: given, released.append).acquire(64, 8, GFP.KERNEL)
        assert len(released) == 1
        assert released[0] is given


async def test_regions_over_buffers_start_at_the_alignment() -> None:
    for align in (1, 8, 64, 4096):
        region = Region.over(bytearray(10_000), align=align, token="t")
        assert region.address % align == 0
        assert region.memory.nbytes > 10_000 - align
        assert region.token == "t"


def test_region_over_read_only_memory_says_what_it_needs() -> None:
    with pytest.raises(TypeError, match="a region needs a writable buffer, not a read-only bytes"):
        Region.over(b"fixed")
