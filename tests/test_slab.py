"""Shapes, slabs and the order of the partial list."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab._config import Shape
from aslab._fastpath import Slot, lease_view
from aslab._kmem._slab import Slab, SlabLists, construct
from aslab.backends import Region
from aslab.backends._protocol import address_of

from .helpers import SHAPE, new_slab

PAGE = mmap.PAGESIZE
shapes = st.builds(
    Shape, st.integers(1, 10_000), st.sampled_from([8, 16, 64, 512, PAGE]), st.integers(min_value=1, max_value=20)
)


def lists_of(*slabs: Slab[Any]) -> SlabLists[Any]:
    lists: SlabLists[Any] = SlabLists()
    for slab in slabs:
        lists.add(slab)
    return lists


def take(lists: SlabLists[Any], count: int) -> list[Slot[Any]]:
    taken = [lists.take() for _ in range(count)]
    return [slot for slot in taken if slot is not None]


@given(shapes)
def test_shape_rounds_up_to_the_alignment_and_to_whole_pages_and_no_further(shape: Shape) -> None:
    assert shape.stride % shape.align == 0
    assert 0 <= shape.stride - shape.size < shape.align
    assert shape.slab_size % PAGE == 0
    assert 0 <= shape.slab_size - shape.stride * shape.objects < PAGE


@given(shapes)
def test_slots_are_aligned_apart_inside_and_where_they_say(shape: Shape) -> None:
    region = Region.over(bytearray(shape.slab_size + shape.align), align=shape.align)
    slab: Slab[Any] = Slab(region, shape)
    for _ in range(shape.objects):
        slab.carve()
    assert len(slab.slots) == slab.free == shape.objects
    end = region.address
    for slot in slab.slots:
        assert slot.address % shape.align == 0
        assert slot.address >= end
        view = lease_view(slot.exporter)
        assert (slot.address, shape.size) == (address_of(view), view.nbytes)
        end = slot.address + shape.size
    assert end <= region.address + shape.slab_size


def test_a_new_slab_hands_out_from_its_start() -> None:
    slab = new_slab()
    assert take(lists_of(slab), 4) == slab.slots


def test_nothing_is_taken_from_no_slabs() -> None:
    assert lists_of().take() is None


def test_allocation_packs_the_first_slab_before_the_next() -> None:
    one, two = new_slab(), new_slab()
    lists = lists_of(one, two)
    assert [slot.slab for slot in take(lists, 8)] == [one] * 4 + [two] * 4
    assert set(lists.complete) == {one, two}
    assert not lists.partial


def test_new_slab_goes_to_the_tail() -> None:
    one, two = new_slab(), new_slab()
    lists = lists_of(one)
    take(lists, 1)
    lists.add(two)
    assert list(lists.partial) == [one, two]


def test_full_slab_freed_into_goes_to_the_head() -> None:
    one, two, three = new_slab(), new_slab(), new_slab()
    lists = lists_of(one, two, three)
    slots = take(lists, 9)
    assert list(lists.partial) == [three]
    lists.put(slots[0], 0)
    assert list(lists.partial) == [one, three]
    lists.put(slots[4], 0)
    assert list(lists.partial) == [two, one, three]


def test_a_partial_slab_freed_into_keeps_its_place_and_an_empty_one_goes_to_the_tail() -> None:
    one, two = new_slab(), new_slab()
    lists = lists_of(one, two)
    slots = take(lists, 2)
    lists.put(slots[0], 0)
    assert list(lists.partial) == [one, two]
    lists.put(slots[1], 5)
    assert list(lists.partial) == [two, one]
    assert one.age == 5
    assert two.age == 0


def test_a_slab_of_one_object_goes_from_complete_to_the_tail() -> None:
    one, two = new_slab(1), new_slab(1)
    lists = lists_of(one, two)
    (slot,) = take(lists, 1)
    lists.put(slot, 3)
    assert list(lists.partial) == [two, one]


def test_remove_empty_stops_at_the_first_in_use() -> None:
    slabs = [new_slab() for _ in range(4)]
    lists = lists_of(*slabs)
    held = take(lists, 5)
    lists.put(held[4], 0)
    assert list(lists.partial) == [slabs[2], slabs[3], slabs[1]]
    (again,) = take(lists, 1)
    assert again.slab is slabs[2]
    lists.partial.move_to_end(slabs[3], last=False)
    assert lists.remove_empty() == [slabs[1]]
    assert list(lists.partial) == [slabs[3], slabs[2]]
    assert (lists.destroyed, lists.slots_total, len(lists)) == (1, 12, 3)


@pytest.mark.parametrize(("keep", "removed"), [(0, 3), (1, 2), (4, 2), (5, 1), (8, 1), (9, 0), (12, 0), (99, 0)])
def test_remove_empty_keeps_that_many_free_slots(keep: int, removed: int) -> None:
    lists = lists_of(*(new_slab() for _ in range(3)))
    assert len(lists.remove_empty(keep)) == removed
    assert lists.free >= min(keep, 12)


@pytest.mark.parametrize(("until", "removed"), [(None, 3), (9, 3), (2, 2), (1, 1), (0, 0)])
def test_remove_empty_leaves_slabs_that_became_empty_later(until: int | None, removed: int) -> None:
    slabs = [new_slab() for _ in range(3)]
    lists = lists_of(*slabs)
    for age, slot in zip((3, 2, 1), take(lists, 12)[::4], strict=True):
        slab = slot.slab
        assert isinstance(slab, Slab)
        for member in slab.slots:
            lists.put(member, age)
    assert len(lists.remove_empty(until=until)) == removed


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "put", "remove"]), st.integers(0, 1000)), max_size=120))
def test_counters_and_order_agree_with_a_naive_model(operations: list[tuple[str, int]]) -> None:
    lists = lists_of()
    every: list[Slab[Any]] = []
    out: list[Slot[Any]] = []
    out_max = used_max = made = gone = 0
    for what, number in operations:
        if what == "add":
            every.append(new_slab(number % 3 + 1))
            lists.add(every[-1])
            made += 1
        elif what == "take":
            slot = lists.take()
            assert (slot is None) == (len(out) == sum(len(slab.slots) for slab in every))
            if slot is not None:
                assert slot not in out
                out.append(slot)
        elif what == "put" and out:
            lists.put(out.pop(number % len(out)), number)
        elif what == "remove":
            removed = lists.remove_empty(keep=number % 7)
            assert all(not any(slot.slab is slab for slot in out) for slab in removed)
            every = [slab for slab in every if slab not in removed]
            gone += len(removed)
        used = {slot.slab for slot in out}
        out_max, used_max = max(out_max, len(out)), max(used_max, len(used))
        assert (lists.slots_out, lists.slots_out_max) == (len(out), out_max)
        assert (lists.slabs_used, lists.slabs_used_max) == (len(used), used_max)
        assert (lists.created, lists.destroyed, len(lists)) == (made, gone, len(every))
        assert lists.free == sum(slab.free for slab in every) == lists.slots_total - len(out)
        assert set(lists.partial) == {slab for slab in every if slab.free}
        assert set(lists.complete) == {slab for slab in every if not slab.free}
        empty = [not slab.in_use for slab in lists.partial]
        assert empty == sorted(empty), "empty slabs last"


def test_a_slot_of_a_dismantled_slab_is_refused() -> None:
    slab = new_slab()
    slot = slab.slots[0]
    list(slab.dismantle(None))
    with pytest.raises(AssertionError, match="dismantled"):
        lists_of().put(slot, 0)


def test_dismantle_destroys_what_was_built_and_nothing_else() -> None:
    slab = new_slab()
    region = slab.region
    for number, slot in enumerate(slab.slots[:2]):
        construct(slot, lambda _, number=number: number, slab.region)  # type: ignore[misc]
        slab.built += 1
    slots = list(slab.slots)
    destroyed: list[object] = []
    assert list(slab.dismantle(destroyed.append)) == []
    assert slab.region is region
    assert destroyed == [0, 1]
    assert all(slot.slab is None and slot.obj is None for slot in slots)
    assert not slab.slots


def test_ctor_gets_writable_memory_of_exactly_the_slot() -> None:
    slab = new_slab()
    slot = slab.slots[1]
    construct(slot, lambda memory: memory, slab.region)
    assert not slot.in_use(), "what the slot keeps is no lease"
    memory = slot.obj
    assert isinstance(memory, memoryview)
    assert (memory.nbytes, address_of(memory)) == (SHAPE.size, slot.address)


def test_a_slab_that_was_to_go_and_stays_is_never_behind_an_empty_one() -> None:
    lists: SlabLists[Any] = SlabLists()
    slabs = [new_slab(2) for _ in range(2)]
    for slab in slabs:
        lists.add(slab)
    lists.take()
    assert lists.condemn()
    assert lists.condemned is slabs[0]
    assert not lists.condemn(), "one at a time"
    assert (len(lists), lists.free) == (2, 2)
    lists.restore()
    assert list(lists.partial) == slabs
    assert lists.remove_empty() == [slabs[1]]
    lists.condemn()
    slot = next(slot for slot in slabs[0].slots if slot.out)
    assert lists.take_condemned() == []
    lists.put(slot, 0)
    assert lists.take_condemned() == [slabs[0]]
    assert (len(lists), lists.slots_total, lists.slabs_used) == (0, 0, 0)


def test_no_slab_that_is_empty_is_chosen_to_go() -> None:
    lists = lists_of(new_slab(2))
    assert not lists.condemn(), "it can be had at once"
    assert lists.condemned is None
    assert len(lists.remove_empty()) == 1
    assert not lists.condemn()
