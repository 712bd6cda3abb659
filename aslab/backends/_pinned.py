"""Slabs that a GPU copies from and to at full speed: ordinary mappings whose pages are locked and known to CUDA.

Locking takes long (every page is looked up, and the driver holds a lock of its own meanwhile), which is why such
memory is worth pooling. A slab is faulted in first, by several threads if `Mmap` is told so, and registered next.

A copy must lie in one registration: across the border of two, CUDA returns cudaErrorInvalidValue. So a slab is
one registration, unless ``piece`` cuts it where no object crosses.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import anyio

from .._checks import whole_number
from .._errors import ConfigError
from .._flags import GFP
from .._reach import self_contained
from ._cuda import CudaDriver, Driver
from ._libc import PAGE_SIZE
from ._mmap import Mmap, _unmap
from ._pieces import Piece, cut, each_piece
from ._protocol import Region
from ._threads import run_blocking

log = logging.getLogger("aslab")


@self_contained("driver", "memory")
class Pinned:
    """Page-locked memory for CUDA, for slabs. Usable on any loop, and on several.

    Emergency objects come from another backend and stay ordinary memory: copies of them are slower, and nothing
    stops. `acquire_nowait` always raises `anyio.WouldBlock`, because locking may take long.

    :param driver: what locks the pages; `CudaDriver` by default
    :param memory: where the pages come from; its options are those of `Mmap`
    :param piece: bytes of each registration of a slab, a multiple of the page size: a grow that is given up then
        stops after the piece at hand. It must be a multiple of an object's stride, or copies fail. Whole slabs by
        default
    :raises ImportError: without a driver, if neither cuda-bindings nor PyTorch nor the CUDA runtime is installed
    :raises ConfigError: if ``piece`` is no multiple of the page size
    """

    def __init__(
        self, *, driver: Driver | None = None, memory: Mmap | None = None, piece: int | None = None
    ) -> None:
        if piece is not None:
            whole_number("piece", piece, PAGE_SIZE)
            if piece % PAGE_SIZE:
                raise ConfigError("piece", piece, f"it must be a multiple of the page size, {PAGE_SIZE}")
        self.driver: Driver = CudaDriver() if driver is None else driver
        self.memory: Mmap = Mmap() if memory is None else memory
        self.piece = piece
        self._lost: list[Region] = []
        """Memory that the driver would not let go of, which therefore stays mapped."""

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Map, fault in and register, in threads. If cancelled, the driver's call at hand is the last.

        :raises MemoryError: if there is no memory, or no more can be locked
        """
        region = await self.memory.acquire(nbytes, align, gfp)
        whole = -(-nbytes // PAGE_SIZE) * PAGE_SIZE
        pieces = list(cut(region.address, whole, self.piece or whole))
        await each_piece(pieces, self.driver.register, undo=partial(self._undo, region))
        region.token = _Locked(region.token, pieces)
        return region

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Never succeed.

        :raises anyio.WouldBlock: always
        """
        raise anyio.WouldBlock

    async def release(self, region: Region) -> None:
        """Unregister and unmap, in a thread.

        If the driver refuses, the memory stays mapped: it must not be reused while a device may still write to it.
        """
        locked = region.token
        assert isinstance(locked, _Locked)
        region.token = locked.token
        await run_blocking(partial(self._let_go, region, locked.pieces))

    def _undo(self, region: Region, registered: list[Piece]) -> None:
        try:
            self._let_go(region, registered)
        except Exception:
            log.exception("%r keeps memory that its driver does not let go of", self)

    def _let_go(self, region: Region, registered: list[Piece]) -> None:
        """Unregister, then unmap."""
        errors = []
        for address, _ in reversed(registered):
            try:
                self.driver.unregister(address)
            except Exception as exc:
                errors.append(exc)
        if errors:
            self._lost.append(Region(region.memory, region.address, region.token))
            raise errors[0]
        _unmap(region)


@dataclass(frozen=True, slots=True)
class _Locked:
    """The token of a region: that of its mapping, and what is registered of it."""

    token: object
    pieces: list[Piece]
