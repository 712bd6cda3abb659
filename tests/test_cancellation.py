"""Cancelling an allocation at every point where it can be cancelled. Nothing may be lost.

Each scenario waits in another await of `alloc`. It is cancelled after 0, 1, 2, ... steps of the loop,
and just before and just after the object is handed over, by an anyio scope and by asyncio's own
`Task.cancel()`. Afterwards every object and every region must be accounted for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aslab import Buffer, Cache
from aslab.testing import check_consistency

from .conftest import LOOPS
from .support import SIZE, Gate, Instant, allocator, settle

STEPS = range(14)


class Scene:
    """A cache in which the next `alloc` has to wait, and what ends the wait."""

    def __init__(
        self, cache: Cache[memoryview], rescue: Callable[[], object], timeout: float | None = None
    ) -> None:
        self.cache = cache
        self.rescue = rescue
        self.timeout = timeout


@asynccontextmanager
async def waiting_for_a_free() -> AsyncIterator[Scene]:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = await cache.alloc()
        yield Scene(cache, held.free)


@asynccontextmanager
async def waiting_with_patience() -> AsyncIterator[Scene]:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = await cache.alloc()
        yield Scene(cache, held.free, timeout=1000)


@asynccontextmanager
async def waiting_for_growth() -> AsyncIterator[Scene]:
    gate = Gate()
    async with allocator(slabs=gate, grow_timeout=1000, kick_after=None) as kmem:
        yield Scene(kmem.create_cache("c", SIZE), gate.open)


@asynccontextmanager
async def waiting_for_an_emergency_object() -> AsyncIterator[Scene]:
    gate, emergency = Gate(), Gate()
    async with allocator(slabs=gate, emergency=emergency, grow_timeout=0, kick_after=None) as kmem:
        yield Scene(kmem.create_cache("c", SIZE), emergency.open)
        assert not emergency.waiting
        emergency.open()


@asynccontextmanager
async def waiting_for_room_under_max_emergency() -> AsyncIterator[Scene]:
    async with allocator(slabs=Gate(), grow_timeout=0, kick_after=None) as kmem:
        cache = kmem.create_cache("c", SIZE, max_emergency=1)
        held = await cache.alloc()
        assert held.emergency
        yield Scene(cache, held.free)


@asynccontextmanager
async def at_a_checkpoint_on_a_hit() -> AsyncIterator[Scene]:
    async with allocator(checkpoints=True) as kmem:
        cache = kmem.create_cache("c", SIZE)
        await cache.prefill(8)
        yield Scene(cache, lambda: None)


SceneOf = Callable[[], AbstractAsyncContextManager[Scene]]
SCENES: list[SceneOf] = [
    waiting_for_a_free,
    waiting_with_patience,
    waiting_for_growth,
    waiting_for_an_emergency_object,
    waiting_for_room_under_max_emergency,
    at_a_checkpoint_on_a_hit,
]


async def allocate(scene: Scene, got: list[Buffer[memoryview]]) -> None:
    got.append(await scene.cache.alloc(timeout=scene.timeout))


async def account(scene: Scene, got: list[Buffer[memoryview]], *, rescued: bool) -> None:
    """Whoever comes next must get the object, whether the cancelled one had it or not."""
    if not rescued:
        scene.rescue()
    await settle()
    for buf in got:
        buf.free()
    with anyio.fail_after(30):
        (await scene.cache.alloc()).free()
    await settle()
    stats = scene.cache.stats()
    assert (stats.obj_held, stats.obj_handover, stats.waiters, stats.obj_emergency) == (0, 0, 0, 0)
    check_consistency(scene.cache)


@pytest.mark.anyio
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("scene_of", SCENES)
class TestByScope:
    @pytest.fixture
    def anyio_backend(self, virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        return virtual

    @pytest.mark.parametrize("order", ["rescue first", "cancel first", "cancel alone"])
    async def test_nothing_is_lost(self, scene_of: SceneOf, order: str, steps: int) -> None:
        async with scene_of() as scene, anyio.create_task_group() as tasks:
            got: list[Buffer[memoryview]] = []
            scope = anyio.CancelScope()

            async def caller() -> None:
                with scope:
                    await allocate(scene, got)

            tasks.start_soon(caller)
            await settle(steps)
            for action in actions(order, scene.rescue, scope.cancel):
                action()
            await settle()
            await account(scene, got, rescued=order != "cancel alone")

    async def test_nothing_is_lost_some_steps_after_the_rescue(self, scene_of: SceneOf, steps: int) -> None:
        async with scene_of() as scene, anyio.create_task_group() as tasks:
            got: list[Buffer[memoryview]] = []
            scope = anyio.CancelScope()

            async def caller() -> None:
                with scope:
                    await allocate(scene, got)

            tasks.start_soon(caller)
            await settle()
            scene.rescue()
            await settle(steps)
            scope.cancel()
            await settle()
            await account(scene, got, rescued=True)


@pytest.mark.anyio
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("scene_of", SCENES)
class TestByTaskCancel:
    """asyncio's own cancellation arrives once, at the next step, whatever was scheduled before."""

    @pytest.fixture(params=["asyncio", "asyncio+uvloop"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
        return LOOPS[request.param]

    @pytest.mark.parametrize("order", ["rescue first", "cancel first", "cancel alone"])
    async def test_nothing_is_lost(self, scene_of: SceneOf, order: str, steps: int) -> None:
        async with scene_of() as scene:
            got: list[Buffer[memoryview]] = []
            task = asyncio.create_task(allocate(scene, got))
            await settle(steps)
            for action in actions(order, scene.rescue, task.cancel):
                action()
            await gone(task)
            await account(scene, got, rescued=order != "cancel alone")

    async def test_nothing_is_lost_some_steps_after_the_rescue(self, scene_of: SceneOf, steps: int) -> None:
        async with scene_of() as scene:
            got: list[Buffer[memoryview]] = []
            task = asyncio.create_task(allocate(scene, got))
            await settle()
            scene.rescue()
            await settle(steps)
            task.cancel()
            await gone(task)
            await account(scene, got, rescued=True)


def actions(order: str, rescue: Callable[[], object], cancel: Callable[[], object]) -> list[Callable[[], object]]:
    return {"rescue first": [rescue, cancel], "cancel first": [cancel, rescue], "cancel alone": [cancel]}[order]


async def gone(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("steps", STEPS)
async def test_wait_for_that_times_out_loses_nothing(steps: int) -> None:
    """asyncio.wait_for was the way in which pools used to lose what they had just given."""
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, max_objects=1)
        held = await cache.alloc()

        async def free_after_steps() -> None:
            await settle(steps)
            held.free()

        freeing = asyncio.create_task(free_after_steps())
        waiting = asyncio.create_task(asyncio.wait_for(cache.alloc(), 1000))
        await settle(5)
        waiting.cancel()
        await asyncio.wait([freeing, waiting])
        if not waiting.cancelled():
            waiting.result().free()
        with anyio.fail_after(30):
            (await cache.alloc()).free()
        check_consistency(cache)


async def _cancelled_after(steps: int, call: Callable[[], Awaitable[object]]) -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await call()

        tasks.start_soon(run)
        await settle(steps)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("steps", range(8))
@pytest.mark.parametrize("what", ["reap", "prefill", "aclose"])
class TestOtherAwaits:
    @pytest.fixture
    def anyio_backend(self, virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
        return virtual

    async def test_reap_prefill_and_aclose_may_be_cancelled_anywhere(self, what: str, steps: int) -> None:
        slabs = Instant()
        async with allocator(slabs=slabs) as kmem:
            cache = kmem.create_cache("c", SIZE)
            await cache.prefill(16)
            calls = {"reap": cache.reap, "prefill": lambda: cache.prefill(32), "aclose": cache.aclose}
            await _cancelled_after(steps, calls[what])
            await settle()
            check_consistency(cache)
            if what != "aclose":
                (await cache.alloc()).free()
                assert not cache.stats().flags & (1 << 16), "REAPING must end by itself"
