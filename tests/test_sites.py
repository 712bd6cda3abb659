"""Sites: the first line outside of aslab, in which task, and nothing kept alive."""

from __future__ import annotations

import asyncio
import gc
import threading
import types
import weakref
from pathlib import Path

import anyio
import pytest

from aslab import _sites
from aslab._sites import DEEPEST, Site, here

pytestmark = pytest.mark.anyio


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.endswith(text))


def in_module(name: str, source: str) -> types.ModuleType:
    """A module of that name, which is not imported by anybody."""
    module = types.ModuleType(name)
    module.__dict__["here"] = here
    exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    return module


async def test_site_names_the_line_and_the_task(anyio_backend_name: str) -> None:
    sites: list[Site] = []

    async def worker() -> None:
        sites.append(here())  # here

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker, name="upload 7")
    assert sites[0].place.startswith(f"{__file__}:{line_of('# here')} in ")
    assert sites[0].place.endswith("worker")
    assert str(sites[0]) == f"upload 7 at {sites[0].place}"


def test_site_in_a_thread_names_the_thread() -> None:
    sites: list[Site] = []
    thread = threading.Thread(target=lambda: sites.append(here()), name="resizer")
    thread.start()
    thread.join()
    assert sites[0].task == "resizer"


def test_frames_of_the_allocator_and_of_what_passes_calls_on_are_left_out() -> None:
    core = in_module("aslab._cache", "def alloc(): return here()")
    passing = in_module("contextlib", "def enter(call): return call()")
    site = passing.enter(core.alloc)
    assert site.place.endswith("in test_frames_of_the_allocator_and_of_what_passes_calls_on_are_left_out")


def test_where_the_loop_calls_aslab_itself_the_public_part_of_aslab_is_the_place() -> None:
    ours = in_module("aslab.protocols._receiver", "def get_buffer(): return here()")
    loop = in_module("asyncio.events", "def run(call): return call()")
    assert loop.run(ours.get_buffer).place == "aslab.protocols._receiver.py:1 in get_buffer"
    core = in_module("aslab._cache", "def alloc(): return here()")
    nowhere = loop.run(core.alloc)
    assert nowhere.place == ""
    assert str(nowhere) == nowhere.task


def test_whole_stack_has_the_lines_from_the_caller_outwards_and_is_bounded() -> None:
    def down(n: int) -> Site:
        return down(n - 1) if n else here(whole=True)

    few = down(1).stack
    assert [line.rpartition(" in ")[2].rpartition(".")[2] for line in few[:3]] == [
        "down",
        "down",
        "test_whole_stack_has_the_lines_from_the_caller_outwards_and_is_bounded",
    ]
    assert len(down(2 * DEEPEST).stack) == DEEPEST
    assert len(here().stack) == 1


def test_callback_of_a_loop_is_no_task() -> None:
    async def main() -> Site:
        found = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: found.set_result(here()))
        site: Site = await found
        return site

    assert asyncio.run(main()).task == "a callback of the event loop"


def test_site_keeps_no_local_variable_alive() -> None:
    class Thing:
        pass

    def noted() -> tuple[Site, weakref.ref[Thing]]:
        thing = Thing()
        return here(whole=True), weakref.ref(thing)

    site, thing = noted()
    gc.collect()
    assert thing() is None
    assert site.place


@pytest.mark.parametrize("name", [None, 7, ["unhashable"]])
def test_a_module_whose_name_is_no_string_is_a_place_like_any_other(name: object) -> None:
    module = in_module("odd", "def note(): return here()")
    module.__dict__["__name__"] = name
    assert module.note().place == "odd.py:1 in note"


def test_a_task_that_cannot_say_its_name_is_noted_without() -> None:
    class Nameless(asyncio.Task[Site]):
        def get_name(self) -> str:
            raise LookupError

    async def main() -> Site:
        return await Nameless(noted())

    async def noted() -> Site:
        return here()

    assert asyncio.run(main()).task == "a task without a name"


def test_of_modules_without_end_few_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sites, "_kinds", dict(_sites._kinds))
    monkeypatch.setattr(_sites, "KNOWN", len(_sites._kinds) + 2)
    for number in range(5):
        assert in_module(f"made_up_{number}", "def note(): return here()").note().place.endswith("in note")
    assert len(_sites._kinds) == _sites.KNOWN
    core = in_module("aslab._unknown", "def alloc(): return here()")
    assert core.alloc().place.startswith(__file__)
