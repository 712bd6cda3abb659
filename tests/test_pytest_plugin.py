"""The pytest plugin, in a pytest of its own; switched faults; each acquire failing in turn."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import anyio
import pytest

from aslab import GFP
from aslab.faults import Failslab, Switch
from aslab.testing import check_backend, check_consistency, fail_nth, pytest_plugin

from .helpers import Loop
from .support import SIZE, Instant, allocator, settle, start
from .test_observed import use

ROOT = Path(__file__).parent.parent

SUITE = """
import ctypes

import anyio
import pytest
import aslab

kept = []


@pytest.fixture(scope="module", params=["asyncio"])
def anyio_backend(request):
    return request.param


@pytest.mark.anyio
async def test_kmem(kmem):
    async with kmem.create_cache("frames", 4096).lease() as buf:
        buf.view[0] = 1


@pytest.mark.anyio
async def test_faults(kmem, aslab_faults):
    cache = kmem.create_cache("frames", 4096, objects_per_slab=8, flags=aslab.CacheFlags.NOEMERGENCY)
    aslab_faults.slabs.fail(2)
    (await cache.alloc()).free()
    assert cache.stats().slab_fail == 2
    aslab_faults.slabs.stick()
    with pytest.raises(TimeoutError):
        await cache.alloc_many(20, timeout=0.05)


@pytest.mark.anyio
async def test_leaves_one_behind(kmem):
    kept.append(await kmem.create_cache("left", 4096).alloc())


@pytest.mark.anyio
async def test_forgets_one(kmem):
    await kmem.create_cache("forgotten", 4096).alloc()


@pytest.mark.anyio
async def test_closes_too_early():
    async with aslab.open_allocator() as kmem:
        kept.append(await kmem.create_cache("early", 4096).alloc())


@pytest.mark.anyio
@pytest.mark.aslab(debug="P")
async def test_writes_after_the_free():
    async with aslab.open_allocator() as kmem:
        buf = await kmem.create_cache("poisoned", 4096).alloc()
        address = buf.address
        buf.free()
        ctypes.memset(address, 1, 1)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_may_be_told_not_to_mind():
    async with aslab.open_allocator() as kmem:
        kept.append(await kmem.create_cache("allowed", 4096).alloc())
"""


def test_who_leaves_a_buffer_behind_fails_with_the_name_of_its_cache(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    stuck = ("-W", "error:the allocator was closed while:ResourceWarning")  # faults are healed before
    plugins = ["-p", "anyio", "-p", "aslab.testing.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", *stuck, *plugins, "test_it.py"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout
    found = {
        name: word for word, name in re.findall(r"^(PASSED|FAILED|ERROR) test_it\.py::(\w+)", said, re.MULTILINE)
    }
    assert found == {
        "test_kmem": "PASSED",
        "test_faults": "PASSED",
        "test_leaves_one_behind": "ERROR",
        "test_forgets_one": "FAILED",
        "test_closes_too_early": "FAILED",
        "test_writes_after_the_free": "FAILED",
        "test_may_be_told_not_to_mind": "PASSED",
    }, said + done.stderr
    for cache in ("left", "early"):
        assert f"ResourceWarning: cache '{cache}' was closed with 1 buffers still held" in said
    assert "cache 'forgotten': a Buffer was garbage-collected without free()" in said
    assert "cache 'poisoned' was closed with damaged memory" in said
    for line, text in enumerate(SUITE.splitlines(), 1):
        if "alloc()" in text and re.search("left|early|forgotten", text):
            assert f"test_it.py:{line} in test_" in said, text


class TestSwitch:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self, virtual: Loop) -> Loop:
        return virtual

    async def test_keeps_the_contract_of_a_backend(self) -> None:
        await check_backend(lambda: Switch(Instant()))

    async def test_sticks_and_fails_as_told_and_heals(self) -> None:
        switch = Switch(Instant())
        async with allocator(slabs=switch, emergency_limit=0) as kmem, anyio.create_task_group() as tasks:
            cache = kmem.create_cache("frames", SIZE)
            switch.stick()
            await start(tasks, use, cache)
            assert (switch.stuck, cache.stats().waiters) == (1, 1)
            with pytest.raises(anyio.WouldBlock):
                switch.acquire_nowait(SIZE, 64, GFP.KERNEL)
            switch.heal()
            await settle()
            assert (switch.stuck, cache.stats().waiters) == (0, 0)
            switch.fail(2)
            await cache.prefill(16)
            assert (switch.failures, cache.stats().slab_fail) == (2, 2)

    async def test_each_acquire_fails_in_turn_until_none_is_left(self, caplog: pytest.LogCaptureFixture) -> None:
        rounds = []
        for failing in fail_nth(Instant):
            async with allocator(slabs=failing) as kmem:
                cache = kmem.create_cache("frames", SIZE, objects_per_slab=1)
                await cache.prefill(3)
                check_consistency(cache)
            rounds.append(failing.failures)
        assert rounds == [1, 1, 1, 0]
        assert "round 4, in which acquire 4 fails" in caplog.text

    def test_a_test_that_never_stops_asking_is_told(self) -> None:
        def ask(failing: Failslab) -> None:
            failing.failures = 1

        with pytest.raises(AssertionError, match="an acquire failed in each of 5 rounds"):
            for failing in fail_nth(Instant, most=5):
                ask(failing)


class Item:
    """A test with the mark."""

    nodeid = "test_it.py::test_it"

    def __init__(self, *args: str, **kwargs: str) -> None:
        self.mark = pytest.Mark("aslab", args, kwargs, _ispytest=True)
        self.config = self

    def getini(self, name: str) -> str:
        return {"aslab_debug": "U"}[name]

    def get_closest_marker(self, name: str) -> pytest.Mark:
        return self.mark

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [self.mark]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item(debug="FZX"), "debug: 'FZX' is not allowed; it must be letters of FZPUTV"),
        (Item("FZPU"), "the mark aslab takes debug and nothing else, by its name"),
        (Item(letters="FZPU"), "the mark aslab takes debug and nothing else, by its name"),
    ],
)
def test_letters_that_there_are_not_and_wrong_marks_are_refused_before_any_test_runs(
    item: Item, message: str
) -> None:
    with pytest.raises(pytest.UsageError, match=f"test_it: {message}"):
        pytest_plugin.pytest_collection_modifyitems([item])  # type: ignore[list-item]


def test_a_mark_without_letters_leaves_those_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASLAB_DEBUG", raising=False)
    for item, chosen in ((Item(), "U"), (Item(debug="FZ"), "FZ"), (Item(debug=""), None)):
        pytest_plugin.pytest_collection_modifyitems([item])  # type: ignore[list-item]
        running = pytest_plugin.pytest_runtest_protocol(item)  # type: ignore[arg-type]
        next(running)
        assert os.environ.get("ASLAB_DEBUG") == chosen
        running.close()


def test_the_entry_point_leads_to_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name, module), *others = project["entry-points"]["pytest11"].items()
    assert (name, others) == ("aslab", [])
    assert importlib.import_module(module).kmem
