"""Who waits on whom: chains, waits inside of waits, what is held, and the cycle of a deadlock."""

from __future__ import annotations

from contextlib import ExitStack

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aslab.lab._simulation._waits import WaitGraph

from .support import settle


def graph_of(*edges: tuple[str, str]) -> tuple[WaitGraph, ExitStack]:
    """A graph in which each first waits on its second, until the stack is closed."""
    waits, stack = WaitGraph(), ExitStack()
    for waiter, what in edges:
        waits.be(waiter)
        stack.enter_context(waits.on(what))
    return waits, stack


def test_nobody_waits_at_first() -> None:
    assert WaitGraph().edges() == {}
    assert WaitGraph().cycle() == ()


@pytest.mark.anyio
async def test_wait_leaves_the_whole_chain_and_takes_it_away_again() -> None:
    waits = WaitGraph()
    waits.be("z_wr_iss")
    with waits.on("cache io", "growth worker"):
        assert waits.edges() == {"cache io": ["growth worker"], "z_wr_iss": ["cache io"]}
    assert waits.edges() == {}


@pytest.mark.anyio
async def test_wait_inside_of_a_wait_goes_on_from_its_end() -> None:
    waits = WaitGraph()
    waits.be("task")
    with waits.on("cache"):
        with waits.on("vmalloc"):
            with waits.on("reclaim", "writeback"):
                assert waits.edges() == {
                    "cache": ["vmalloc"],
                    "reclaim": ["writeback"],
                    "task": ["cache"],
                    "vmalloc": ["reclaim"],
                }
            assert "reclaim" not in waits.edges()
        with waits.on("kmalloc"):
            assert waits.edges() == {"cache": ["kmalloc"], "task": ["cache"]}
    with waits.on("txg"):
        assert waits.edges() == {"task": ["txg"]}, "the task is itself again"


@pytest.mark.anyio
async def test_wait_that_ends_by_an_exception_leaves_nothing() -> None:
    waits = WaitGraph()
    waits.be("task")
    with pytest.raises(MemoryError), waits.on("cache", "vmalloc"), waits.held("zio"):
        raise MemoryError
    assert waits.edges() == {}
    with waits.on("txg"):
        assert waits.edges() == {"task": ["txg"]}


@pytest.mark.anyio
async def test_wait_that_is_cancelled_leaves_nothing() -> None:
    waits = WaitGraph()

    async def wait() -> None:
        waits.be("task")
        with waits.on("cache", "vmalloc"), waits.held("zio"):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settle()
        assert len(waits.edges()) == 3
        tasks.cancel_scope.cancel()
    assert waits.edges() == {}


@pytest.mark.anyio
async def test_of_two_that_wait_alike_the_second_stays_when_the_first_goes() -> None:
    waits = WaitGraph()
    waits.be("hog")
    first, second = waits.on("writeback"), ExitStack()
    with first:
        waits.be("hog")
        second.enter_context(waits.on("writeback"))
    assert waits.edges() == {"hog": ["writeback"]}
    second.close()
    assert waits.edges() == {}


@pytest.mark.anyio
async def test_whoever_waits_on_a_thing_waits_on_the_task_that_holds_it() -> None:
    waits = WaitGraph()
    waits.be("z_wr_iss")
    with waits.held("zio"):
        assert waits.edges() == {"zio": ["z_wr_iss"]}
        with waits.on("cache"):
            assert waits.edges() == {"z_wr_iss": ["cache"], "zio": ["z_wr_iss"]}
    assert waits.edges() == {}


@pytest.mark.anyio
async def test_each_task_is_what_it_says_and_others_are_not() -> None:
    waits = WaitGraph()
    release = anyio.Event()

    async def wait(name: str) -> None:
        waits.be(name)
        await anyio.lowlevel.checkpoint()
        with waits.on(f"what {name} wants"):
            await release.wait()

    async with anyio.create_task_group() as tasks:
        for name in ("one", "two"):
            tasks.start_soon(wait, name)
        await settle()
        assert waits.edges() == {"one": ["what one wants"], "two": ["what two wants"]}
        release.set()
    assert waits.edges() == {}


def test_chain_without_an_end_at_its_beginning_is_no_cycle() -> None:
    waits, stack = graph_of(("a", "b"), ("b", "c"), ("a", "c"))
    with stack:
        assert waits.cycle() == ()


def test_cycle_goes_from_waiter_to_what_it_waits_on() -> None:
    waits, stack = graph_of(("reclaim", "zvol"), ("zvol", "cache"), ("cache", "reclaim"), ("hog", "reclaim"))
    with stack:
        assert waits.cycle() == ("cache", "reclaim", "zvol")


def test_cycle_is_the_longest() -> None:
    waits, stack = graph_of(("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "a"), ("c", "b"))
    with stack:
        assert waits.cycle() == ("a", "b", "c", "d")


def test_cycle_is_gone_with_one_of_its_waits() -> None:
    waits, stack = graph_of(("a", "b"), ("b", "c"))
    with stack:
        waits.be("c")
        with waits.on("a"):
            assert waits.cycle() == ("a", "b", "c")
        assert waits.cycle() == ()


@given(edges=st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("abcde")), max_size=12))
def test_cycle_is_one_of_the_graph_and_there_is_one_where_a_walk_never_ends(edges: list[tuple[str, str]]) -> None:
    waits, stack = graph_of(*edges)
    with stack:
        cycle = waits.cycle()
        for waiter, what in zip(cycle, (*cycle[1:], *cycle[:1]), strict=True):
            assert what in waits.edges()[waiter]
        assert len(set(cycle)) == len(cycle)
        left = dict(waits.edges())
        while ended := [node for node, on in left.items() if not any(what in left for what in on)]:
            for node in ended:
                del left[node]
        assert bool(cycle) == bool(left)


def test_everybody_waiting_on_everybody_is_found_once_through_all() -> None:
    nodes = "abcdef"
    waits, stack = graph_of(*((a, b) for a in nodes for b in nodes if a != b))
    with stack:
        assert sorted(waits.cycle()) == list(nodes)
