"""The cases of Linux' own test of SLUB's debugging (lib/tests/slub_kunit.c), each with as many reports as there.

A report is a record that is logged as an error: one says what was found, one what was restored. Two cases have no
equivalent: aslab keeps no free pointer in an object, and no buffer changes its size (krealloc).
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from aslab import Cache

from .helpers import Loop
from .support import Instant, allocator

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def poke(address: int, byte: int) -> None:
    ctypes.memset(address, byte, 1)


async def clobber_zone(cache: Cache[Any]) -> Callable[[], None]:
    buf = await cache.alloc()
    poke(buf.address + 64, 0x12)
    return buf.free


async def free_and_clobber(cache: Cache[Any], offset: int, byte: int) -> None:
    buf = await cache.alloc()
    address = buf.address
    buf.free()
    poke(address + offset, byte)


async def first_word(cache: Cache[Any]) -> None:
    await free_and_clobber(cache, 0, 0x78)


async def next_pointer(cache: Cache[Any]) -> None:
    await free_and_clobber(cache, 32, ~0x6B & 0xFF)  # where SLUB would keep it: here that is poison, like the rest


async def clobber_50th_byte(cache: Cache[Any]) -> None:
    await free_and_clobber(cache, 50, 0x9A)


async def clobber_redzone_free(cache: Cache[Any]) -> None:
    await free_and_clobber(cache, 64, 0xAB)


async def kmalloc_redzone_access(cache: Cache[Any]) -> Callable[[], None]:
    buf = await cache.alloc()
    poke(buf.address + 18, 0xAB)
    poke(buf.address + 19, 0xAB)
    return buf.free


async def kfree_rcu(cache: Cache[Any]) -> Callable[[], None]:
    """The nearest to a free that happens later: the buffer is dropped, and a slice of it is released later."""
    buf = await cache.alloc()
    part = buf.view[:8]
    with pytest.warns(ResourceWarning, match="without free"):
        del buf
    return part.release


@pytest.mark.parametrize(
    ("case", "letters", "options", "reports"),
    [
        (clobber_zone, "Z", {}, 2),
        (next_pointer, "P", {}, 2),  # SLUB has 3, then 2: it keeps its list there
        (first_word, "P", {}, 2),
        (clobber_50th_byte, "P", {}, 2),
        (clobber_redzone_free, "Z", {}, 2),
        (kmalloc_redzone_access, "ZU", {"size": 18, "align": 32}, 2),
        (kfree_rcu, "FZPU", {}, 0),
    ],
)
async def test_case(
    case: Callable[[Cache[Any]], Any],
    letters: str,
    options: dict[str, Any],
    reports: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with allocator() as kmem:
        given: dict[str, Any] = {"name": "c", "size": 64, "debug": letters} | options
        cache: Cache[Any] = kmem.create_cache(**given)
        end = await case(cache)
        found = cache.validate()
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == reports
        assert len(found) == reports // 2
        assert cache.validate() == [], "it was restored"
        if end is not None:
            end()


async def test_leak_destroy() -> None:
    memory = Instant()
    async with allocator(slabs=memory) as kmem:
        cache = kmem.create_cache("c", 64, debug="U")
        buf = await cache.alloc()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await cache.aclose()
        lines = str(caught[0].message).splitlines()
        assert len([line for line in lines if line.startswith(("cache 'c' was closed", "at 0x"))]) == 2
        buf.free()
