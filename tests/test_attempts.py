"""Asking for emergency objects where the backend may have none: who asks, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aslab import GFP, KM, Cache
from aslab._kmem._emergency import PAUSE_FIRST, PAUSE_MOST
from aslab._kmem._waiters import Waiter
from aslab.backends import Region

from .support import SIZE, Gate, Instant, allocator, settle, start

pytestmark = pytest.mark.anyio

LATE = 0.1
URGENT = [KM.PUSHPAGE, KM.MEMALLOC]


@pytest.fixture
def anyio_backend(virtual: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual


class Scarce(Instant):
    """Memory of which there is only so much; keeps when it was asked for."""

    def __init__(self, left: int = 0, takes: float = 0.0) -> None:
        super().__init__()
        self.left = left
        self.takes = takes
        self.tries: list[tuple[float, GFP]] = []
        self.under_way = 0

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.tries]

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        self.tries.append((anyio.current_time(), gfp))
        self.under_way += 1
        try:
            await anyio.sleep(self.takes)
        finally:
            self.under_way -= 1
        if not self.left:
            raise MemoryError
        self.left -= 1
        return self.acquire_nowait(nbytes, align, gfp)


class Scene:
    """Callers of a cache whose one grow is stuck, by name."""

    def __init__(self, cache: Cache[memoryview], emergency: Scarce, tasks: anyio.abc.TaskGroup) -> None:
        self.cache, self.emergency, self.tasks = cache, emergency, tasks
        self.began = anyio.current_time()
        self.served: dict[str, float] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def call(self, name: str, flags: KM = KM.SLEEP, *, n: int = 1) -> None:
        async def caller() -> None:
            with self.scopes.setdefault(name, anyio.CancelScope()):
                async with self.cache.lease_many(n, flags):
                    self.served[name] = self.now()
                    await anyio.sleep_forever()

        await start(self.tasks, caller)

    def now(self) -> float:
        return rounded(anyio.current_time() - self.began)

    async def at(self, when: float) -> None:
        await anyio.sleep(self.began + when - anyio.current_time())
        await settle()

    def tried(self) -> list[float]:
        return [rounded(when - self.began) for when in self.emergency.times]

    def end(self) -> None:
        self.tasks.cancel_scope.cancel()


def rounded(seconds: float) -> float:
    """To what arithmetic leaves of microseconds."""
    return round(seconds, 6)


def doubling(since: float, until: float) -> list[float]:
    """When somebody asks who was refused then, and each time after."""
    found, pause = [], PAUSE_FIRST
    while since + pause <= until:
        since += pause
        found.append(rounded(since))
        pause = min(2 * pause, PAUSE_MOST)
    return found


def stuck(emergency: Scarce) -> Any:
    """An allocator whose grows never end, and whose callers wait `LATE` for that."""
    return allocator(slabs=Gate(), emergency=emergency, grow_timeout=LATE, kick_after=None)


@pytest.mark.parametrize("callers", [1, 2, 20])
async def test_after_the_first_refusal_one_of_all_asks_with_pauses_that_double_to_a_second(callers: int) -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        for number in range(callers):
            await scene.call(str(number))
        await scene.at(8)
        assert scene.tried() == [LATE] * callers + doubling(LATE, 8)
        assert not scene.served
        scene.end()


@pytest.mark.parametrize("flags", URGENT)
async def test_an_urgent_caller_asks_each_tick(flags: KM) -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        await scene.call("urgent", flags)
        await scene.at(2.005)
        assert scene.tried() == [rounded(LATE + number * PAUSE_FIRST) for number in range(191)]
        scene.end()


async def test_it_is_the_first_in_line_who_asks() -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        await scene.call("sleep")
        await scene.call("pushpage", KM.PUSHPAGE)
        await scene.at(LATE)
        await scene.call("sleep too")
        await scene.at(1)
        first, later = emergency.tries[:2], emergency.tries[2:]
        assert Counter(gfp for _, gfp in first) == {GFP.NOIO: 1, GFP.NOIO | GFP.HIGH: 1}
        assert later
        assert {gfp for _, gfp in later} == {GFP.NOIO | GFP.HIGH}
        emergency.left = 1
        await scene.at(1 + PAUSE_FIRST)
        assert list(scene.served) == ["pushpage"]
        scene.end()


@pytest.mark.parametrize("flags", URGENT)
async def test_an_urgent_caller_that_comes_later_does_not_wait_for_the_pause_of_others(flags: KM) -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        await scene.call("sleep")
        await scene.at(2.5)  # it asks again after a second
        emergency.left = 1
        await scene.call("urgent", flags)
        await settle()
        assert scene.served == {"urgent": 2.5}
        scene.end()


async def test_one_that_is_had_lets_the_next_ask_at_once_and_so_on_until_there_are_no_more() -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        for number in range(6):
            await scene.call(str(number))
        await scene.at(LATE)
        emergency.left = 3
        again = doubling(LATE, 8)
        await scene.at(again[0])
        assert scene.served == dict.fromkeys("012", again[0])
        before = len(emergency.tries)
        await scene.at(again[0] + PAUSE_FIRST / 2)
        assert len(emergency.tries) == before, "it had no more, and is left alone"
        emergency.left = 3
        await scene.at(again[0] + PAUSE_FIRST)
        assert len(scene.served) == 6, "the pause begins anew"
        scene.end()


async def test_who_is_not_the_first_does_not_ask_while_the_first_is_at_it_again() -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        await scene.call("first")
        await scene.at(LATE)
        emergency.takes = 0.05
        await scene.at(LATE + PAUSE_FIRST + 0.01)
        await scene.call("second")
        assert emergency.under_way == 1
        scene.end()


async def test_once_one_was_had_anybody_asks_who_finds_growth_late() -> None:
    emergency = Scarce()
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        for name in ("first", "second"):
            await scene.call(name)
        await scene.at(LATE)
        emergency.left, emergency.takes = 9, 0.05
        await scene.at(LATE + PAUSE_FIRST + 0.06)
        assert list(scene.served) == ["first"]
        await scene.call("third")
        assert emergency.under_way == 2
        await scene.at(1)
        assert scene.served["third"] == rounded(LATE + PAUSE_FIRST + 0.06 + 0.05)
        scene.end()


async def test_nobody_spins() -> None:
    """A hundred thousand seconds' worth of nothing would take as many steps as there are pauses, and no more."""
    emergency, waits = Scarce(), 0
    suspend = Waiter.suspend

    def counting(self: Waiter[Any], until: float, **options: bool) -> Awaitable[object]:
        nonlocal waits
        waits += 1
        return suspend(self, until, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Waiter, "suspend", counting)
        async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
            scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
            for number in range(50):
                await scene.call(str(number))
            await scene.at(10)
            before, asked = waits, len(emergency.tries)
            await scene.at(110)
            tries = len(emergency.tries) - asked
            assert 99 <= tries <= 100
            assert waits - before <= 3 * tries
            scene.end()


async def test_what_is_freed_stays_for_who_needs_several_and_misses_some_yet() -> None:
    emergency = Scarce(left=1)
    async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
        scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
        held = await scene.cache.alloc()
        await scene.call("several", n=2)
        held.free()
        await scene.at(2)
        assert scene.cache.stats().obj_emergency_spare == 1
        emergency.left = 1
        await scene.at(4)
        assert list(scene.served) == ["several"]
        assert len(emergency.outstanding) == 2
        scene.end()


class TestCancelled:
    async def test_the_next_in_line_asks_when_its_time_has_come(self) -> None:
        emergency = Scarce()
        async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
            scene = Scene(kmem.create_cache("c", SIZE), emergency, tasks)
            for name in ("first", "second"):
                await scene.call(name)
            again = doubling(LATE, 8)
            await scene.at((again[2] + again[3]) / 2)
            scene.scopes["first"].cancel()
            await scene.at(8)
            assert scene.tried()[2:] == again
            emergency.left = 1
            await scene.at(10)
            assert list(scene.served) == ["second"]
            scene.end()

    async def test_what_one_has_begun_is_the_next_ones(self) -> None:
        emergency = Scarce(left=1, takes=0.05)
        async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
            scene = Scene(kmem.create_cache("c", SIZE, max_emergency=1), emergency, tasks)
            await scene.call("first")
            await scene.at(LATE + 0.02)
            await scene.call("second")
            assert emergency.under_way == 1
            scene.scopes["first"].cancel()
            await settle()
            assert emergency.under_way == 1, "the backend is at it still"
            await scene.at(1)
            assert scene.served == {"second": rounded(LATE + 0.05)}
            assert len(emergency.tries) == 1
            stats = scene.cache.stats()
            assert (stats.obj_emergency, stats.obj_handover) == (1, 0)
            scene.end()
        assert not emergency.outstanding

    async def test_of_several_what_was_made_before_is_not_lost(self) -> None:
        emergency = Scarce(left=8, takes=0.05)
        async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
            scene = Scene(kmem.create_cache("c", SIZE, max_emergency=3), emergency, tasks)
            await scene.call("several", n=3)
            await scene.at(LATE + 0.07)
            await scene.call("one")
            assert len(emergency.tries) == 2
            assert scene.cache.stats().obj_handover == 1
            scene.scopes["several"].cancel()
            await scene.at(1)
            assert list(scene.served) == ["one"]
            assert scene.cache.stats().obj_handover == 0
            scene.scopes["one"].cancel()
            await scene.at(2)
            assert not emergency.outstanding
            await scene.call("all that may be made", n=3)
            await scene.at(3)
            assert "all that may be made" in scene.served
            scene.end()
        assert not emergency.outstanding

    async def test_one_refused_while_nobody_wants_it_any_more_tells_nobody(self) -> None:
        emergency = Scarce(takes=0.05)
        async with stuck(emergency) as kmem, anyio.create_task_group() as tasks:
            scene = Scene(kmem.create_cache("c", SIZE, max_emergency=1), emergency, tasks)
            await scene.call("first")
            await scene.at(LATE + 0.02)
            scene.scopes["first"].cancel()
            await scene.at(1)
            emergency.left, emergency.takes = 1, 0
            await scene.call("second")
            await settle()
            assert scene.served == {"second": 1.0}
            scene.end()


async def test_a_caller_for_whom_none_could_be_made_counts_one_wait() -> None:
    gate, none = Gate(), Gate()
    async with allocator(slabs=gate, emergency=none, kick_after=None) as kmem, anyio.create_task_group() as tasks:
        cache = kmem.create_cache("c", SIZE, objects_per_slab=8)
        none.open()
        held = await cache.alloc()
        assert (cache.stats().waits, cache.stats().obj_emergency) == (1, 1)
        none.shut()
        served: list[bool] = []

        async def wait() -> None:
            async with cache.lease():
                served.append(True)

        await start(tasks, wait)
        assert none.waiting == 1, "growth is late: it tries at once, and that is no wait"
        assert cache.stats().waits == 1
        none.error = MemoryError()
        none.open()
        await settle()
        assert cache.stats().waits == 2
        gate.open()
        await anyio.sleep(1)
        assert served
        assert cache.stats().waits == 2
        held.free()
