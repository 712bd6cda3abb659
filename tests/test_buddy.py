"""The buddy allocator, against a model that is nothing but an array of pages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab import ConfigError
from aslab.emulation import Buddy

ORDERS = range(11)


class Naive:
    """Which pages are free; everything else is searched."""

    def __init__(self, pages: int) -> None:
        self.used = bytearray(pages)

    def is_free(self, pfn: int, order: int) -> bool:
        block = self.used[pfn : pfn + (1 << order)]
        return len(block) == 1 << order and not any(block)

    def has(self, order: int) -> bool:
        return any(self.is_free(pfn, order) for pfn in range(0, len(self.used), 1 << order))

    def mark(self, pfn: int, order: int, used: bool) -> None:
        for page in range(pfn, pfn + (1 << order)):
            assert self.used[page] != used, f"page {page} is in two blocks"
            self.used[page] = used

    def free_in_rows(self, order: int) -> list[int]:
        starts = range(0, len(self.used) - (1 << order) + 1, 1 << order)
        return [self.used[start : start + (1 << order)].count(0) for start in starts]

    def counts(self) -> tuple[int, ...]:
        """Of the largest aligned blocks that the free pages can be put together to."""
        counts, pfn = [0] * len(ORDERS), 0
        while pfn < len(self.used):
            fitting = [order for order in ORDERS if pfn % (1 << order) == 0 and self.is_free(pfn, order)]
            if fitting:
                counts[fitting[-1]] += 1
            pfn += 1 << fitting[-1] if fitting else 1
        return tuple(counts)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.one_of(st.integers(0, 3), st.sampled_from(ORDERS))),
        st.tuples(st.just("page"), st.integers(0, 5000)),
        st.tuples(st.just("free"), st.integers(0, 5000)),
    ),
    max_size=60,
)


@given(pages=st.one_of(st.integers(1, 300), st.integers(1000, 2600)), steps=steps)
def test_any_sequence_matches_the_naive_model(pages: int, steps: list[tuple[str, int]]) -> None:
    buddy, naive = Buddy(pages), Naive(pages)
    initial = buddy.counts()
    held: list[tuple[int, int]] = []
    for step, number in steps:
        if step == "allocate":
            possible = naive.has(number)
            pfn = buddy.allocate(number)
            assert (pfn is not None) == possible
            if pfn is not None:
                assert pfn % (1 << number) == 0
                naive.mark(pfn, number, True)
                held.append((pfn, number))
        elif step == "page":
            page = number % pages
            assert buddy.allocate_page(page) == naive.is_free(page, 0)
            if naive.is_free(page, 0):
                naive.mark(page, 0, True)
                held.append((page, 0))
        elif held:
            block = held.pop(number % len(held))
            buddy.free(*block)
            naive.mark(*block, False)
        assert buddy.free_pages == naive.used.count(0)
        assert buddy.free_in_rows(number % 7) == naive.free_in_rows(number % 7)
        assert buddy.counts() == naive.counts()
    for block in held:
        buddy.free(*block)
    assert buddy.counts() == initial
    assert buddy.free_pages == pages


def test_low_addresses_go_out_first_and_then_what_was_freed_last() -> None:
    buddy = Buddy(2048)
    assert [buddy.allocate(0) for _ in range(4)] == [0, 1, 2, 3]
    buddy.free(1, 0)
    buddy.free(3, 0)
    assert buddy.allocate(0) == 3


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (1, {0: 1}),
        (1024, {10: 1}),
        (1536, {10: 1, 9: 1}),
        (3000, {10: 2, 9: 1, 8: 1, 7: 1, 5: 1, 4: 1, 3: 1}),
    ],
)
def test_any_number_of_pages_is_split_into_aligned_blocks(pages: int, expected: dict[int, int]) -> None:
    assert Buddy(pages).counts() == tuple(expected.get(order, 0) for order in ORDERS)


@pytest.mark.parametrize(("pfn", "order"), [(0, 1), (0, 3), (1, 0), (4, 2), (-1, 0), (100, 0), (0, -1)])
def test_freeing_what_is_not_allocated_so_is_refused_and_changes_nothing(pfn: int, order: int) -> None:
    buddy = Buddy(64)
    assert buddy.allocate(2) == 0
    before = buddy.counts()
    with pytest.raises(ValueError, match=f"page {pfn} was not allocated with order {order}"):
        buddy.free(pfn, order)
    assert buddy.counts() == before
    buddy.free(0, 2)
    with pytest.raises(ValueError, match="page 0"):
        buddy.free(0, 2)


@pytest.mark.parametrize("order", [-1, 11])
def test_an_order_out_of_bounds_is_refused(order: int) -> None:
    with pytest.raises(ConfigError, match=r"^order: .* from 0 to 10$"):
        Buddy(4096).allocate(order)


@pytest.mark.parametrize("pages", [0, -1, 1.0, None, True])
def test_a_bad_number_of_pages_is_refused(pages: Any) -> None:
    with pytest.raises(ConfigError, match=r"^pages: "):
        Buddy(pages)
