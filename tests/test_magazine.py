"""Sizes of magazines, and their two ends."""

from __future__ import annotations

from typing import Any

import pytest

from aslab._fastpath import CLOSED, FILLERS, OPTIONS, WAITERS, Magazine, default_size

from .helpers import new_slab

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("object_size", "magazine_size"),
    [
        (1, 256),
        (KIB - 1, 256),
        (KIB, 128),
        (4 * KIB - 1, 128),
        (4 * KIB, 64),
        (128 * KIB - 1, 64),
        (128 * KIB, 16),
        (MIB - 1, 16),
        (MIB, 4),
        (2**40, 4),
    ],
)
def test_default_size_follows_spls_table(object_size: int, magazine_size: int) -> None:
    assert default_size(object_size) == magazine_size


@pytest.mark.parametrize(("capacity", "batch"), [(2, 1), (3, 2), (4, 2), (5, 3), (255, 128), (256, 128)])
def test_batch_is_half_the_capacity_rounded_up(capacity: int, batch: int) -> None:
    magazine: Magazine[Any] = Magazine(capacity)
    assert (magazine.capacity, magazine.batch) == (capacity, batch)


def test_oldest_and_newest_are_the_two_ends() -> None:
    magazine: Magazine[Any] = Magazine(4)
    first, second, third, _ = new_slab().slots
    for slot in (first, second, third):
        magazine.append(slot)
    assert magazine.take_oldest() is first
    assert magazine.pop() is third
    assert magazine.take_oldest() is second
    assert magazine.take_oldest() is None


def test_reasons_to_hear_of_frees_come_and_go_each_by_itself() -> None:
    magazine: Magazine[Any] = Magazine(4)
    assert magazine.watch is False, "False is what the interpreter tests fastest"
    magazine.watch_for(WAITERS)
    magazine.watch_for(FILLERS)
    magazine.watch_for(WAITERS)
    magazine.stop_watching(WAITERS)
    assert magazine.watch == FILLERS
    magazine.check(FILLERS, holds=True)
    magazine.stop_watching(FILLERS)
    magazine.stop_watching(FILLERS)
    assert magazine.watch is False


def test_reasons_to_divert_allocations_come_and_go_each_by_itself() -> None:
    magazine: Magazine[Any] = Magazine(4)
    assert magazine.detour is False
    magazine.divert(OPTIONS)
    magazine.divert(WAITERS)
    magazine.let_pop(WAITERS)
    assert magazine.detour == OPTIONS
    magazine.let_pop(OPTIONS)
    assert magazine.detour is False


def test_a_closed_magazine_watches_for_nothing_else_and_hands_nothing_out() -> None:
    magazine: Magazine[Any] = Magazine(4)
    magazine.watch_for(FILLERS)
    magazine.divert(OPTIONS)
    magazine.close()
    assert (magazine.capacity, magazine.watch, magazine.detour) == (0, CLOSED, OPTIONS | CLOSED)


@pytest.mark.parametrize(("holds", "finding"), [(True, "FILLERS is missing"), (False, "WAITERS is left over")])
def test_check_names_the_bit_that_was_forgotten(holds: bool, finding: str) -> None:
    magazine: Magazine[Any] = Magazine(4)
    magazine.watch_for(WAITERS)
    with pytest.raises(AssertionError, match=finding):
        magazine.check(FILLERS if holds else WAITERS, holds)
