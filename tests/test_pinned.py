"""Page-locked slabs, with a driver that pretends: nothing stays locked, nothing locked is unmapped."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, ConfigError
from aslab.backends import CudaDriver, Driver, Mmap, Pinned
from aslab.testing import FakeDriver, check_backend

from .test_backends import PAGE, resident

pytestmark = pytest.mark.anyio
MIB = 2**20


async def until_empty(driver: FakeDriver) -> None:
    with anyio.fail_after(60):
        while driver.registered:
            await anyio.sleep(0.001)


async def test_it_keeps_the_contract() -> None:
    drivers: list[FakeDriver] = []

    def factory() -> Pinned:
        drivers.append(FakeDriver())
        return Pinned(driver=drivers[-1], piece=PAGE)

    await check_backend(factory)
    for driver in drivers:
        await until_empty(driver)


@pytest.mark.parametrize(("piece", "registrations"), [(None, 1), (MIB, 3), (2 * MIB, 2)])
async def test_a_slab_is_registered_as_a_whole_or_in_pieces(piece: int | None, registrations: int) -> None:
    driver = FakeDriver()
    pinned = Pinned(driver=driver, piece=piece)
    region = await pinned.acquire(3 * MIB - 5, 64, GFP.KERNEL)
    assert len(driver.registered) == registrations
    assert sum(driver.registered.values()) == 3 * MIB, "whole pages"
    assert min(driver.registered) == region.address
    assert resident(region.address, 3 * MIB) == 1
    await pinned.release(region)
    assert not driver.registered
    assert resident(region.address + MIB, PAGE) is None


async def test_buffers_of_a_cache_are_locked_and_emergency_objects_are_not() -> None:
    driver = FakeDriver(stuck_at=2)

    async with aslab.open_allocator(slabs=Pinned(driver=driver), kick_after=None, grow_timeout=0.01) as kmem:
        cache = kmem.create_cache("frames", MIB, objects_per_slab=1)
        await cache.prefill(1)  # however long it takes
        first, second = await cache.alloc(), await cache.alloc()  # its slab is stuck at the driver
        spans = [(start, start + size) for start, size in driver.registered.items()]
        locked = [any(start <= buf.address < end for start, end in spans) for buf in (first, second)]
        assert locked == [True, False]
        assert cache.stats().obj_emergency == 1
        second.view[:4] = b"here"
        first.free()
        second.free()
        driver.let_go()
    await until_empty(driver)


async def test_what_the_driver_refuses_is_memory_error_and_leaves_nothing() -> None:
    driver = FakeDriver(most=2 * MIB)
    pinned = Pinned(driver=driver, piece=MIB)
    with pytest.raises(MemoryError, match="can be locked"):
        await pinned.acquire(4 * MIB, 64, GFP.KERNEL)
    assert driver.calls == 3
    assert not driver.registered
    region = await pinned.acquire(2 * MIB, 64, GFP.KERNEL)
    await pinned.release(region)


async def test_a_stall_is_abandoned_between_two_pieces() -> None:
    driver = FakeDriver(stuck_at=2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Pinned(driver=driver, piece=MIB).acquire, 8 * MIB, 64, GFP.KERNEL)
        with anyio.fail_after(60):
            while not driver.stuck.is_set():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    (first,) = driver.registered
    assert resident(first, MIB) == 1, "nothing is unmapped while the driver is at work"
    driver.let_go()
    await until_empty(driver)
    assert driver.calls == 2, "the other six pieces were not begun"
    with anyio.fail_after(60):
        while resident(first, MIB) is not None:  # a page of it may be somebody else's by now
            await anyio.sleep(0.001)


async def test_memory_that_the_driver_keeps_is_never_unmapped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    driver = FakeDriver(most=MIB)
    pinned = Pinned(driver=driver, piece=MIB)
    region = await pinned.acquire(MIB, 64, GFP.KERNEL)
    address = region.address
    monkeypatch.setattr(driver, "unregister", lambda address: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await pinned.release(region)
    del region
    assert resident(address, MIB) == 1
    driver.most = 2 * MIB
    with caplog.at_level(logging.ERROR, "aslab"), pytest.raises(MemoryError):
        await pinned.acquire(2 * MIB, 64, GFP.KERNEL)
    assert "keeps memory that its driver does not let go of" in caplog.text


async def test_nowait_would_block() -> None:
    with pytest.raises(anyio.WouldBlock):
        Pinned(driver=FakeDriver()).acquire_nowait(PAGE, 64, GFP.NOWAIT)


async def test_pages_come_from_the_mmap_that_it_is_given() -> None:
    pinned = Pinned(driver=FakeDriver(), memory=Mmap(populate_threads=2, huge_pages="transparent"))
    region = await pinned.acquire(8 * MIB, 64, GFP.KERNEL)
    assert region.address % (2 * MIB) == 0
    await pinned.release(region)


@pytest.mark.parametrize("piece", [0, 1, PAGE + 1, 1.5, True])
def test_pieces_are_whole_pages(piece: Any) -> None:
    with pytest.raises(ConfigError, match="piece"):
        Pinned(driver=FakeDriver(), piece=piece)


class TestCudaDriver:
    """The libraries are stand-ins that return what the real ones do; no GPU is needed, and none is used."""

    @pytest.fixture(autouse=True)
    def _no_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "torch"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr("aslab.backends._cuda.LIBRARIES", ("libnothing.so.0",))

    @staticmethod
    def bindings(monkeypatch: pytest.MonkeyPatch, code: int, calls: list[tuple[int, ...]]) -> None:
        def call(*args: int) -> tuple[SimpleNamespace]:
            calls.append(args)
            return (SimpleNamespace(value=code if len(args) == 3 else 0, name="cudaErrorSo"),)

        runtime = ModuleType("cuda.bindings.runtime")
        for name in ("cudaSetDevice", "cudaHostRegister", "cudaHostUnregister"):
            setattr(runtime, name, call)
        monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)

    def test_without_any_library_one_line_says_what_to_install(self) -> None:
        with pytest.raises(ImportError, match=r"^Pinned needs the extra 'cuda'.*PyTorch"):
            Pinned()

    def test_cuda_bindings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[int, ...]] = []
        self.bindings(monkeypatch, 0, calls)
        driver: Driver = CudaDriver(device=3)
        driver.register(0x1000, 4096)
        driver.unregister(0x1000)
        assert calls == [(3,), (0x1000, 4096, 1), (3,), (0x1000,)]

    @pytest.mark.parametrize(("code", "error"), [(2, MemoryError), (35, RuntimeError)])
    def test_errors(self, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]) -> None:
        self.bindings(monkeypatch, code, [])
        with pytest.raises(error, match="cudaHostRegister"):
            CudaDriver().register(0x1000, 4096)

    @pytest.mark.parametrize("cuda", ["12.8", None])
    def test_torch(self, monkeypatch: pytest.MonkeyPatch, cuda: str | None) -> None:
        calls: list[tuple[int, ...]] = []

        def call(*args: int) -> SimpleNamespace:
            calls.append(args)
            return SimpleNamespace(value=0)

        torch: Any = ModuleType("torch")
        torch.version = SimpleNamespace(cuda=cuda)
        cudart = SimpleNamespace(cudaHostRegister=call, cudaHostUnregister=call)
        torch.cuda = SimpleNamespace(set_device=lambda device: None, cudart=lambda: cudart)
        monkeypatch.setitem(sys.modules, "torch", torch)
        if cuda is None:
            with pytest.raises(ImportError, match="PyTorch built with CUDA"):
                CudaDriver()
            return
        driver = CudaDriver()
        driver.register(0x1000, 4096)
        driver.unregister(0x1000)
        assert calls == [(0x1000, 4096, 1), (0x1000,)]

    def test_the_runtime_library_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[str, tuple[int, ...]]] = []

        class Function:
            argtypes: tuple[object, ...] = ()

            def __init__(self, name: str) -> None:
                self.name = name

            def __call__(self, *args: int) -> int:
                calls.append((self.name, args))
                return 0

        library = SimpleNamespace(
            **{name: Function(name) for name in ("cudaSetDevice", "cudaHostRegister", "cudaHostUnregister")}
        )
        monkeypatch.setattr("ctypes.CDLL", lambda name: library)
        driver = CudaDriver()
        driver.register(0x1000, 4096)
        driver.unregister(0x1000)
        assert calls[1::2] == [("cudaHostRegister", (0x1000, 4096, 1)), ("cudaHostUnregister", (0x1000,))]
        assert len(library.cudaHostRegister.argtypes) == 3

    @pytest.mark.parametrize("device", [-1, None, "0"])
    def test_a_device_is_a_number(self, device: Any) -> None:
        with pytest.raises(ConfigError, match="device"):
            CudaDriver(device)


class TestFakeDriver:
    def test_it_refuses_what_cuda_refuses(self) -> None:
        driver = FakeDriver()
        driver.register(PAGE, 2 * PAGE)
        with pytest.raises(RuntimeError, match="locked already"):
            driver.register(2 * PAGE, PAGE)
        with pytest.raises(RuntimeError, match="no whole pages"):
            driver.register(8 * PAGE + 1, PAGE)
        with pytest.raises(RuntimeError, match="nothing is locked"):
            driver.unregister(2 * PAGE)
        driver.unregister(PAGE)
