"""Telling whether somebody else can still reach a piece of memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import pytest

from aslab._fastpath._views import Exported, Exporter, exporter, has_company, lease_view
from aslab.backends._protocol import address_of

HOLDERS: dict[str, Callable[[memoryview], object]] = {
    "slice": lambda view: view[2:4],
    "empty slice": lambda view: view[:0],
    "second memoryview": memoryview,
    "cast": lambda view: view.cast("I"),
    "read-only view": lambda view: view.toreadonly(),
    "slice of a slice": lambda view: view[1:][1:],
    "numpy array": lambda view: np.frombuffer(view, dtype=np.uint8),
    "slice of a numpy array": lambda view: np.frombuffer(view, dtype=np.uint8)[3:5],
}


@pytest.fixture
def source() -> Exporter:
    return exporter(memoryview(bytearray(64)), 8, 32)


def test_a_lease_sees_its_part_of_the_memory_as_flat_bytes() -> None:
    memory = memoryview(bytearray(range(64)))
    view = lease_view(exporter(memory, 8, 32))
    assert (view.format, view.ndim, view.readonly, view.nbytes) == ("B", 1, False, 32)
    assert bytes(view) == bytes(range(8, 40))
    view[0] = 99
    assert memory[8] == 99


def test_a_view_alone_is_not_shared(source: Exporter) -> None:
    assert not has_company(lease_view(source))


def test_another_name_for_the_same_view_is_no_second_view(source: Exporter) -> None:
    view = lease_view(source)
    names = [view, view]
    assert not has_company(names[0])


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS.keys())
def test_a_view_has_company_for_as_long_as_something_made_of_it_lives(
    source: Exporter, hold: Callable[[memoryview], object]
) -> None:
    view = lease_view(source)
    holder = hold(view)
    assert has_company(view)
    del holder
    assert not has_company(view)


def test_a_released_slice_counts_no_more(source: Exporter) -> None:
    view = lease_view(source)
    with view[1:3]:
        assert has_company(view)
    assert not has_company(view)


def test_a_list_of_all_objects_made_while_a_view_is_leased_is_no_company(source: Exporter) -> None:
    """What such a list keeps alive of the making of a view has been released."""
    lists: list[list[object]] = []

    def look(frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code is lease_view.__code__:
            lists.append(gc.get_objects())

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        view = lease_view(source)
    finally:
        sys.setprofile(before)
    assert lists
    assert not has_company(view)


def test_leases_of_one_exporter_do_not_count_for_each_other(source: Exporter) -> None:
    one, two = lease_view(source), lease_view(source)
    part = one[1:]
    assert has_company(one)
    assert not has_company(two)
    part[0] = 7
    assert two[1] == 7


def test_a_memoryview_of_a_memoryview_would_count() -> None:
    """Why there is an exporter at all."""
    base = memoryview(bytearray(8))
    lease = base[:]
    assert has_company(lease)


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS.keys())
def test_memory_is_in_use_until_the_last_view_of_any_lease_is_released(
    hold: Callable[[memoryview], object],
) -> None:
    place = Exported(memoryview(bytearray(64)), 8, 32)
    assert not place.in_use()
    view = lease_view(place.exporter)
    assert place.in_use()
    holder = hold(view)
    view.release()
    assert place.in_use()
    del holder
    assert not place.in_use()


def test_released_views_lying_around_do_not_use_the_memory() -> None:
    place = Exported(memoryview(bytearray(64)), 8, 32)
    with lease_view(place.exporter) as view, view[1:3] as part:
        pass
    assert not place.in_use()
    del view, part


def test_address_is_where_the_bytes_are() -> None:
    memory = bytearray(b"abcdef")
    view = memoryview(memory)
    assert ctypes.string_at(address_of(view[2:]), 4) == b"cdef"
    assert address_of(view[2:]) == address_of(view) + 2


def test_address_of_nothing_is_zero() -> None:
    assert address_of(memoryview(bytearray())) == 0


def test_address_of_read_only_memory_is_refused() -> None:
    with pytest.raises(TypeError):
        address_of(memoryview(b"fixed"))
