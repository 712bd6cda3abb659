"""Any sequence of operations: after each, the counters equal a model's, and contents stay with their owner."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
from hypothesis import given, settings

import aslab
from aslab.lab._asyncio import SimulatedLoop
from aslab.testing import check_consistency

from .support import SIZE, Instant

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(0, 3)),
        st.tuples(st.just("free"), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 100)),
        st.tuples(st.just("reap"), st.just(0)),
        st.tuples(st.just("sleep"), st.integers(1, 20)),
        st.tuples(st.just("slice"), st.integers(0, 100)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    operations=OPERATIONS,
    max_objects=st.sampled_from([None, 4, 8]),
    magazine_size=st.integers(2, 6),
    objects_per_slab=st.integers(1, 4),
    watermark=st.integers(0, 3),
)
def test_counters_equal_a_models(
    operations: list[tuple[str, int]],
    max_objects: int | None,
    magazine_size: int,
    objects_per_slab: int,
    watermark: int,
) -> None:
    async def main() -> None:
        slabs = Instant()
        async with aslab.open_allocator(slabs=slabs, emergency=Instant(), expire=9.0) as kmem:
            cache = kmem.create_cache(
                "c",
                SIZE,
                max_objects=max_objects,
                magazine_size=magazine_size,
                objects_per_slab=objects_per_slab,
                watermark=watermark,
            )
            await Play(cache).run(operations)
        assert not slabs.outstanding

    anyio.run(main, backend_options={"loop_factory": SimulatedLoop})


class Play:
    """Carries the operations out, and keeps the model: who holds what."""

    def __init__(self, cache: aslab.Cache[memoryview]) -> None:
        self.cache = cache
        self.held: list[tuple[aslab.Buffer[memoryview], int]] = []
        self.waiting: list[anyio.CancelScope] = []
        self.stamp = 0

    async def run(self, operations: list[tuple[str, int]]) -> None:
        async with anyio.create_task_group() as tasks:
            for name, number in operations:
                if name == "wait":
                    tasks.start_soon(self.wait)
                    await anyio.lowlevel.checkpoint()
                else:
                    await getattr(self, name)(number)
                self.check()
            tasks.cancel_scope.cancel()
        for buf, _ in self.held:
            buf.free()
        self.held.clear()
        self.check()

    def keep(self, buf: aslab.Buffer[memoryview]) -> None:
        self.stamp = (self.stamp + 1) % 256
        buf.view[0] = buf.view[SIZE - 1] = self.stamp
        self.held.append((buf, self.stamp))

    async def alloc(self, _: int) -> None:
        try:
            self.keep(self.cache.alloc_nowait())
        except anyio.WouldBlock:
            return

    async def wait(self) -> None:
        with anyio.CancelScope() as scope:
            self.waiting.append(scope)
            try:
                self.keep(await self.cache.alloc())
            finally:
                self.waiting.remove(scope)

    async def free(self, number: int) -> None:
        if self.held:
            buf, _ = self.held.pop(number % len(self.held))
            buf.free()

    async def cancel(self, number: int) -> None:
        if self.waiting:
            self.waiting[number % len(self.waiting)].cancel()

    async def reap(self, _: int) -> None:
        await self.cache.reap()

    async def sleep(self, seconds: int) -> None:
        await anyio.sleep(seconds)

    async def slice(self, number: int) -> None:
        if self.held:
            buf, _ = self.held[number % len(self.held)]
            part = buf.view[:1]
            try:
                buf.free()
            except BufferError:
                part.release()
            else:
                raise AssertionError("freed while a slice was alive")

    def check(self) -> None:
        check_consistency(self.cache)
        stats = self.cache.stats()
        assert stats.obj_held == len(self.held)
        assert stats.obj_emergency == sum(buf.emergency for buf, _ in self.held)
        assert len({buf.address for buf, _ in self.held}) == len(self.held)
        for buf, stamp in self.held:
            assert buf.view[0] == buf.view[SIZE - 1] == stamp
