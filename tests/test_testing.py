"""The checks check: each kind of broken backend is found, and each kind of broken books."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

import aslab
from aslab import GFP, KM
from aslab._cache import pool_of
from aslab._fastpath import CLOSED, CONDEMNED, FILLERS, KEPT, RESERVE, SHORT, WAITERS
from aslab._kmem._state import Mark
from aslab._kmem._waiters import Waiter
from aslab._stats import Counters
from aslab.backends import Region
from aslab.testing import check_backend, check_consistency

from .helpers import Loop, new_slab
from .support import SIZE, Instant, allocator, settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


def changed(change: Callable[[Region, int, int], object]) -> type[Instant]:
    """A backend that answers ``change(region, nbytes, align)`` for every region."""

    class Changed(Instant):
        def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
            region = super().acquire_nowait(nbytes + 2 * align, align, gfp)
            return change(region, nbytes, align)  # type: ignore[return-value]

        async def release(self, region: Region) -> None:
            pass

    return Changed


def with_memory(change: Callable[[memoryview, int], object]) -> type[Instant]:
    def apply(region: Region, nbytes: int, align: int) -> Region:
        region.memory = change(region.memory, nbytes)  # type: ignore[assignment]
        return region

    return changed(apply)


def elsewhere(region: Region, nbytes: int, align: int) -> Region:
    region.address += align
    return region


def beside(region: Region, nbytes: int, align: int) -> Region:
    return Region(region.memory[4:], region.address + 4)


class Forgetful(Instant):
    """Releasing one region spoils the others."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: list[Region] = []

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        region = super().acquire_nowait(nbytes, align, gfp)
        self.regions.append(region)
        return region

    async def release(self, region: Region) -> None:
        for one in self.regions:
            one.memory[:1] = b"\xff"


class Overlapping(Instant):
    """The same memory for everybody."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = bytearray(2**21)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return Region.over(self.memory, align=align)

    async def release(self, region: Region) -> None:
        pass


class BrokenByCancellation(Instant):
    broken = False

    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        if self.broken:
            raise MemoryError
        try:
            await settle(4)
            return await super().acquire(nbytes, align, gfp)
        except anyio.get_cancelled_exc_class():
            self.broken = True
            raise


class BadWithoutWaiting(Instant):
    async def acquire(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return super().acquire_nowait(nbytes, align, gfp)

    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        return Region.over(bytearray(1), align=1)


class Refusing(Instant):
    def acquire_nowait(self, nbytes: int, align: int, gfp: GFP) -> Region:
        raise MemoryError


class WithoutNowait(Instant):
    acquire_nowait = None  # type: ignore[assignment]


BROKEN: dict[str, tuple[type[Instant], str]] = {
    "too short": (
        with_memory(lambda memory, nbytes: memory[: nbytes - 1]),
        "1 bytes were requested, but 0 returned",
    ),
    "misaligned": (changed(beside), "must be a multiple of 8"),
    "read-only": (with_memory(lambda memory, _: memory.toreadonly()), "memory must be writable"),
    "wrong address": (changed(elsewhere), "address must be where the memory is"),
    "not a memoryview": (with_memory(lambda memory, _: bytearray(memory)), "must be a memoryview, not bytearray"),
    "not bytes": (with_memory(lambda memory, _: memory[:16].cast("I")), "flat, of format B"),
    "not contiguous": (with_memory(lambda memory, _: memory[::2]), "contiguous"),
    "not a region": (
        changed(lambda region, *_: bytearray(region.memory)),
        "acquire must return a Region, not bytearray",
    ),
    "overlapping": (Overlapping, "regions must not overlap"),
    "forgetful": (Forgetful, "must keep its contents"),
    "useless after cancellation": (BrokenByCancellation, "refused 4096 bytes 1000 times"),
    "always refusing": (Refusing, "refused 1 bytes 1000 times"),
    "bad without waiting": (BadWithoutWaiting, "4096 bytes were requested, but 1 returned"),
    "without acquire_nowait": (WithoutNowait, "a backend must have acquire_nowait"),
}


@pytest.mark.parametrize(("kind", "rule"), BROKEN.values(), ids=BROKEN.keys())
async def test_check_backend_names_the_rule_that_is_broken(kind: type[Instant], rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        await check_backend(kind)


async def test_check_backend_passes_a_good_one_and_gives_everything_back() -> None:
    made: list[Instant] = []

    def factory() -> Instant:
        made.append(Instant())
        return made[-1]

    await check_backend(factory)
    assert sum(len(one.asked) for one in made) > 50
    assert not any(one.outstanding for one in made)


async def test_check_backend_lets_a_foreign_exception_out() -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("broken hardware")

    with pytest.raises(RuntimeError, match="broken hardware"):
        await check_backend(changed(explode))


# Each breaks the books of a cache and answers a function that mends them.
Tamper = Callable[[Any], Callable[[], object]]


def counter(name: str) -> Tamper:
    def tamper(cache: Any) -> Callable[[], object]:
        slabs = pool_of(cache).depot.slabs
        kept = getattr(slabs, name)
        setattr(slabs, name, kept + 1)
        return lambda: setattr(slabs, name, kept)

    return tamper


def lost_slot(cache: Any) -> Callable[[], object]:
    slab = next(reversed(pool_of(cache).depot.slabs.partial))
    (slot,) = slab.take(1)
    return lambda: slab.put(slot)


def doubled_in_the_magazine(cache: Any) -> Callable[[], object]:
    pool_of(cache).magazine.append(pool_of(cache).magazine[0])
    return pool_of(cache).magazine.pop


def free_and_in_the_magazine(cache: Any) -> Callable[[], object]:
    slab = next(reversed(pool_of(cache).depot.slabs.partial))
    slab.put(*slab.take(1))
    pool_of(cache).magazine.append(slab.freed[0])
    return pool_of(cache).magazine.pop


def stranger(cache: Any) -> Callable[[], object]:
    pool_of(cache).magazine.append(new_slab().slots[0])
    return pool_of(cache).magazine.pop


def complete_with_a_free_slot(cache: Any) -> Callable[[], object]:
    slabs = pool_of(cache).depot.slabs
    slab = slabs.partial.popitem()[0]
    slabs.complete[slab] = None

    def mend() -> None:
        del slabs.complete[slab]
        slabs.partial[slab] = None

    return mend


def partial_without_a_free_slot(cache: Any) -> Callable[[], object]:
    slabs = pool_of(cache).depot.slabs
    slab, _ = slabs.complete.popitem()
    slabs.partial[slab] = None

    def mend() -> None:
        del slabs.partial[slab]
        slabs.complete[slab] = None

    return mend


def impossible_marks(cache: Any) -> Callable[[], object]:
    pool_of(cache).marks.state = Mark.DEADLOCKED

    def mend() -> None:
        pool_of(cache).marks.state = Mark(0)

    return mend


def full_magazine(cache: Any) -> Callable[[], object]:
    kept, pool_of(cache).magazine.capacity = pool_of(cache).magazine.capacity, 0
    return lambda: setattr(pool_of(cache).magazine, "capacity", kept)


def gone(cache: Any) -> Waiter[Any]:
    """A waiter that has left with its object."""
    arena = pool_of(cache).arena
    waiter: Waiter[Any] = Waiter(arena.alarms, KM.SLEEP, next(arena.tickets), 1, Counters())
    waiter.refused_by = pool_of(cache).admission
    return waiter


def refused_after_it_has_left(*, served: bool, everywhere: bool = False) -> Tamper:
    def tamper(cache: Any) -> Callable[[], object]:
        pool, waiter = pool_of(cache), gone(cache)
        waiter.slots = [] if served else None
        (pool.arena.permits if everywhere else pool.emergency).refused.join(waiter)
        return lambda: pool.admission.withdraw(waiter)

    return tamper


def permitted_after_it_has_left(cache: Any) -> Callable[[], object]:
    pool, waiter = pool_of(cache), gone(cache)
    pool.growth.unwell = True
    assert pool.admission.grant(waiter)
    pool.growth.unwell = False
    return lambda: pool.admission.withdraw(waiter)


def account(what: str) -> Tamper:
    def tamper(cache: Any) -> Callable[[], object]:
        pool = pool_of(cache)
        setattr(pool.account, what, getattr(pool.account, what) + 1)
        return lambda: setattr(pool.account, what, getattr(pool.account, what) - 1)

    return tamper


def over_the_limit(cache: Any) -> Callable[[], object]:
    budget = pool_of(cache).arena.budget
    budget.limit = budget.used - 1
    return lambda: setattr(budget, "limit", None)


def refused_twice(cache: Any) -> Callable[[], object]:
    refused = pool_of(cache).emergency.refused
    mend = refused_after_it_has_left(served=False, everywhere=True)(cache)
    waiter = pool_of(cache).arena.permits.refused.first
    assert waiter is not None
    refused.join(waiter)

    def undo() -> None:
        refused.leave(waiter)
        mend()

    return undo


def forgotten(reason: int, way: str = "watch") -> Tamper:
    def tamper(cache: Any) -> Callable[[], object]:
        magazine = pool_of(cache).magazine
        kept = getattr(magazine, way)
        setattr(magazine, way, kept ^ reason)
        return lambda: setattr(magazine, way, kept)

    return tamper


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (forgotten(WAITERS), "watch: WAITERS is left over"),
        (forgotten(FILLERS), "watch: FILLERS is left over"),
        (forgotten(RESERVE), "watch: RESERVE is left over"),
        (forgotten(KEPT), "watch: KEPT is left over"),
        (forgotten(CONDEMNED), "watch: CONDEMNED is left over"),
        (forgotten(SHORT), "watch: SHORT is left over"),
        (forgotten(CLOSED), "watch: CLOSED is left over"),
        (forgotten(CLOSED, "detour"), "detour: CLOSED is left over"),
        (forgotten(WAITERS, "detour"), "detour: WAITERS is left over"),
        (counter("slots_total"), "slots in all slabs: counted 24, kept 25"),
        (counter("slots_out"), "slots out of their slabs: counted 10, kept 11"),
        (counter("slabs_used"), "slabs with a slot out: counted 2, kept 3"),
        (counter("created"), "slabs made less given back: counted 4, kept 3"),
        (counter("destroyed"), "slabs made less given back: counted 2, kept 3"),
        (lost_slot, "slots out of their slabs: counted 11, kept 10"),
        (doubled_in_the_magazine, "free slots, each once: counted 1, kept 2"),
        (free_and_in_the_magazine, "free slots, each once: counted 2, kept 3"),
        (stranger, "free slots of no slab: counted 1, kept 0"),
        (complete_with_a_free_slot, "complete slabs with a free slot: counted 1, kept 0"),
        (partial_without_a_free_slot, "partial slabs without one: counted 1, kept 0"),
        (impossible_marks, "marks DEADLOCKED cannot be reached"),
        (full_magazine, "magazine over its capacity"),
        (refused_after_it_has_left(served=True), "a waiter that has left is still refused"),
        (refused_after_it_has_left(served=False, everywhere=True), "a waiter that has left is still refused"),
        (account("used"), "bytes of slabs: counted"),
        (account("promised"), "1 bytes promised, and no grow under way"),
        (account("asked"), "1 bytes asked for, and no grow is to come"),
        (over_the_limit, "bytes used or promised, over the limit"),
        (refused_twice, "a waiter is refused in two places"),
        (permitted_after_it_has_left, "permits without a waiter"),
    ],
)
async def test_check_consistency_says_what_does_not_add_up(tamper: Tamper, finding: str) -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, magazine_size=4)
        held = [await cache.alloc() for _ in range(9)]
        await cache.prefill(15)
        check_consistency(cache)
        mend = tamper(cache)
        try:
            with pytest.raises(AssertionError, match=finding):
                check_consistency(cache)
        finally:
            mend()
            for buf in held:
                buf.free()


async def test_check_consistency_passes_whatever_a_cache_is_doing() -> None:
    async with allocator() as kmem:
        cache = kmem.create_cache("c", SIZE, magazine_size=2)
        held: list[aslab.Buffer[memoryview]] = []
        for number in range(200):
            if number % 7 < 4:
                held.append(await cache.alloc())
            elif held:
                held.pop(number % len(held)).free()
            check_consistency(cache)
        for buf in held:
            buf.free()
        await cache.reap()
        check_consistency(cache)
