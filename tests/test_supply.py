"""Backends that break their contract, and regions on their way back."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import aslab
from aslab import GFP, BackendError
from aslab.backends import Callback, Heap, Region

from .helpers import Loop
from .support import SIZE, Gate, Instant, allocator, settle

pytestmark = pytest.mark.anyio


class Odd(Instant):
    """Instant memory, until it is told to answer something else."""

    def __init__(self) -> None:
        super().__init__()
        self.spoil: Callable[[Region, int], object] | None = None
        self.spoil_release = False
        self.released: list[Region] = []
        self.threads: set[str] = set()

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        region = super().acquire_nowait(nbytes, align, gfp)
        if self.spoil is None:
            return region
        try:
            answer = self.spoil(region, nbytes)
        except Exception:
            self.outstanding.remove(id(region))
            raise
        if answer is not region:  # what is no region cannot be given back
            self.outstanding.remove(id(region))
        return answer  # type: ignore[return-value]

    async def release(self, region: Region) -> None:
        self.threads.add(threading.current_thread().name)
        await super().release(region)
        self.released.append(region)
        if self.spoil_release:
            raise OSError("cannot release")

    def __repr__(self) -> str:
        return "<Odd>"


class Owned(Odd):
    """It says who owns a region, as it is told. All methods are its own, or it would not be asked."""

    acquire, acquire_nowait, release = Odd.acquire, Odd.acquire_nowait, Odd.release

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def region_owner(self, region: Region) -> object | None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def short(region: Region, nbytes: int) -> Region:
    region.memory = region.memory[: nbytes - 1]
    return region


def misaligned(region: Region, nbytes: int) -> Region:
    region.memory, region.address = region.memory[8:], region.address + 8
    return region


def read_only(region: Region, nbytes: int) -> Region:
    region.memory = region.memory.toreadonly()
    return region


def no_memoryview(region: Region, nbytes: int) -> Region:
    region.memory = bytearray(nbytes)  # type: ignore[assignment]
    return region


def not_bytes(region: Region, nbytes: int) -> Region:
    region.memory = region.memory[:nbytes].cast("I")
    return region


def not_contiguous(region: Region, nbytes: int) -> Region:
    region.memory = memoryview(bytearray(2 * nbytes))[::2]
    return region


def explode(region: Region, nbytes: int) -> Region:
    raise RuntimeError("no such device")


FAULTS = [
    (short, r"^<Odd> returned \d+ bytes; it must be at least the \d+ asked for$"),
    (misaligned, r"^<Odd> returned memory at 0x[0-9a-f]+; it must be a multiple of the alignment 64$"),
    (read_only, r"^<Odd> returned a view that is not writable, contiguous, flat bytes$"),
    (not_bytes, r"^<Odd> returned a view that is not writable, contiguous, flat bytes$"),
    (not_contiguous, r"^<Odd> returned a view that is not writable, contiguous, flat bytes$"),
    (no_memoryview, r"^<Odd> returned memory of type bytearray; it must be a memoryview$"),
    (lambda *_: None, r"^<Odd> returned None; it must be an aslab.backends.Region$"),
    (explode, r"^<Odd>.acquire raised RuntimeError\('no such device'\); it must raise MemoryError"),
]
each_fault = pytest.mark.parametrize(
    ("fault", "message"), FAULTS, ids=[getattr(f, "__name__", "") for f, _ in FAULTS]
)
Fault = Callable[[Region, int], object]


class TestBrokenContract:
    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    @each_fault
    async def test_of_slabs_is_the_callers_error_and_passes(self, fault: Fault, message: str) -> None:
        slabs = Odd()
        async with allocator(slabs=slabs) as kmem:
            cache = kmem.create_cache("c", SIZE)
            slabs.spoil = fault
            for call in (cache.alloc, lambda: cache.prefill(1)):
                with pytest.raises(BackendError, match=message) as caught:
                    await call()
                assert isinstance(caught.value.__cause__, RuntimeError) == (fault is explode)
                del caught
            await settle()
            assert not slabs.outstanding, "a bad region is given back too"
            assert kmem.stats().slab_bytes == 0
            assert (cache.stats().slab_fail >= 2, cache.stats().slab_total) == (True, 0)
            slabs.spoil = None
            async with cache.lease() as buf:
                assert not buf.emergency

    @each_fault
    async def test_of_emergency_objects_is_the_callers_error_and_passes(self, fault: Fault, message: str) -> None:
        emergency = Odd()
        async with allocator(slabs=Gate(), emergency=emergency, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE, max_emergency=1)
            emergency.spoil = fault
            with pytest.raises(BackendError, match=message):
                await cache.alloc()
            await settle()  # what max_emergency permits is outstanding until the region is back
            with pytest.raises(BackendError, match=message.replace(".acquire raised", ".acquire_nowait raised")):
                cache.alloc_nowait()
            await settle()
            assert not emergency.outstanding
            assert (cache.stats().obj_emergency, cache.stats().waiters) == (0, 0)
            emergency.spoil = None
            async with cache.lease() as buf:
                assert buf.emergency, "the failures took none of max_emergency"
            cache.alloc_nowait().free()

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (7, r"^<Odd>.region_owner returned 7; it must be the object that region.memory is of, or None$"),
            (RuntimeError("no idea"), r"^<Odd>.region_owner raised RuntimeError\('no idea'\)$"),
        ],
        ids=["odd", "raises"],
    )
    async def test_of_owners_is_the_callers_error_and_passes(self, answer: object, message: str) -> None:
        emergency = Owned(answer)
        async with allocator(slabs=Gate(), emergency=emergency, kick_after=None) as kmem:
            cache = kmem.create_cache("c", SIZE, max_emergency=1)
            for _ in range(2):
                with pytest.raises(BackendError, match=message):
                    await cache.alloc()
                await settle()
                assert not emergency.outstanding
                assert (cache.stats().obj_emergency, kmem.stats().emergency_bytes) == (0, 0)
            emergency.answer = KeyboardInterrupt()
            with pytest.raises(KeyboardInterrupt):
                cache.alloc_nowait()
            await settle()
            assert not emergency.outstanding
            emergency.answer = None
            cache.alloc_nowait().free()

    async def test_nothing_is_asked_for_again_on_behalf_of_callers_who_were_told(self) -> None:
        slabs = Odd()
        slabs.spoil = explode
        async with allocator(slabs=slabs) as kmem:
            cache = kmem.create_cache("c", SIZE)
            for _ in range(10):
                with pytest.raises(BackendError):
                    await cache.prefill(1)
                await settle()
            assert cache.stats().slab_fail == 10

    async def test_every_waiter_is_told(self) -> None:
        slabs = Odd()
        slabs.spoil = explode
        async with allocator(slabs=slabs) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("c", SIZE)
            told: list[int] = []

            async def caller(number: int) -> None:
                with pytest.raises(BackendError, match="no such device"):
                    await cache.alloc()
                told.append(number)

            for number in range(5):
                tasks.start_soon(caller, number)
            await settle()
            assert sorted(told) == [0, 1, 2, 3, 4]

    async def test_an_own_backend_error_comes_out_as_it_is(self) -> None:
        def refuse(region: Region, nbytes: int) -> object:
            raise BackendError("the pool behind me is gone")

        slabs = Odd()
        slabs.spoil = refuse
        async with allocator(slabs=slabs) as kmem:
            with pytest.raises(BackendError, match=r"^the pool behind me is gone$"):
                await kmem.create_cache("c", SIZE).alloc()

    async def test_a_release_that_raises_is_logged_and_the_next_ones_still_happen(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        slabs = Odd()
        async with allocator(slabs=slabs) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await cache.prefill(24)
            slabs.spoil_release = True
            with caplog.at_level(logging.ERROR, "aslab"), anyio.fail_after(10):
                assert await cache.reap() == 24 * SIZE
            slabs.spoil_release = False
            assert len(slabs.released) == 3
            assert [one.getMessage() for one in caplog.records] == ["<Odd> failed to release a region"] * 3
            assert kmem.stats().slab_bytes == 0
            assert not cache.stats().flags & (1 << 16)
            async with cache.lease():
                pass

    @pytest.mark.parametrize("error", [MemoryError, anyio.WouldBlock])
    async def test_want_of_memory_at_once_is_would_block(self, error: type[Exception]) -> None:
        def refuse(region: Region, nbytes: int) -> object:
            raise error

        emergency = Odd()
        emergency.spoil = refuse
        async with allocator(slabs=Gate(), emergency=emergency) as kmem:
            cache = kmem.create_cache("c", SIZE, max_emergency=1)
            for _ in range(2):
                with pytest.raises(anyio.WouldBlock):
                    cache.alloc_nowait()
            emergency.spoil = None
            buf = cache.alloc_nowait()
            assert buf.emergency
            buf.free()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.001)


async def test_a_slab_freed_after_the_allocator_is_closed_goes_back_in_a_thread() -> None:
    slabs = Odd()
    with pytest.warns(ResourceWarning, match="closed with 1 buffers still held"):
        async with aslab.open_allocator(slabs=slabs, grow_timeout=3600) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
    assert len(slabs.outstanding) == 1
    buf.view[:] = b"x" * SIZE
    buf.free()
    await until(lambda: bool(slabs.released))
    assert slabs.threads == {"aslab late releases"}
    assert not slabs.outstanding


async def test_an_emergency_object_freed_after_the_allocator_is_closed_goes_back_in_a_thread() -> None:
    slabs, emergency = Gate(), Odd()
    with pytest.warns(ResourceWarning, match="closed with 1 buffers still held"):
        async with aslab.open_allocator(slabs=slabs, emergency=emergency, grow_timeout=0) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
            slabs.open()
    assert buf.emergency
    buf.free()
    await until(lambda: bool(emergency.released))
    assert emergency.threads == {"aslab late releases"}


async def test_late_release_works_with_an_async_backend() -> None:
    given: list[object] = []

    async def acquire(nbytes: int, align: int, gfp: GFP) -> bytearray:
        await anyio.lowlevel.checkpoint()
        return bytearray(nbytes + align)

    async def release(memory: object) -> None:
        await anyio.sleep(0.001)
        given.append(memory)

    with pytest.warns(ResourceWarning, match="still held"):
        async with aslab.open_allocator(slabs=Callback(acquire, release)) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
    buf.free()
    await until(lambda: bool(given))
    assert isinstance(given[0], bytearray)


async def test_a_late_release_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    slabs = Odd()
    with pytest.warns(ResourceWarning, match="still held"):
        async with aslab.open_allocator(slabs=slabs, grow_timeout=3600) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()
    slabs.spoil_release = True
    with caplog.at_level(logging.ERROR, "aslab"):
        buf.free()
        await until(lambda: bool(caplog.records))
    assert [one.getMessage() for one in caplog.records] == [
        "<Odd> failed to release a region after its allocator was closed"
    ]


async def test_a_free_within_threading_itself_waits_for_no_thread() -> None:
    """As by the garbage collector, while threads are listed: a new thread waits for the lock held then."""
    slabs = Odd()
    with pytest.warns(ResourceWarning, match="still held"):
        async with aslab.open_allocator(slabs=slabs, grow_timeout=3600) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()

    def free() -> None:
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            buf.free()

    thread = threading.Thread(target=free, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    await until(lambda: bool(slabs.released))


async def test_late_release_without_a_thread_to_do_it_crashes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As at the end of the interpreter, which starts no more threads, and releases all memory itself."""
    with pytest.warns(ResourceWarning):
        async with aslab.open_allocator(slabs=Instant()) as kmem:
            buf = await kmem.create_cache("c", SIZE).alloc()

    def no_more_threads(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    buf.free()


async def test_lying_or_unusable_region_is_a_broken_contract_and_the_allocator_goes_on() -> None:
    def lies(region: Region) -> None:
        region.address = 4096

    def is_no_number(region: Region) -> None:
        region.address = None  # type: ignore[assignment]

    def is_released(region: Region) -> None:
        region.memory.release()

    class Spoils(Instant):
        def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
            region = super().acquire_nowait(nbytes, align, gfp)
            if spoil:
                spoil.pop()(region)
            return region

    spoil = [lies, is_no_number, is_released]
    async with allocator(slabs=Spoils(), grow_timeout=100) as kmem:
        cache = kmem.create_cache("c", SIZE)
        for _ in range(3):
            with pytest.raises(BackendError, match="returned"):
                await cache.alloc()
        (await cache.alloc()).free()


async def test_backend_error_of_a_backends_own_kind_reaches_the_caller() -> None:
    class Mine(BackendError):
        def __init__(self, *, where: str) -> None:
            super().__init__(f"broken at {where}")
            self.where = where

    class Breaks(Instant):
        async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
            raise Mine(where="home")

    async with allocator(slabs=Breaks(), grow_timeout=100) as kmem:
        with pytest.raises(Mine, match="home"):
            await kmem.create_cache("c", SIZE).alloc()


async def test_what_the_last_release_brings_is_released_too_before_the_allocator_is_closed() -> None:
    kept: list[memoryview] = []

    class Last(Instant):
        async def release(self, region: Region) -> None:
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            kept.clear()  # now a slab can be released
            await super().release(region)

    slabs, emergency = Instant(), Last()
    async with aslab.open_allocator(slabs=slabs, emergency=emergency) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=1)
        bufs = [await cache.alloc()]
        while not bufs[-1].emergency:
            bufs.append(cache.alloc_nowait())
        kept.append(bufs[0].view)
        for buf in bufs:
            buf.free()
    assert not slabs.outstanding
    assert not emergency.outstanding


# -- regions of which the owner of their memory is kept


LARGE = 200_000


async def test_the_owner_of_an_emergency_objects_memory_is_kept_alone_and_dropped() -> None:
    gate = Gate()
    async with allocator(slabs=gate, emergency=Heap(), kick_after=None) as kmem:
        cache = kmem.create_cache("c", LARGE)
        tracemalloc.start()
        try:
            buf = cache.alloc_nowait()
            slot: Any = buf._slot
            assert type(slot.region) is bytearray
            with pytest.raises(BufferError):  # it stays where it is
                slot.region.clear()
            assert tracemalloc.get_traced_memory()[0] > LARGE
            buf.free()
            await settle()
            assert tracemalloc.get_traced_memory()[0] < LARGE
        finally:
            tracemalloc.stop()
        gate.open()


async def test_a_backend_that_keeps_books_of_its_regions_has_each_back() -> None:
    class Books(Heap):
        def __init__(self) -> None:
            super().__init__()
            self.out: list[Region] = []

        def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
            self.out.append(super().acquire_nowait(nbytes, align, gfp))
            return self.out[-1]

        async def release(self, region: Region) -> None:
            self.out.remove(region)
            await super().release(region)

    books, gate = Books(), Gate()
    async with allocator(slabs=gate, emergency=books, kick_after=None) as kmem:
        buf = kmem.create_cache("c", SIZE).alloc_nowait()
        assert [region.address for region in books.out] == [buf.address]
        buf.free()
        await settle()
        assert books.out == []
        gate.open()
