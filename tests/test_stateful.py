"""Any sequence of operations: after each, the counters equal a model's, and contents stay with their owner."""

from __future__ import annotations

from contextlib import ExitStack

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
from hypothesis import given, settings

import aslab
from aslab import KM
from aslab.lab._simulation._asyncio import SimulatedLoop
from aslab.pressure import Signal
from aslab.testing import check_consistency

from .support import SIZE, Gate, Instant, Meter, Metered, settle

NUMBERS = st.integers(0, 100)
OPERATIONS = st.lists(
    st.one_of(
        *(
            st.tuples(st.just(name), numbers)
            for name, numbers in {
                "alloc": NUMBERS,
                "urgent": NUMBERS,
                "free": NUMBERS,
                "free_many": st.integers(2, 12),
                "wait": NUMBERS,
                "many": st.integers(2, 5),
                "lease": st.integers(1, 20),
                "cancel": NUMBERS,
                "reap": NUMBERS,
                "press": NUMBERS,
                "defragment": NUMBERS,
                "sleep": st.integers(1, 20),
                "slice": NUMBERS,
                "pin": NUMBERS,
                "unpin": NUMBERS,
                "stick": NUMBERS,
                "unstick": NUMBERS,
            }.items()
        )
    ),
    max_size=50,
)


@settings(max_examples=300)
@given(
    operations=OPERATIONS,
    max_objects=st.sampled_from([None, 4, 8]),
    limit=st.sampled_from([None, 2, 3]),
    magazine_size=st.integers(2, 6),
    objects_per_slab=st.integers(1, 4),
    watermark=st.integers(0, 3),
    reserve=st.sampled_from([0, 0, 1, 3]),
    movable=st.booleans(),
    emergency_limit=st.sampled_from([None, 0, 1, 3, 6]),
    release_takes=st.sampled_from([0.0, 0.0, 0.7]),
    debug=st.sampled_from(["", "", "FPU"]),  # Z is left out: its zones count against the bounds
)
def test_counters_equal_a_models(
    operations: list[tuple[str, int]],
    max_objects: int | None,
    limit: int | None,
    magazine_size: int,
    objects_per_slab: int,
    watermark: int,
    reserve: int,
    movable: bool,
    emergency_limit: int | None,
    release_takes: float,
    debug: str,
) -> None:
    async def main() -> None:
        slabs, signal, meter, spent = Gate(), Signal(), Meter(), Meter()
        slabs.open()
        backends = [Metered(slabs, meter), Metered(Instant(), spent)]
        for backend in backends:
            backend.release_takes = release_takes
        # Bounds go with no reserve here: SLEEP callers might never get any.
        async with aslab.open_allocator(
            slabs=backends[0],
            emergency=backends[1],
            emergency_limit=None if emergency_limit is None else emergency_limit * SIZE,
            expire=9.0,
            kick_after=None,
            pressure=[signal],
            limit=None if limit is None or reserve else limit * objects_per_slab * SIZE,
        ) as kmem:
            cache = kmem.create_cache(
                "c",
                SIZE,
                magazine_size=magazine_size,
                objects_per_slab=objects_per_slab,
                watermark=watermark,
                reserve=reserve,
                movable=movable,
                debug=debug,
                max_objects=None if reserve else max_objects,
            )
            await Play(kmem, cache, slabs, signal).run(operations)
            slabs.open()
            for backend in backends:
                backend.release_takes = 0.0
            if release_takes:
                await anyio.sleep(1)
            if kmem.stats().limit is not None:
                assert meter.highest <= kmem.stats().limit  # type: ignore[operator]
        assert emergency_limit is None or spent.highest <= emergency_limit * SIZE
        assert not slabs.outstanding

    anyio.run(main, backend_options={"loop_factory": SimulatedLoop})


class Held:
    """A buffer, what was written into it, and the pins on it."""

    def __init__(self, buf: aslab.Buffer[memoryview], stamp: int) -> None:
        self.buf = buf
        self.stamp = stamp
        self.pins = ExitStack()
        self.address: int | None = None
        with buf.pin() as view:
            view[0] = view[SIZE - 1] = stamp


class Play:
    """Carries the operations out, and keeps the model: who holds what."""

    def __init__(self, kmem: aslab.Allocator, cache: aslab.Cache[memoryview], slabs: Gate, signal: Signal) -> None:
        self.kmem = kmem
        self.cache = cache
        self.slabs = slabs
        self.signal = signal
        self.held: list[Held] = []
        self.waiting: list[anyio.CancelScope] = []
        self.leased = 0
        self.stamp = 0

    async def run(self, operations: list[tuple[str, int]]) -> None:
        async with anyio.create_task_group() as tasks:
            for name, number in operations:
                if name in ("wait", "many", "lease"):
                    tasks.start_soon(getattr(self, name), number)
                    await anyio.lowlevel.checkpoint()
                else:
                    await getattr(self, name)(number)
                self.check()
            tasks.cancel_scope.cancel()
        for one in self.held:
            one.pins.close()
            one.buf.free()
        self.held.clear()
        self.check()

    def keep(self, buf: aslab.Buffer[memoryview]) -> None:
        self.stamp = (self.stamp + 1) % 256
        self.held.append(Held(buf, self.stamp))

    async def alloc(self, _: int) -> None:
        try:
            self.keep(self.cache.alloc_nowait())
        except anyio.WouldBlock:
            return

    async def urgent(self, _: int) -> None:
        try:
            self.keep(self.cache.alloc_nowait(KM.PUSHPAGE))
        except anyio.WouldBlock:
            return

    async def wait(self, number: int) -> None:
        with anyio.CancelScope() as scope:
            self.waiting.append(scope)
            try:
                self.keep(await self.cache.alloc(KM.PUSHPAGE if number % 3 == 0 else KM.SLEEP))
            finally:
                self.waiting.remove(scope)

    async def many(self, number: int) -> None:
        with anyio.CancelScope() as scope:
            self.waiting.append(scope)
            try:
                for buf in await self.cache.alloc_many(number):
                    self.keep(buf)
            except aslab.ConfigError:
                return  # there can never be as many
            finally:
                self.waiting.remove(scope)

    async def lease(self, seconds: int) -> None:
        async with self.cache.lease():
            self.leased += 1
            try:
                await anyio.sleep(seconds)
            finally:
                self.leased -= 1

    async def free(self, number: int) -> None:
        if self.held:
            one = self.held.pop(number % len(self.held))
            one.pins.close()
            one.buf.free()

    async def free_many(self, number: int) -> None:
        for _ in range(number):
            await self.free(number)

    async def cancel(self, number: int) -> None:
        if self.waiting:
            self.waiting[number % len(self.waiting)].cancel()

    async def reap(self, _: int) -> None:
        with anyio.move_on_after(1):
            await self.cache.reap()

    async def press(self, number: int) -> None:
        self.signal.press(number * SIZE or None)
        await settle()

    async def defragment(self, _: int) -> None:
        await self.cache.defragment()

    async def sleep(self, seconds: int) -> None:
        await anyio.sleep(seconds / 2)

    async def slice(self, number: int) -> None:
        if self.held:
            one = self.held[number % len(self.held)]
            with one.buf.pin() as view:
                part = view[:1]
            try:
                one.buf.free()
            except BufferError:
                part.release()
            else:
                raise AssertionError("freed while a slice was alive")

    async def pin(self, number: int) -> None:
        if self.held:
            one = self.held[number % len(self.held)]
            one.pins.enter_context(one.buf.pin())
            one.address = one.buf.address

    async def unpin(self, number: int) -> None:
        if self.held:
            one = self.held[number % len(self.held)]
            one.pins.close()
            one.address = None

    async def stick(self, _: int) -> None:
        if self.slabs.opened.is_set():
            self.slabs.shut()

    async def unstick(self, _: int) -> None:
        self.slabs.open()

    def check(self) -> None:
        check_consistency(self.cache)
        stats = self.cache.stats()
        bufs = [one.buf for one in self.held]
        assert stats.obj_held == len(bufs) + self.leased
        if not self.leased:  # some may be on their way to a caller of several
            assert 0 <= stats.obj_emergency - sum(buf.emergency for buf in bufs) <= stats.obj_handover
        assert stats.obj_alloc == (
            stats.obj_held - stats.obj_emergency + stats.obj_cached + stats.obj_reserved + stats.obj_handover
        )
        assert self.kmem.stats().slab_bytes >= stats.slab_total * stats.slab_size
        limit = self.kmem.stats().limit
        assert limit is None or self.kmem.stats().slab_bytes <= limit
        assert len({buf.address for buf in bufs}) == len(bufs)
        for one in self.held:
            assert one.address in (None, one.buf.address), "a pinned buffer was moved"
            with one.buf.pin() as view:
                assert view[0] == view[SIZE - 1] == one.stamp
