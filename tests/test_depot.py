"""Between the magazine and the slabs, also with several threads at once."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aslab._fastpath import Slot

from .helpers import all_slots, new_depot


@pytest.mark.parametrize(("capacity", "left"), [(2, 0), (4, 1), (5, 2), (8, 3)])
def test_take_refills_half_a_magazine_with_the_one_that_is_handed_out(capacity: int, left: int) -> None:
    depot, magazine = new_depot(4, capacity=capacity)
    assert depot.take() is not None
    assert len(magazine) == left
    assert depot.slabs.slots_out == left + 1


def test_take_prefers_the_newest_of_the_magazine() -> None:
    depot, magazine = new_depot(1)
    first = depot.take()
    assert first is not None
    magazine.append(first)
    assert depot.take() is first
    assert depot.slabs.slots_out == 2


def test_take_takes_what_there_is_and_then_none() -> None:
    depot, magazine = new_depot(1, objects=1, capacity=8)
    assert depot.take() is not None
    assert not magazine
    assert depot.take() is None


def test_take_goes_to_the_slabs_when_another_thread_empties_the_magazine_first() -> None:
    depot, magazine = new_depot(1, objects=2, capacity=2)
    stolen = depot.take()
    assert stolen is not None

    class Raced(type(magazine)):  # type: ignore[misc]
        def pop(self, *args: Any) -> Any:
            self.clear()
            raise IndexError

    depot.magazine = Raced(2)
    depot.magazine.append(stolen)
    taken = depot.take()
    assert taken is not None
    assert taken is not stolen


def full(capacity: int = 4, over: int = 1) -> tuple[Any, Any, list[Slot[Any]]]:
    """A depot with its magazine over capacity, and what lies in there, oldest first."""
    depot, magazine = new_depot(2, capacity=capacity)
    slots = [slot for _ in range(capacity + over) if (slot := depot.slabs.take()) is not None]
    magazine.extend(slots)
    return depot, magazine, slots


def test_flush_puts_the_oldest_half_back() -> None:
    depot, magazine, slots = full()
    assert depot.flush()
    assert list(magazine) == slots[2:]
    assert depot.slabs.slots_out == 3


def test_flush_goes_on_until_the_magazine_is_within_its_capacity() -> None:
    depot, magazine, slots = full(over=3)
    assert depot.flush()
    assert list(magazine) == slots[4:]


def test_flush_leaves_a_magazine_that_is_just_full() -> None:
    depot, magazine, slots = full(over=0)
    assert depot.flush()
    assert list(magazine) == slots


def test_flush_empties_the_magazine_of_a_closed_cache() -> None:
    depot, magazine, _ = full()
    magazine.close()
    assert depot.flush()
    assert not magazine
    assert depot.slabs.slots_out == 0


def test_flush_does_not_wait_for_the_lock_and_says_so() -> None:
    depot, magazine, slots = full()
    with depot.lock:
        assert not depot.flush()
    assert list(magazine) == slots
    assert depot.flush()


def test_drain_puts_everything_back_at_that_age() -> None:
    depot, magazine, _ = full()
    depot.drain(age=9)
    assert not magazine
    assert depot.slabs.slots_out == 0
    assert {slab.age for slab in depot.slabs.partial} == {9}


@pytest.mark.parametrize(("keep", "removed"), [(0, 2), (4, 2), (5, 1), (8, 1), (9, 0), (12, 0)])
def test_what_is_kept_free_counts_the_magazine(keep: int, removed: int) -> None:
    depot, magazine = new_depot(3)
    slot = depot.slabs.take()
    assert slot is not None
    magazine.append(slot)
    assert depot.free == 12
    assert len(depot.remove_empty(keep)) == removed
    assert depot.free == 12 - 4 * removed >= keep


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that change places as often as they can."""
    kept = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(kept)


@pytest.mark.usefixtures("restless")
def test_threads_that_take_and_free_keep_every_slot_exactly_once() -> None:
    depot, magazine = new_depot(8, objects=8, capacity=6)
    owned: set[int] = set()
    wrong: list[str] = []
    begin = threading.Barrier(4)

    def work(seed: int) -> None:
        draw = random.Random(seed)
        mine: list[Slot[Any]] = []
        begin.wait()
        for _ in range(3000):
            if mine and draw.random() < 0.5:
                freed = mine.pop(draw.randrange(len(mine)))
                owned.remove(id(freed))
                magazine.append(freed)
                if len(magazine) > magazine.capacity:
                    depot.flush()
            elif len(mine) < 12 and (slot := depot.take()) is not None:
                if id(slot) in owned:
                    wrong.append("handed out twice")
                owned.add(id(slot))
                mine.append(slot)
        for freed in mine:
            owned.remove(id(freed))
            magazine.append(freed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    depot.flush()
    assert len(magazine) <= magazine.capacity
    depot.drain(age=0)
    slots = all_slots(depot, magazine)
    assert len(slots) == len(set(slots)) == 64
    assert (depot.slabs.slots_out, depot.slabs.slabs_used, len(depot.slabs.complete)) == (0, 0, 0)
