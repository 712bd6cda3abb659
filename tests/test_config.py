"""Bad input: one clear error that names the field, what was given and what is allowed; nothing else happens."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, assert_type, get_type_hints

import anyio
import pytest

import aslab
from aslab import KM, Cache, CacheFlags, ConfigError
from aslab._options import AllocatorKeywords, AllocatorOptions, CacheKeywords, CacheOptions
from aslab.backends._libc import PAGE_SIZE

from .helpers import Loop
from .support import SIZE, Gate, Instant, allocator, parse_size, settle

pytestmark = pytest.mark.anyio


class NoBackend:
    def acquire(self) -> None: ...

    def __repr__(self) -> str:
        return "<no backend>"


def not_seconds(field: str) -> list[tuple[str, object]]:
    return [(field, bad) for bad in (math.nan, math.inf, -math.inf, -0.1, "1", True, [1])]


def not_counts(field: str, *more: object) -> list[tuple[str, object]]:
    return [(field, bad) for bad in (-1, 1.0, "8", True, math.nan, *more)]


OPEN = [
    ("slabs", Instant),
    ("slabs", NoBackend()),
    ("slabs", "mmap"),
    ("emergency", Instant),
    ("emergency", 7),
    *not_seconds("grow_timeout"),
    *not_seconds("expire"),
    ("expire", 0),
    ("expire", 1e-9),
    ("expire", 0.0099),
    *not_seconds("kick_after"),
    ("kick_after", 0),
    ("kick_after", 1e-9),
    ("kick_after", 0.0099),
    *not_counts("limit", 0),
    *not_counts("growth_workers", 0),
    ("growth_workers", None),
    *(
        (field, bad)
        for field in ("init_on_alloc", "init_on_free", "checkpoints", "faults")
        for bad in (1, None, "yes")
    ),
]
CREATE = [
    *(("name", bad) for bad in ("", "taken", "a\nb", "a\x00b", None, 7, b"bytes")),
    *not_counts("size", 0, None, 2**40 + 1, 2**62),
    *not_counts("align", 0, 4, 7, 24, 8192, 100),
    *not_counts("objects_per_slab", 0, 32 * 2**20 // SIZE + 1, 2**62),
    *not_counts("max_slab_size", 0, 4095),
    *not_counts("magazine_size", 0, 1, 257),
    *not_counts("max_objects", 0),
    *not_counts("max_emergency"),
    *not_counts("watermark", None),
    *not_counts("reserve", None),
    *not_counts("memalloc_reserve"),
    *not_counts("min_objects", None),
    *((field, bad) for field in ("movable", "merge") for bad in (1, None, "yes")),
    *((field, bad) for field in ("init_on_alloc", "init_on_free") for bad in (1, "yes")),  # None: as the allocator
    *(("flags", bad) for bad in (0, 512, "NOEMERGENCY", KM.SLEEP, None)),
    ("ctor", 7),
    ("dtor", "close"),
    ("dtor", print),
]


def names(field: str, given: object, allowed: str = "it (must|needs a ctor)") -> str:
    return f"^{re.escape(f'{field}: {given!r} is not allowed; ')}.*{allowed}"


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


@pytest.mark.parametrize(("field", "given"), OPEN, ids=repr)
async def test_open_allocator_refuses_it_before_anything_starts(field: str, given: Any) -> None:
    opened = False
    with pytest.raises(ConfigError, match=names(field, given)) as caught:
        async with aslab.open_allocator(**{field: given}):
            opened = True
    assert not opened
    assert (caught.value.field, caught.value.given) == (field, given) or given != given
    assert isinstance(caught.value, ValueError)


async def test_the_least_times_that_are_allowed_and_no_grow_timeout_at_all() -> None:
    slabs = Gate()
    async with allocator(slabs=slabs, expire=0.01, kick_after=0.01, grow_timeout=0) as kmem:
        cache = kmem.create_cache("c", SIZE)
        begin = anyio.current_time()
        buf = await cache.alloc()
        assert buf.emergency
        assert anyio.current_time() == begin
        buf.free()


@pytest.mark.parametrize(("field", "given"), CREATE, ids=repr)
async def test_create_cache_refuses_it_and_creates_nothing(field: str, given: Any) -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem:
        taken = kmem.create_cache("taken", SIZE)
        arguments: dict[str, Any] = {"name": "new", "size": SIZE} | {field: given}
        with pytest.raises(ConfigError, match=names(field, given)) as caught:
            kmem.create_cache(**arguments)
        assert caught.value.field == field
        assert "\n" not in str(caught.value)
        await settle()
        assert kmem.caches == (taken,)
        assert not slabs.asked
        (await taken.alloc()).free()
        async with kmem.create_cache("new", SIZE).lease() as buf:
            assert len(buf) == SIZE


@pytest.mark.parametrize(
    ("arguments", "field", "allowed"),
    [
        ({"size": 5000, "max_slab_size": 4096}, "size", "at most 4096 bytes"),
        ({"objects_per_slab": 3, "max_slab_size": 2 * SIZE}, "objects_per_slab", "at most 2: a slab must fit"),
        ({"size": SIZE + 1, "max_slab_size": 2 * SIZE - 1}, "size", "at most 4096 bytes: one object must fit the"),
        (
            {"size": 1000, "align": 8, "objects_per_slab": 8, "max_slab_size": 8100},
            "objects_per_slab",
            "at most 4: a slab must fit the whole pages",
        ),
        ({"objects_per_slab": 4, "max_objects": 3}, "max_objects", "at least 4, the objects of one slab"),
        ({"watermark": 17, "max_objects": 16}, "watermark", "at most max_objects, 16"),
        ({"size": 9 * SIZE}, "limit", "at least 36864 bytes, one slab of cache 'new'"),
    ],
)
async def test_arguments_that_do_not_go_together(arguments: dict[str, Any], field: str, allowed: str) -> None:
    async with allocator(limit=8 * SIZE) as kmem:
        arguments = {"size": SIZE} | arguments
        given = arguments.get(field, 8 * SIZE)
        with pytest.raises(ConfigError, match=names(field, given, allowed)):
            kmem.create_cache("new", **arguments)
        assert kmem.caches == ()


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 1},
        {"size": 32 * 2**20},
        {"align": 8},
        {"align": 4096},
        {"magazine_size": 2},
        {"magazine_size": 256},
        {"objects_per_slab": 1},
        {"max_objects": 1},
        {"max_emergency": 0},
        {"watermark": 0},
        {"flags": CacheFlags.NOEMERGENCY},
        {"name": "ünïcode name"},
    ],
    ids=repr,
)
async def test_the_edges_of_what_is_allowed(arguments: dict[str, Any]) -> None:
    async with allocator() as kmem:
        given: dict[str, Any] = {"name": "new", "size": SIZE} | arguments
        cache = kmem.create_cache(**given)
        assert kmem.caches == (cache,)


@pytest.mark.parametrize(
    ("size", "options", "objects"),
    [
        (SIZE, {}, 8),
        (4 * 2**20, {}, 8),
        (5 * 2**20, {}, 6),
        (32 * 2**20, {}, 1),
        (SIZE, {"max_slab_size": 5 * SIZE}, 5),
        (3072, {"max_slab_size": 5 * 3072}, 4),  # a fifth object would fit its bytes, but not its whole pages
        (SIZE, {"max_objects": 3}, 3),
        (SIZE, {"objects_per_slab": 100}, 100),
    ],
)
async def test_eight_objects_a_slab_fewer_where_a_slab_would_be_too_big(
    size: int, options: dict[str, int], objects: int
) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("new", size, **options)  # type: ignore[call-overload]
        assert cache.stats().slab_size == objects * size


@pytest.mark.parametrize(
    ("size", "options", "align"),
    [
        (60_000, {}, 64),
        (2**16, {}, PAGE_SIZE),
        (100_000, {}, PAGE_SIZE),
        (100_000, {"align": None}, PAGE_SIZE),
        (100_000, {"align": 64}, 64),
    ],
)
async def test_objects_from_64_kib_up_start_at_pages_so_that_direct_io_takes_them(
    size: int, options: dict[str, int], align: int
) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("new", size, objects_per_slab=3, **options)  # type: ignore[call-overload]
        async with cache.lease_many(3) as bufs:
            low, middle, high = sorted(buf.address for buf in bufs)
            assert low % align == 0
            assert high - middle == middle - low == -(-size // align) * align


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, math.inf, "1", True])
async def test_alloc_refuses_a_bad_timeout_even_where_an_object_is_at_hand(timeout: Any) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(1)
        with pytest.raises(ConfigError, match=names("timeout", timeout)):
            await cache.alloc(timeout=timeout)
        with pytest.raises(ConfigError, match=names("timeout", timeout)):
            async with cache.lease(timeout=timeout):
                pass
        assert cache.stats().obj_held == 0


@pytest.mark.parametrize("flags", [0, "sleep", None, CacheFlags.NOEMERGENCY, aslab.GFP.KERNEL])
async def test_alloc_refuses_what_is_no_km_flag(flags: Any) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(1)
        with pytest.raises(
            ConfigError, match=names("flags", flags, "KM.SLEEP, KM.PUSHPAGE, KM.MEMALLOC, KM.NOSLEEP")
        ):
            await cache.alloc(flags)
        with pytest.raises(ConfigError, match=names("flags", flags, "KM.NOSLEEP, KM.PUSHPAGE")):
            cache.alloc_nowait(flags)
        assert cache.stats().obj_held == 0


async def test_alloc_nowait_refuses_sleep() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(1)
        with pytest.raises(ConfigError, match=names("flags", KM.SLEEP, "KM.NOSLEEP, KM.PUSHPAGE")):
            cache.alloc_nowait(KM.SLEEP)
        cache.alloc_nowait(KM.PUSHPAGE).free()


@pytest.mark.parametrize(
    ("n", "allowed"),
    [
        (-1, "at least 0"),
        (1.0, "a whole number"),
        (True, "a whole number"),
        (None, "a whole number"),
        (17, "into max_objects, 16, in whole slabs"),
    ],
)
async def test_prefill_refuses_what_can_never_come(n: Any, allowed: str) -> None:
    slabs = Instant()
    async with allocator(slabs=slabs) as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=16)
        with pytest.raises(ConfigError, match=names("n", n, allowed)):
            await cache.prefill(n)
        await settle()
        assert not slabs.asked
        await cache.prefill(16)
        assert cache.stats().obj_total == 16


async def test_prefill_refuses_more_than_the_limit_allows() -> None:
    async with allocator(limit=20 * SIZE) as kmem:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=8)
        with pytest.raises(ConfigError, match=names("n", 17, f"limit less other guarantees, {20 * SIZE} bytes")):
            await cache.prefill(17)
        await cache.prefill(16)
        assert kmem.stats().slab_bytes == 16 * SIZE


@pytest.mark.parametrize(
    "call", [lambda cache: cache.prefill(1), lambda cache: cache.alloc()], ids=["prefill", "alloc"]
)
async def test_a_closed_cache_is_no_config_error(call: Callable[[aslab.Cache[memoryview]], Any]) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.aclose()
        with pytest.raises(aslab.CacheClosedError, match="cache 'c' is closed"):
            await call(cache)
        with pytest.raises(anyio.ClosedResourceError):
            cache.alloc_nowait()
        kmem.create_cache("c", SIZE)


# -- one list: the dataclasses; what else names the options agrees with them

BY_NAME = ("ctor", "dtor")
"""Keywords of `create_cache` that decide what its cache is a cache of, so they are not in `CacheKeywords`."""


@pytest.mark.parametrize(
    ("keywords", "options"), [(CacheKeywords, CacheOptions), (AllocatorKeywords, AllocatorOptions)]
)
def test_what_type_checkers_see_has_the_same_names_types_and_order(keywords: type, options: type) -> None:
    types = get_type_hints(options)
    expected = [(one.name, types[one.name]) for one in fields(options) if one.name not in BY_NAME]
    assert list(get_type_hints(keywords).items()) == expected
    assert not keywords.__required_keys__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("function", "options", "before"),
    [
        (aslab.Allocator.create_cache, CacheOptions, ["self", "name", "size"]),
        (aslab.open_allocator, AllocatorOptions, []),
    ],
)
def test_help_shows_each_option_with_its_type_default_and_description(
    function: Callable[..., Any], options: type, before: list[str]
) -> None:
    parameters = inspect.signature(function).parameters
    assert list(parameters) == before + [one.name for one in fields(options)]
    doc = inspect.getdoc(function) or ""
    assert re.findall(r"^:param (\w+): \S", doc, re.MULTILINE) == list(parameters)[bool(before) :]
    for one in fields(options):
        shown = parameters[one.name]
        assert (shown.kind, shown.default, shown.annotation) == (shown.KEYWORD_ONLY, one.default, one.type)
        assert one.default is not inspect.Parameter.empty


async def test_an_unknown_keyword_is_a_type_error_that_names_the_function() -> None:
    unknown: Any = {"sise": 1}
    with pytest.raises(TypeError, match=r"^open_allocator\(\) got an unexpected keyword argument 'sise'"):
        async with aslab.open_allocator(**unknown):
            pass
    async with allocator() as kmem:
        with pytest.raises(TypeError, match=r"create_cache\(\) got an unexpected keyword argument 'sise'"):
            kmem.create_cache("c", SIZE, **unknown)
        assert kmem.caches == ()


async def test_type_checkers_know_what_a_cache_is_a_cache_of() -> None:
    async with allocator() as kmem:
        assert_type(kmem.create_cache("plain", SIZE, align=8), Cache[memoryview])
        assert_type(kmem.create_cache("none", SIZE, ctor=None), Cache[memoryview])
        assert_type(kmem.create_cache("bytes", SIZE, ctor=bytes, reserve=1), Cache[bytes])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "", "size": 0, "align": 7}, "name: '' is not allowed; it must be a printable string"),
        ({"size": 0, "align": 7}, "size: 0 is not allowed; it must be a whole number from 1 to "),
        (
            {"align": 7, "watermark": -1, "dtor": print},
            "align: 7 is not allowed; it must be a power of two from 8",
        ),
        (
            {"watermark": -1, "dtor": print},
            "watermark: -1 is not allowed; it must be a whole number of at least 0",
        ),
        (
            {"watermark": 2, "max_objects": 1, "dtor": print},
            "watermark: 2 is not allowed; it must be at most max_",
        ),
    ],
    ids=str,
)
async def test_each_option_by_itself_is_checked_before_what_depends_on_several(
    arguments: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"name": "c", "size": SIZE} | arguments
    async with allocator() as kmem:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
            kmem.create_cache(**given)
        assert kmem.caches == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kick_after": 0},
            "kick_after: 0 is not allowed; it must be a number of seconds, at least 0.01, or None",
        ),
        ({"limit": 0}, "limit: 0 is not allowed; it must be a whole number of at least 1, or None"),
        ({"checkpoints": 1}, "checkpoints: 1 is not allowed; it must be True or False"),
        ({"pressure": 7}, "pressure: 7 is not allowed; it must be a sequence of sources, such as "),
        ({"pressure": [7]}, "pressure: 7 is not allowed; it must be a source, such as aslab.pressure.Psi()"),
    ],
    ids=str,
)
async def test_a_message_is_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        async with aslab.open_allocator(**options):
            pass


async def test_caches_share_slabs_when_one_is_told_what_the_other_has_by_default() -> None:
    async with allocator() as kmem:
        kmem.create_cache("default", SIZE, merge=True)
        told = kmem.create_cache("told", SIZE, merge=True, objects_per_slab=8, max_slab_size=16 * SIZE, align=64)
        other = kmem.create_cache("other", SIZE, merge=True, objects_per_slab=4)
        assert told.stats().merged == ("default",)
        assert other.stats().merged == ()


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1", 1), ("4096", 4096), ("64KiB", 65536), ("1m", 2**20), ("2G", 2**31)]
)
def test_sizes_are_read_as_people_write_them(text: str, nbytes: int) -> None:
    assert parse_size("size", text, 2**31) == nbytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "1 M", "64KB", "1T", "KiB", "2147483649", "3G"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="up to 2 GiB"):
        parse_size("size", text, 2**31)
