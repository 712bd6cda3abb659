"""Scenario files: every mistake is told in one line, with file, key and what is allowed; the good ones load."""

from __future__ import annotations

import contextlib
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from aslab import ConfigError
from aslab.faults import Exponential, Uniform
from aslab.lab._scenario import _schema as _scenario
from aslab.lab._scenario._builtin import find
from aslab.lab._scenario._load import LARGEST_FILE, parse
from aslab.lab.scenarios import METRICS, Scenario, builtin, check, load

ROOT = Path(__file__).parent.parent

GOOD = """\
name = "good"
about = "Everything that a file may have."
duration = "10s"
seed = 7

[memory]
pages = 4096
clean = 100
dirty = 100
pinned = "1%"
scan = "1us"
writeback = { mean = "1ms" }

[backends.vmalloc]
kind = "vmalloc"
per_page = "1us"
per_call = "200us"

[backends.slow]
kind = "latency"
of = "vmalloc"
acquire = { low = "1ms", high = "2ms" }

[backends.stuck]
kind = "deadlock"
of = "slow"
at = 3
duration = "3s"

[backends.kmalloc]
kind = "kmalloc"
per_call = ["100us", "200us"]

[backends.fails]
kind = "failslab"
of = "kmalloc"
probability = 1

[allocator]
slabs = "stuck"
emergency = "fails"
limit = "4MiB"

[caches.io]
size = "16KiB"
max_objects = 64
prefill = 4

[tasks.writer]
cache = "io"
count = 5
arrival = "50ms"
hold = "10ms"

[tasks.poller]
cache = "io"
flags = "NOSLEEP"
arrival = "5ms"

[[at]]
time = "1s"
do = "let_go"
backend = "stuck"

[[expect]]
what = "longest_wait"
at_most = "150ms"
tasks = "writer"

[[expect]]
what = "allocations"
at_least = 1
at_most = 100000
"""


class Bad(NamedTuple):
    """A file with one mistake."""

    text: str | bytes
    key: str
    """The path of the key that is to be named."""
    allowed: str
    """What is to be told of what is allowed."""


def change(old: str, new: str, key: str, allowed: str) -> Bad:
    assert GOOD.count(old) >= 1, old
    return Bad(GOOD.replace(old, new, 1), key, allowed)


def without(start: str, end: str, key: str, allowed: str) -> Bad:
    begin = GOOD.index(start)
    return Bad(GOOD[:begin] + GOOD[GOOD.index(end, begin) if end else len(GOOD) :], key, allowed)


def more(text: str, key: str, allowed: str) -> Bad:
    return Bad(f"{GOOD}\n{text}\n", key, allowed)


DIGITS = "9" * 5000
TIMES = "must be a time with a unit, such as '40us', '250ms', '3s', '2m'"
DELAYS = "must be a time such as '250ms', {low = '1ms', high = '5ms'}, {mean = '10ms'}, or a list of times"
SIZES = "it must be a size such as 4096, 64KiB or 1M, up to "
KINDS = "must be one of vmalloc, kmalloc, mmap, heap, latency, deadlock, failslab"
CIRCLE = "must not lead back to itself: "

BAD: dict[str, Bad] = {
    # no TOML
    "empty file": Bad("", "name", "missing"),
    "not TOML": Bad("name =", "text", "must be TOML"),
    "prose": Bad("Once upon a time", "text", "must be TOML"),
    "binary": Bad(b"\x7fELF\x02\x01\x01\x00\xff\xfe", "text", "must be TOML in UTF-8"),
    "UTF-16": Bad(GOOD.encode("utf-16"), "text", "must be TOML in UTF-8"),
    "zero bytes": Bad(b"\0" * 100, "text", "must be TOML"),
    "too large": Bad(GOOD + "#" * LARGEST_FILE, "size", f"must be a file of at most {LARGEST_FILE} bytes"),
    "key twice": change("count = 5", "count = 5\ncount = 6", "text", "must be TOML"),
    "table twice": more("[memory]\npages = 100", "text", "must be TOML"),
    "nested lists": change("count = 5", f"count = {'[' * 5000}{']' * 5000}", "text", "not nested so deeply"),
    "nested keys": change("name =", f"{'.'.join('a' * 1500)} = 1\nname =", "a", "unknown key"),
    # keys
    "unknown key": change("name =", 'nmae = "x"\nname =', "nmae", "unknown key; known keys are name, about,"),
    "unknown key of memory": change(
        "pages =", "pgaes =", "memory.pgaes", "unknown key; known keys are pages, min"
    ),
    "unknown key of a backend": change(
        "per_page =", "per_pag =", "backends.vmalloc.per_pag", "unknown key; known keys are kind, per_page,"
    ),
    "unknown key of a fault": change(
        "at = 3", "on = 3", "backends.stuck.on", "known keys are kind, of, at, duration"
    ),
    "unknown key of the allocator": change(
        "limit =", "limt =", "allocator.limt", "known keys are slabs, emergency"
    ),
    "unknown key of a cache": change("prefill =", "fill =", "caches.io.fill", "known keys are size, align"),
    "unknown key of tasks": change("count =", "number =", "tasks.writer.number", "known keys are cache, count"),
    "unknown key of a happening": change("time =", "when =", "at.0.when", "unknown key"),
    "unknown key of an expectation": change(
        "at_least = 1", "at_lest = 1", "expect.1.at_lest", "known keys are what, at_most, at_least, tasks, cache"
    ),
    "key of two lines": change("name =", '"a\\nb" = 1\nname =', "a\\nb", "unknown key"),
    "key that colours the terminal": change("name =", '"a\\u001b[31m" = 1\nname =', "a\\x1b[31m", "unknown key"),
    # what is missing
    "no name": change('name = "good"\n', "", "name", "missing"),
    "no duration": change('duration = "10s"\n', "", "duration", "missing"),
    "no backends": Bad(
        re.sub(r"\[backends\.(.|\n)*?(?=\[allocator)", "", GOOD).replace("let_go", "reap"), "backends", "missing"
    ),
    "no allocator": without("[allocator]", "[caches", "allocator", "missing"),
    "no caches": without("[caches.io]", "[tasks", "caches", "missing"),
    "no tasks": without("[tasks.writer]", "[[at]]", "tasks", "missing"),
    "no expectations": without("[[expect]]", "", "expect", "missing"),
    "an empty list of expectations": Bad("expect = []\n" + GOOD[: GOOD.index("[[expect]]")], "expect", "allowed"),
    "an empty table of caches": Bad(
        re.sub(r"\[caches\.io\](.|\n)*?(?=\[tasks)", "[caches]\n", GOOD), "caches", "allowed"
    ),
    "no size": change('size = "16KiB"\n', "", "caches.io.size", "missing"),
    "no kind": change('kind = "vmalloc"\n', "", "backends.vmalloc.kind", KINDS),
    "a fault of nothing": change('of = "slow"\n', "", "backends.stuck.of", "missing"),
    "no backend for slabs": change('slabs = "stuck"\n', "", "allocator.slabs", "missing"),
    # types
    "a number for a name": change('name = "good"', "name = 5", "name", "allowed"),
    "text for a number": change("count = 5", 'count = "5"', "tasks.writer.count", "allowed"),
    "true for a number": change("count = 5", "count = true", "tasks.writer.count", "allowed"),
    "a date for a number": change("count = 5", "count = 2020-01-01", "tasks.writer.count", "allowed"),
    "text for a flag": more(
        '[backends.v]\nkind = "vmalloc"\nhonour_gfp = "yes"', "backends.v.honour_gfp", "allowed"
    ),
    "text for a table": Bad(
        'tasks = "x"\n' + GOOD.replace("[tasks", "[other"), "other", "unknown key; known keys are"
    ),
    "a number for a backend": Bad(
        GOOD.replace("[memory]", "[backends]\nodd = 5\n\n[memory]", 1), "backends.odd", "allowed"
    ),
    "a list of memories": change("[memory]", "[[memory]]", "memory", "allowed"),
    "one happening": change("[[at]]", "[at]", "at", "allowed"),
    "a number for an expectation": Bad("expect = [5]\n" + GOOD[: GOOD.index("[[expect]]")], "expect.0", "allowed"),
    "text for the flags of a cache": change(
        "prefill = 4", 'flags = "NOEMERGENCY"', "caches.io.flags", "must be a"
    ),
    # times
    "an unknown unit": change('duration = "10s"', 'duration = "10h"', "duration", TIMES),
    "no unit": change('duration = "10s"', 'duration = "10"', "duration", TIMES),
    "a number for a time": change('duration = "10s"', "duration = 10", "duration", TIMES),
    "a negative time": change('time = "1s"', 'time = "-1s"', "at.0.time", TIMES),
    "a duration of 0": change('duration = "10s"', 'duration = "0s"', "duration", "above 0"),
    "a duration of a month": change('duration = "10s"', 'duration = "43200m"', "duration", "to a week"),
    "a time of 400 digits": change('"10s"', f'"{"9" * 400}s"', "duration", "to a week"),
    "an infinite time": change('"10s"', '"infs"', "duration", TIMES),
    "a negative delay": change('"200us"', '"-200us"', "backends.vmalloc.per_call", DELAYS),
    "a number for a delay": change('"200us"', "200", "backends.vmalloc.per_call", DELAYS),
    "a delay of no times": change('["100us", "200us"]', "[]", "backends.kmalloc.per_call", DELAYS),
    "a delay of times and numbers": change('["100us", "200us"]', '["1s", 2]', "backends.kmalloc.per_call", DELAYS),
    "low without high": change('low = "1ms", high = "2ms"', 'low = "1ms"', "backends.slow.acquire", DELAYS),
    "low above high": change(
        'low = "1ms", high = "2ms"',
        'low = "3ms", high = "2ms"',
        "backends.slow.acquire",
        "it must be at least low",
    ),
    "expiry at once": change("limit =", 'expire = "0s"\nlimit =', "allocator.expire", "or 'never'"),
    "kick_after without a time": change(
        "limit =", 'kick_after = "soon"\nlimit =', "allocator.kick_after", "never"
    ),
    "no patience at all": change("count = 5", 'timeout = "0s"', "tasks.writer.timeout", "above 0"),
    # numbers
    "a count of 10**30": change("count = 5", f"count = {10**30}", "tasks.writer.count", "must be less than"),
    "a count of 5000 digits": change("count = 5", f"count = {DIGITS}", "text", "must be TOML"),
    "a count of 5000 hexadecimal digits": change(
        "count = 5", f"count = 0x{'f' * 5000}", "tasks.writer.count", "allowed"
    ),
    "a count of 1e400": change("count = 5", "count = 1e400", "tasks.writer.count", "allowed"),
    "a count of nan": change("count = 5", "count = nan", "tasks.writer.count", "allowed"),
    "a count of inf": change("count = 5", "count = -inf", "tasks.writer.count", "allowed"),
    "a count of 0": change("count = 5", "count = 0", "tasks.writer.count", "must be greater"),
    "half a count": change("count = 5", "count = 0.5", "tasks.writer.count", "allowed"),
    "a negative seed": change("seed = 7", "seed = -7", "seed", "must be greater"),
    "a seed of 10**30": change("seed = 7", f"seed = {10**30}", "seed", "must be less than"),
    "a probability of 101": change("probability = 1", "probability = 101", "backends.fails.probability", "100"),
    "failures below -1": change("probability = 1", "times = -2", "backends.fails.times", "-1"),
    "no growth workers": change("limit =", "growth_workers = 0\nlimit =", "allocator.growth_workers", "allowed"),
    # sizes and shares
    "a size of 0": change('size = "16KiB"', "size = 0", "caches.io.size", SIZES + "1 GiB"),
    "a size of '0'": change('size = "16KiB"', 'size = "0"', "caches.io.size", SIZES),
    "a negative size": change('size = "16KiB"', "size = -1", "caches.io.size", SIZES),
    "half a byte": change('size = "16KiB"', "size = 0.5", "caches.io.size", SIZES),
    "a decimal unit": change('size = "16KiB"', 'size = "16KB"', "caches.io.size", SIZES),
    "a size of 10**30": change('size = "16KiB"', f"size = {10**30}", "caches.io.size", SIZES),
    "a size of true": change('size = "16KiB"', "size = true", "caches.io.size", SIZES),
    "a limit of 10**30": change('limit = "4MiB"', f"limit = {10**30}", "allocator.limit", SIZES + "1024 TiB"),
    "a share over 100 %": change('"1%"', '"101%"', "memory.pinned", "must be a share, from '0%' to '100%'"),
    "a number for a share": change('"1%"', "0.5", "memory.pinned", "must be a share"),
    "a share of nan": change('"1%"', '"nan%"', "memory.pinned", "must be a share"),
    # names
    "a name of two lines": change('"good"', '"a\\nb"', "name", "allowed"),
    "a name with a tag": change('"good"', '"<b>"', "name", "allowed"),
    "an empty name": change('"good"', '""', "name", "allowed"),
    "an empty about": change('"Everything that a file may have."', '""', "about", "allowed"),
    "a cache of two lines": change("[caches.io]", '[caches."i\\no"]', "caches.i\\no", "allowed"),
    "a cache without a name": change("[caches.io]", '[caches.""]', "caches.", "allowed"),
    # who is meant
    "an unknown kind": change('kind = "vmalloc"', 'kind = "malloc"', "backends.vmalloc.kind", KINDS),
    "a number for a kind": change('kind = "vmalloc"', "kind = 5", "backends.vmalloc.kind", KINDS),
    "a fault of an unknown backend": change(
        'of = "slow"',
        'of = "swift"',
        "backends.stuck.of",
        "must be one of the backends in the file: vmalloc, slow",
    ),
    "a fault of itself": change('of = "slow"', 'of = "stuck"', "backends.stuck.of", CIRCLE + "'stuck', which"),
    "two faults of each other": change(
        'of = "vmalloc"', 'of = "stuck"', "backends.stuck.of", CIRCLE + "'slow', which wraps 'stuck', which wraps"
    ),
    "a tower of faults": more(
        '[backends.f0]\nkind = "latency"\nof = "f1"\n'
        + "".join(f'[backends.f{n}]\nkind = "latency"\nof = "f{n + 1}"\n' for n in range(1, 2000))
        + '[backends.f2000]\nkind = "kmalloc"',
        "backends",
        "allowed",
    ),
    "unknown slabs": change(
        'slabs = "stuck"', 'slabs = "glued"', "allocator.slabs", "must be one of vmalloc, slow"
    ),
    "unknown emergency": change('"fails"', '"f"', "allocator.emergency", "must be one of vmalloc, slow"),
    "an unknown cache": change('cache = "io"', 'cache = "oi"', "tasks.writer.cache", "must be one of io"),
    "unknown flags": change("count = 5", 'flags = "SLEEPY"', "tasks.writer.flags", "'PUSHPAGE' or 'MEMALLOC'"),
    "unknown flags of a cache": change("prefill = 4", 'flags = ["X"]', "caches.io.flags.0", "'NOEMERGENCY'"),
    "real memory": change(
        'kind = "kmalloc"\nper_call = ["100us", "200us"]', 'kind = "mmap"', "backends.kmalloc.kind", "--real-time"
    ),
    "the heap": change(
        'kind = "kmalloc"\nper_call = ["100us", "200us"]', 'kind = "heap"', "backends.kmalloc.kind", "--real-time"
    ),
    # expectations
    "an unknown figure": change(
        '"longest_wait"',
        '"longest_weight"',
        "expect.0.what",
        "must be one of longest_wait, longest_gap, allocations",
    ),
    "a count for a time": change('at_most = "150ms"', "at_most = 150", "expect.0.at_most", TIMES),
    "an unknown unit in a bound": change('"150ms"', '"150 ms"', "expect.0.at_most", TIMES),
    "a time for a count": change(
        "at_least = 1", 'at_least = "1s"', "expect.1.at_least", "must be a whole number, 0.."
    ),
    "a negative bound": change("at_least = 1", "at_least = -1", "expect.1.at_least", "must be a whole number"),
    "half a bound": change("at_least = 1", "at_least = 0.5", "expect.1.at_least", "whole"),
    "a bound of true": change("at_least = 1", "at_least = true", "expect.1.at_least", "whole"),
    "a bound of 400 digits": change("at_least = 1", f"at_least = {'9' * 400}", "expect.1.at_least", "allowed"),
    "no bound": change('at_most = "150ms"\n', "", "expect.0.at_most", "give at_most, at_least, or both"),
    "bounds that cross": change(
        "at_least = 1", "at_least = 100001", "expect.1.at_least", "must not exceed at_most, 100000"
    ),
    "an expectation of unknown tasks": change(
        'tasks = "writer"', 'tasks = "reader"', "expect.0.tasks", "must be one of writer, poller"
    ),
    "an expectation of an unknown cache": change(
        'tasks = "writer"', 'cache = "oi"', "expect.0.cache", "must be one of io"
    ),
    "a figure that tasks do not have": more(
        '[[expect]]\nwhat = "deadlocks"\nat_most = 1\ntasks = "writer"',
        "expect.2.tasks",
        "cannot be given for deadlocks",
    ),
    # happenings
    "an unknown thing to do": change('"let_go"', '"explode"', "at.0.do", "'press', 'defragment' or 'seal'"),
    "let_go of what is no deadlock": change(
        'backend = "stuck"', 'backend = "slow"', "at.0.backend", "must be one of stuck"
    ),
    "let_go of nothing": change('backend = "stuck"\n', "", "at.0.backend", "is required with do = 'let_go'"),
    "pin without a share": more('[[at]]\ntime = "1s"\ndo = "pin"', "at.1.share", "is required with do = 'pin'"),
    "reap with a share": more(
        '[[at]]\ntime = "1s"\ndo = "reap"\nshare = "1%"', "at.1.share", "cannot be given with do = 'reap'"
    ),
    "after the end": change('time = "1s"', 'time = "11s"', "at.0.time", "must be within the duration, 10 s"),
    # what the parts refuse
    "a window with at": change(
        'duration = "3s"', 'window = ["1s", "2s"]', "backends.stuck.window", "it excludes at, duration and prob"
    ),
    "a window with one end": change(
        'at = 3\nduration = "3s"', 'window = ["1s"]', "backends.stuck.window", "allowed"
    ),
    "a window that ends before it begins": change(
        'at = 3\nduration = "3s"', 'window = ["2s", "1s"]', "backends.stuck.window", "it must end after it begins"
    ),
    "align that is no power of two": change("prefill = 4", "align = 48", "caches.io.align", "a power of two"),
    "align over a page": change("prefill = 4", "align = 8192", "caches.io.align", "4096"),
    "prefill over max_objects": change(
        "prefill = 4", "prefill = 65", "caches.io.prefill", "must fit, in whole slabs, within max_objects, 64"
    ),
    "prefill over the limit": change(
        "max_objects = 64\nprefill = 4", "prefill = 300", "caches.io.prefill", "within the limit, 4194304 bytes"
    ),
    "less than a slab of objects": change(
        "max_objects = 64", "objects_per_slab = 8\nmax_objects = 4", "caches.io.max_objects", "one slab"
    ),
    "a watermark over max_objects": change(
        "prefill = 4", "watermark = 65", "caches.io.watermark", "it must be at most max_objects, 64"
    ),
    "an object over max_slab_size": change(
        "prefill = 4",
        'max_slab_size = "8KiB"',
        "caches.io.size",
        "one object must fit the whole pages of max_slab_size",
    ),
    "a limit below one slab": change('"4MiB"', '"2KiB"', "allocator.limit", "one slab"),
    "marks in the wrong order": change(
        "clean = 100", "min = 100\nlow = 50", "memory.low", "it must be a whole number from 100 to 4096"
    ),
    "pages too few for the dirty ones": change(
        "dirty = 100", "dirty = 4000", "memory.dirty", "must be at most 3968 pages, clean and dirty together"
    ),
    "pages too few for the clean ones": change(
        "clean = 100\ndirty = 100", "clean = 4000", "memory.clean", "allowed"
    ),
    "too few pages": change("pages = 4096", "pages = 3", "memory.pages", "16"),
    "too many pages": change("pages = 4096", "pages = 100000000", "memory.pages", "must be less than"),
    # simulated time would stand still
    "patience for NOSLEEP": change(
        'arrival = "5ms"',
        'arrival = "5ms"\ntimeout = "1s"',
        "tasks.poller.timeout",
        "cannot be given with NOSLEEP",
    ),
    "NOSLEEP without a pause": change(
        'arrival = "5ms"', 'hold = "1s"', "tasks.poller.arrival", "must be above 0 with NOSLEEP"
    ),
    "neither arrival nor hold": change(
        'arrival = "50ms"\nhold = "10ms"', "", "tasks.writer.arrival", "must be above 0, unless hold is"
    ),
    "arrival and hold that are always 0": change(
        'arrival = "50ms"\nhold = "10ms"',
        'arrival = ["0s", "0s"]\nhold = { low = "0s", high = "0s" }',
        "tasks.writer.arrival",
        "must be above 0, unless hold is",
    ),
}


def _params() -> list[Any]:
    return [pytest.param(bad, id=name) for name, bad in BAD.items()]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "scenario.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


NOT_OURS = re.compile(
    r"Input should|should have|should match|validation|type=|pydantic|instance of|dictionary|attributes|object to"
)


@pytest.mark.parametrize("bad", _params())
def test_a_mistake_is_told_in_one_line_with_file_key_and_what_is_allowed(bad: Bad, tmp_path: Path) -> None:
    path = write(tmp_path, bad.text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    text = str(raised.value)
    assert text.isprintable()  # so it is one line
    assert text.startswith(f"{path}: {bad.key}: ")
    assert bad.allowed in text.removeprefix(str(path))
    assert not NOT_OURS.search(text.removeprefix(str(path)))
    assert len(text) < 1000
    assert raised.value.__cause__ is None  # nor in the traceback
    assert raised.value.__suppress_context__


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.toml")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def test_only_the_first_bytes_of_a_huge_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.toml"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: it would never fit
    with pytest.raises(ConfigError, match="must be a file of at most"):
        load(path)


# -- good ones


def test_the_good_text_is_good_and_its_values_are_what_it_says(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, GOOD))
    assert (scenario.name, scenario.duration, scenario.seed) == ("good", 10.0, 7)
    assert scenario.memory.pinned == 0.01
    assert scenario.memory.writeback == Exponential(0.001)
    assert scenario.allocator.limit == 4 * 2**20
    assert scenario.caches["io"].size == 16384
    slow, kmalloc = scenario.backends["slow"], scenario.backends["kmalloc"]
    assert isinstance(slow, _scenario.LatencyFault)
    assert slow.acquire == Uniform(0.001, 0.002)
    assert isinstance(kmalloc, _scenario.KmallocBackend)
    assert kmalloc.per_call == (100 * 1e-6, 200 * 1e-6)
    assert scenario.at[0].time == 1.0
    assert scenario.expect[0].at_most == "150ms"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("40us", 4e-5), ("250ms", 0.25), ("3s", 3.0), ("2m", 120.0), ("1.5s", 1.5), ("10080m", 604800.0)],
)
def test_times_have_these_units(text: str, seconds: float) -> None:
    assert check(parse(GOOD.replace('"10s"', f'"{text}"').replace('"1s"', '"0s"').encode())).duration == (
        pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    "changed",
    [
        ('arrival = "50ms"\nhold = "10ms"', "times = 3"),
        ('arrival = "50ms"\nhold = "10ms"', 'hold = "1us"'),
        ('arrival = "50ms"\nhold = "10ms"', 'arrival = ["0s", "1us"]'),
        ('arrival = "50ms"\nhold = "10ms"', 'arrival = { low = "0s", high = "1us" }'),
        ('arrival = "5ms"', "times = 3"),
        ('limit = "4MiB"', 'expire = "never"\nkick_after = "never"\ngrow_timeout = "0s"'),
        ('at = 3\nduration = "3s"', 'window = ["0s", "2s"]'),
        ('at = 3\nduration = "3s"', 'probability = 20\nduration = "1s"'),
        ("prefill = 4", 'flags = ["NOEMERGENCY"]'),
        ('name = "good"', 'name = "Good 1.2_a-b"'),
        ("pages = 4096", "pages = 4096\nmin = 10\nlow = 20\nhigh = 30"),
    ],
    ids=lambda changed: changed[1].replace("\n", "; "),
)
def test_this_is_allowed(changed: tuple[str, str]) -> None:
    assert changed[0] in GOOD
    check(parse(GOOD.replace(*changed).encode()))


@pytest.mark.parametrize("kind", ["mmap", "heap"])
def test_real_memory_is_allowed_in_real_time(kind: str) -> None:
    text = GOOD.replace('kind = "kmalloc"\nper_call = ["100us", "200us"]', f'kind = "{kind}"')
    check(parse(text.encode()), real_time=True)


def test_every_built_in_scenario_is_good_named_as_its_file_and_found() -> None:
    assert builtin()
    for name, path in builtin().items():
        assert load(path).name == name
        assert find(name) == path
        assert find(str(path)) == path


def test_an_unknown_built_in_scenario_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"must be a file, or one of .*deadlock-recovers"):
        find("no-such-scenario")


# -- what nobody thought of


def loads_or_is_refused(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(check(parse(data)), Scenario)


quick = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_are_a_scenario_or_refused(data: bytes) -> None:
    loads_or_is_refused(data)


@quick
@given(st.data())
def test_the_good_text_with_bytes_changed_is_a_scenario_or_refused(data: st.DataObject) -> None:
    text = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 20)))
        text[start:end] = data.draw(st.one_of(st.binary(max_size=6), st.text(max_size=6).map(str.encode)))
    loads_or_is_refused(bytes(text))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.integers(-(10**9), 10**9),
        st.sampled_from([0, 1, -1, 10**30, 2**63, 2**64]),
        st.floats(),
        st.booleans(),
        st.text(max_size=8),
        st.dates(),
        st.sampled_from(
            ["1s", "0s", "1us", "io", "vmalloc", "stuck", "SLEEP", "100%", "1KiB", "never", "kmalloc"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["kind", "low", "high", "mean", "of", "size", "io"]), inner, max_size=3),
    ),
    max_leaves=5,
)


def tables(value: Any) -> list[Any]:
    """Every table and list in it."""
    found = [value]
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, (dict, list)):
            found += tables(inner)
    return found


@quick
@given(st.data())
def test_the_good_data_with_values_changed_is_a_scenario_or_refused(data: st.DataObject) -> None:
    changed = tomllib.loads(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        table = data.draw(st.sampled_from([one for one in tables(changed) if one]))
        key = data.draw(st.sampled_from(list(table) if isinstance(table, dict) else list(range(len(table)))))
        if data.draw(st.booleans()):
            table[key] = data.draw(VALUES)
        else:
            del table[key]
    with contextlib.suppress(ConfigError):
        assert isinstance(check(changed), Scenario)


# -- the documentation


def models() -> list[type[BaseModel]]:
    return [
        one
        for one in vars(_scenario).values()
        if isinstance(one, type) and issubclass(one, _scenario.Section) and one is not _scenario.Section
    ]


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_key_is_in_the_documentation(model: type[BaseModel]) -> None:
    rows = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "lab.md").read_text(), re.MULTILINE)
    keys = {key for row in rows for key in row.split(", ")}
    missing = set(model.model_fields) - keys - {"kind"}
    if model is Scenario:
        missing = {key for key in missing if f"[{key}" not in (ROOT / "docs" / "lab.md").read_text()}
    assert not missing


def test_every_figure_and_every_kind_and_scenario_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "lab.md").read_text()
    kinds = re.findall(r'Literal\["(\w+)"\]', Path(_scenario.__file__).read_text())
    assert not [
        word for word in (*METRICS, *kinds, *builtin()) if f"`{word}`" not in text and f'"{word}"' not in text
    ]


def test_the_documentation_tells_of_no_key_that_is_not_there() -> None:
    text = (ROOT / "docs" / "lab.md").read_text()
    known = {key for model in models() for key in model.model_fields} | set(METRICS)
    section = text[text.index("## Scenario files") :]
    told = re.findall(r"^\| `([a-z_]+)`", section, re.MULTILINE)
    assert set(told) <= known | set(builtin()) | {"let_go", "pin", "unpin", "reap", "press", "defragment", "seal"}
    assert len(told) > 50


def test_the_examples_of_the_documentation_are_good() -> None:
    text = (ROOT / "docs" / "lab.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        check(parse(block.encode()))
