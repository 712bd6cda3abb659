"""Rows of pages, made by moving what is in the way: which row, what it costs, and what stops it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab import GFP, ConfigError
from aslab.emulation import Block, PhysicalMemory
from aslab.lab._simulation._waits import WaitGraph
from aslab.lab._story._compaction import MOST_DEFERRED, Compaction

from .helpers import Loop
from .support import settle

ROW = 5
SIZE = 1 << ROW
URGENT = GFP.NOIO | GFP.HIGH


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


class Kit:
    """A memory of a few rows, of which some pages are taken: for good, or by a process."""

    def __init__(
        self, rows: int, fixed: tuple[int, ...] = (), movable: tuple[int, ...] = (), **options: Any
    ) -> None:
        self.memory = PhysicalMemory(rows * SIZE, min=0)
        for pfn in fixed:
            assert self.memory.isolate(pfn)
        self.cluster = [Block(pfn, 0) for pfn in movable if self.memory.isolate(pfn)]
        self.movable = {page.pfn: self.cluster for page in self.cluster}
        self.compaction = Compaction(self.memory, self.movable, WaitGraph(), **options)

    def consistent(self) -> bool:
        """Whether whoever holds pages that can be moved holds the ones that are said to be."""
        return {page.pfn for page in self.cluster} == set(self.movable)


@pytest.mark.anyio
class TestMake:
    async def test_what_is_in_the_way_goes_elsewhere_and_its_holder_knows(self) -> None:
        k = Kit(2, fixed=(0,), movable=(33, 40))
        assert await k.compaction.make(ROW)
        assert k.memory.allocate(ROW, URGENT).pfn == 32
        assert all(page.pfn < 32 for page in k.cluster)
        assert k.consistent()
        assert k.compaction.moved == 2
        for page in k.cluster:
            k.memory.free(page)
        assert k.memory.free_pages == 31

    async def test_the_row_with_the_fewest_to_be_moved_is_chosen(self) -> None:
        k = Kit(3, movable=(0, 1, 40, 70, 71, 72))
        assert await k.compaction.make(ROW)
        assert k.memory.allocate(ROW, URGENT).pfn == 32
        assert k.compaction.moved == 1

    async def test_a_page_that_stays_rules_its_row_out(self) -> None:
        k = Kit(2, fixed=(3, 35), movable=(4, 36))
        assert not await k.compaction.make(ROW)
        assert (k.compaction.moved, k.memory.free_pages) == (0, 60)

    async def test_without_room_elsewhere_nothing_is_moved(self) -> None:
        k = Kit(2, fixed=tuple(range(31)), movable=(40, 41))
        assert not await k.compaction.make(ROW)
        assert k.compaction.moved == 0

    @pytest.mark.parametrize(("spare", "made"), [(30, True), (31, False)])
    async def test_it_leaves_what_is_to_be_spared(self, spare: int, made: bool) -> None:
        k = Kit(2, fixed=(0,), movable=(33,), spare=spare)
        assert k.memory.free_pages - SIZE == 30
        assert await k.compaction.make(ROW) is made

    async def test_looking_and_moving_take_their_time(self) -> None:
        k = Kit(2, fixed=(0,), movable=(33, 40), scan=0.5, move=100)
        began = anyio.current_time()
        assert await k.compaction.make(ROW)
        assert anyio.current_time() - began == 64 * 0.5 + 2 * 100

    async def test_a_page_freed_meanwhile_is_taken_and_one_taken_by_others_ends_it(self) -> None:
        for reused in (False, True):
            k = Kit(2, fixed=(0,), movable=(33, 40), move=1)
            async with anyio.create_task_group() as tasks:
                made: list[bool] = []

                async def make(k: Kit = k, made: list[bool] = made) -> None:
                    made.append(await k.compaction.make(ROW))

                tasks.start_soon(make)
                await anyio.sleep(1.5)  # the first has moved
                page = k.cluster.pop(next(i for i, page in enumerate(k.cluster) if page.pfn == 40))
                del k.movable[40]
                if not reused:
                    k.memory.free(page)
            assert made == [not reused]
            assert k.memory.free_pages == 64 - 2 - reused
            assert k.consistent()

    async def test_cancelled_it_gives_all_back(self) -> None:
        for moment in (0.5, 1.5, 2.5):
            k = Kit(2, fixed=(0,), movable=(33, 40, 41), move=1)
            free = k.memory.free_pages
            with anyio.move_on_after(moment):
                await k.compaction.make(ROW)
            assert k.memory.free_pages == free
            assert k.consistent()


@given(
    pages=st.lists(st.sampled_from(["free", "free", "free", "movable", "fixed"]), min_size=16, max_size=70),
    order=st.integers(1, 3),
)
def test_nothing_is_lost_or_doubled_and_a_row_is_made_whenever_one_can_be(pages: list[str], order: int) -> None:
    of = {kind: tuple(pfn for pfn, one in enumerate(pages) if one == kind) for kind in ("movable", "fixed")}
    k = Kit(3, fixed=(*of["fixed"], *range(len(pages), 3 * SIZE)), movable=of["movable"])
    free, size = k.memory.free_pages, 1 << order
    rows = [pages[start : start + size] for start in range(0, len(pages) - size + 1, size)]
    possible = any("fixed" not in row and row.count("movable") <= free - row.count("free") for row in rows)

    async def make() -> None:
        assert await k.compaction.make(order) == possible

    anyio.run(make)
    assert k.memory.free_pages == free
    assert k.consistent()
    assert len(k.cluster) == len(of["movable"])
    assert not {page.pfn for page in k.cluster} & set(of["fixed"])
    if possible:
        k.memory.allocate(order, GFP.KERNEL)
    for page in k.cluster:
        k.memory.free(page)  # refused if it was not taken


@pytest.mark.anyio
class TestKcompactd:
    async def test_a_request_that_lacks_but_a_row_fails_and_finds_one_later(self) -> None:
        k = Kit(2, fixed=(0,), movable=(33,))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(k.compaction.run)
            with pytest.raises(MemoryError):
                await k.memory.get(ROW, URGENT)
            await settle()
            assert (await k.memory.get(ROW, URGENT)).pfn == 32
            assert (k.compaction.made, k.compaction.in_vain) == (1, 0)
            tasks.cancel_scope.cancel()

    async def test_a_request_that_lacks_pages_or_is_for_one_does_not_wake_it(self) -> None:
        memory = PhysicalMemory(64, min=40, low=40, high=40)
        woken: list[int] = []
        memory.wake_kcompactd = woken.append
        for order in (5, 0):
            while True:
                try:
                    memory.allocate(order, GFP.KERNEL)
                except MemoryError:
                    break
        assert not woken

    async def test_after_runs_in_vain_more_and_more_requests_go_by(self) -> None:
        k = Kit(2, fixed=(0, 32))
        runs: list[int] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(k.compaction.run)
            for number in range(220):
                before = k.compaction.in_vain
                with pytest.raises(MemoryError):
                    k.memory.allocate(ROW, URGENT)
                await settle()
                if k.compaction.in_vain > before:
                    runs.append(number)
            tasks.cancel_scope.cancel()
        apart = [later - earlier - 1 for earlier, later in pairwise(runs)]
        assert apart == [1, 2, 4, 8, 16, 32, MOST_DEFERRED, MOST_DEFERRED]


@pytest.mark.parametrize(
    ("field", "options"), [("spare", {"spare": -1}), ("scan", {"scan": -1}), ("move", {"move": "1"})]
)
def test_bad_options_are_refused(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: "):
        Kit(1, **options)
