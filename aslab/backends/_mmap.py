"""Slabs from anonymous private mappings: page-aligned, faulted in beforehand, and unmapped when given back.

The mappings are private, so a forked child writes into copies and never into its parent's slabs.

Huge pages are faster to use, but take an unpredictable time to get: faulting in 256 MiB of them took between 30 ms
and 1,000 ms on the same machine. By default they are used while they come quickly.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from .._checks import boolean, optional, whole_number
from .._errors import ConfigError
from .._flags import GFP
from .._reach import self_contained
from ._huge import QuickHugePages
from ._libc import PAGE_SIZE, prefault
from ._pieces import Piece, cut, each_piece
from ._protocol import Region, address_of
from ._threads import MAX_THREADS, run_blocking
from ._wishes import HUGE_PAGE, MOST_NODES, Wishes, ask_for_huge_pages, map_explicit

HugePages = Literal["auto", "never", "transparent", "explicit"]
LEAST_PIECE, MOST_PIECE = HUGE_PAGE, 64 * 2**20
"""Bytes that a thread touches at a time: many pieces keep all threads busy to the end, few cost less."""
PIECES_A_THREAD = 4


@self_contained()
class Mmap:
    """Anonymous memory from the kernel; the default for slabs. Usable on any loop, and on several.

    User space cannot influence how the kernel reclaims, so the GFP flags have no effect here. Whatever the system
    refuses of the options is done without; the reason is logged (logger ``aslab``), once for each option.

    :param populate_threads: how many threads fault in one slab. More than one is faster for slabs of many MiB,
        where the machine has the cores and the memory the bandwidth
    :param huge_pages: ``"auto"`` asks for huge pages while the kernel gives them quickly, for slabs of 2 MiB and
        more; after a slow one not for a while. ``"transparent"`` asks for them however long it takes; slabs are
        then aligned to 2 MiB. ``"explicit"`` takes reserved ones (``vm.nr_hugepages``), or transparent ones if
        there are not enough. True and False stand for ``"transparent"`` and ``"never"``
    :param mlock: keep pages out of swap; needs ``RLIMIT_MEMLOCK`` or CAP_IPC_LOCK
    :param numa_node: take pages from this NUMA node, or from another one when it has none
    :param dont_dump: leave the memory out of core dumps
    :param unmergeable: never share equal pages with others (KSM), which would tell them the content
    :raises ConfigError: for a value that makes no sense anywhere
    """

    def __init__(
        self,
        *,
        populate_threads: int = 1,
        huge_pages: HugePages | bool = "auto",
        mlock: bool = False,
        numa_node: int | None = None,
        dont_dump: bool = False,
        unmergeable: bool = False,
    ) -> None:
        whole_number("populate_threads", populate_threads, 1, MAX_THREADS)
        optional(whole_number, least=0, most=MOST_NODES - 1)("numa_node", numa_node)
        for name, value in (("mlock", mlock), ("dont_dump", dont_dump), ("unmergeable", unmergeable)):
            boolean(name, value)
        if isinstance(huge_pages, bool):
            huge_pages = "transparent" if huge_pages else "never"
        if huge_pages not in get_args(HugePages):
            raise ConfigError("huge_pages", huge_pages, "it must be 'auto', 'never', 'transparent' or 'explicit'")
        self.populate_threads = populate_threads
        self.huge_pages: HugePages = huge_pages
        self._quick = QuickHugePages() if huge_pages == "auto" else None
        self._wishes = Wishes(
            mlock=mlock,
            node=numa_node,
            dont_dump=dont_dump,
            apart=unmergeable,
        )

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Map and fault in, in a thread, or in several.

        :raises MemoryError: if the kernel has no memory or no address space
        """
        together = self.populate_threads > 1 and nbytes > LEAST_PIECE
        region = await run_blocking(partial(self._map, nbytes, align, populate=not together), undo=_unmap)
        if together:
            share = nbytes // (self.populate_threads * PIECES_A_THREAD)
            size = min(max(LEAST_PIECE, share // HUGE_PAGE * HUGE_PAGE), MOST_PIECE)
            await each_piece(
                list(cut(region.address, nbytes, size)),
                self._prefault,
                undo=partial(_give_up, region),
                threads=self.populate_threads,
            )
        return region

    async def acquire_many(self, count: int, nbytes: int, align: int, gfp: GFP, within: float) -> list[Region]:
        """Like `acquire`, in one go, where one thread does it; else one region.

        :raises MemoryError: if there is no memory for the first
        """
        if self.populate_threads > 1:
            return [await self.acquire(nbytes, align, gfp)]
        call = partial(self._map_many, count, nbytes, align, within)
        return await run_blocking(call, undo=_unmap_all)

    async def acquire_each(self, nbytes: int, align: int, gfp: GFP, deliver: Callable[[Region], bool]) -> None:
        """Like `acquire`, again and again, by one thread that goes on while what it has made is in use already.

        :raises MemoryError: if there is no memory for one
        """
        if self.populate_threads > 1:
            while deliver(await self.acquire(nbytes, align, gfp)):
                pass
            return
        await run_blocking(partial(self._map_each, nbytes, align, deliver), undo=_passed_on)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        """Map without faulting in, because that would block: the caller takes the page faults.

        :raises MemoryError: if the kernel has no address space
        """
        return self._map(nbytes, align, populate=False)

    async def release(self, region: Region) -> None:
        """Give the pages back, in a thread.

        Memory that is still exported (by an object that a ``ctor`` built and the caller kept) stays mapped until
        the last export is gone.
        """
        await run_blocking(partial(_unmap, region))

    def _map_many(self, count: int, nbytes: int, align: int, within: float) -> list[Region]:
        until = time.monotonic() + within
        regions = [self._map(nbytes, align, populate=True)]
        with contextlib.suppress(MemoryError):  # then these are all
            while len(regions) < count and time.monotonic() < until:
                regions.append(self._map(nbytes, align, populate=True))
        return regions

    def _map_each(self, nbytes: int, align: int, deliver: Callable[[Region], bool]) -> None:
        while deliver(self._map(nbytes, align, populate=True)):
            pass

    def _map(self, nbytes: int, align: int, *, populate: bool) -> Region:
        explicit = self._explicit(nbytes, align) if self.huge_pages == "explicit" else None
        transparent = self.huge_pages in {"transparent", "explicit"} and explicit is None
        if transparent:
            align = max(align, HUGE_PAGE)
        mapping = explicit or _anonymous(nbytes, align)
        whole = memoryview(mapping)
        start = -address_of(whole) % align
        region = Region(whole[start : start + nbytes], address_of(whole) + start, mapping)
        whole.release()
        if transparent:
            self._wishes.attempt("huge_pages", partial(ask_for_huge_pages, region.address, nbytes))
        self._wishes.ask(region.address, nbytes)
        if populate:
            try:
                self._prefault(region.address, nbytes)
            except MemoryError:
                _unmap(region)
                raise
        return region

    def _prefault(self, address: int, nbytes: int) -> None:
        if self._quick is not None and nbytes >= HUGE_PAGE:
            self._quick.prefault(address, nbytes, prefault)
        else:
            prefault(address, nbytes)

    def _explicit(self, nbytes: int, align: int) -> mmap.mmap | None:
        mapped: list[mmap.mmap] = []
        self._wishes.attempt("huge_pages", lambda: mapped.append(map_explicit(nbytes, align)))
        return mapped[0] if mapped else None


def _anonymous(nbytes: int, align: int) -> mmap.mmap:
    slack = align - PAGE_SIZE if align > PAGE_SIZE else 0
    try:
        return mmap.mmap(-1, nbytes + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as exc:
        raise MemoryError(f"cannot map {nbytes} bytes: {exc}") from exc


def _passed_on(_: None) -> None:
    """Undo nothing: each region has been passed on, and is its receiver's."""


def _give_up(region: Region, populated: list[Piece]) -> None:
    _unmap(region)


def _unmap_all(regions: list[Region]) -> None:
    for region in regions:
        _unmap(region)


def _unmap(region: Region) -> None:
    """Give a mapping's pages back. May take long."""
    mapping, region.token = region.token, None
    # Memory that is still exported keeps its mapping, which goes away with the last export.
    with contextlib.suppress(BufferError):
        region.memory.release()
        if isinstance(mapping, mmap.mmap):
            mapping.close()
