"""Instruments of OpenTelemetry. Needs the extra ``otel``.

    instrument(kmem)

Names follow the conventions for connection pools, ``db.client.connection.*``, with ``aslab.buffer`` as the prefix,
as buffers are no connections: a board for pools needs no other change. Figures are read at each collection and in
its thread.

OpenTelemetry has no histogram that is read at a collection. So what came since the last one is recorded then, each
duration as the mean of its bucket's new ones: with the bounds of `aslab.Histogram`, which are advised to the SDK,
counts and sums are exact. It costs a record for each wait, grow and emergency object.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

from .._allocator import Allocator
from .._histogram import BOUNDS, Histogram
from .._stats import AllocatorStats, CacheStats
from ._figures import by_name

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ModuleNotFoundError(
        "aslab.observe.otel needs the extra 'otel': run pip install '.[otel]' in a clone of aslab",
        name="opentelemetry",
    ) from None

__all__ = ["instrument"]

Attributes = Mapping[str, str]
_Record = Callable[[float, "Attributes"], None]
_Key = tuple[_Record, frozenset[tuple[str, str]]]
POOL, STATE, ALLOCATOR, KIND = "aslab.pool.name", "aslab.buffer.state", "aslab.allocator.name", "aslab.memory.kind"


def instrument(allocators: Allocator | Mapping[str, Allocator], meter: Meter | None = None) -> None:
    """Create the instruments of an allocator, or of several. Any thread.

    OpenTelemetry keeps instruments for the life of the process, but these keep no allocator alive: once it is
    gone, they report nothing.

    :param allocators: an allocator, called ``main``; or several by name
    :param meter: None is the global provider's, named ``aslab``
    :raises ConfigError: if ``allocators`` is neither
    """
    _Instruments(by_name(allocators), get_meter("aslab") if meter is None else meter)


class _Instruments:
    """The instruments of some allocators, and what was recorded of their histograms."""

    def __init__(self, allocators: Mapping[str, Allocator], meter: Meter) -> None:
        self._allocators = {name: weakref.ref(allocator) for name, allocator in allocators.items()}
        self._recorded: dict[_Key, Histogram] = {}
        self._wait_time = meter.create_histogram(
            "aslab.buffer.wait_time",
            "s",
            "The time callers waited for a buffer, if none was free.",
            explicit_bucket_boundaries_advisory=BOUNDS,
        )
        self._create_time = meter.create_histogram(
            "aslab.buffer.create_time",
            "s",
            "The time a backend took for a slab, or for an emergency object that a caller waited for.",
            explicit_bucket_boundaries_advisory=BOUNDS,
        )
        self._use_time = meter.create_histogram(
            "aslab.buffer.use_time",
            "s",
            "The time buffers were held, of a sample of those that are free again.",
            explicit_bucket_boundaries_advisory=BOUNDS,
        )
        up_down, count, gauge = (
            meter.create_observable_up_down_counter,
            meter.create_observable_counter,
            meter.create_observable_gauge,
        )
        # The first to be collected also records the histograms.
        up_down("aslab.buffer.count", [self._count], "{buffer}", "The number of buffers by state.")
        up_down(
            "aslab.buffer.pending_requests",
            [self._of_caches(lambda s: s.waiters)],
            "{request}",
            "The number of callers that wait for a buffer.",
        )
        count(
            "aslab.buffer.timeouts",
            [self._of_caches(lambda s: s.gave_up)],
            "{timeout}",
            "The number of callers whose timeout was over before a buffer came.",
        )
        count(
            "aslab.buffer.turned_away",
            [self._of_caches(lambda s: s.turned_away)],
            "{request}",
            "The number of callers that max_waiting turned away.",
        )
        up_down("aslab.memory.usage", [self._usage], "By", "The bytes at the backends.")
        up_down(
            "aslab.memory.limit", [self._limit], "By", "The most bytes at the backends, where there is a bound."
        )
        gauge("aslab.growth.late", [self._of_caches(lambda s: int(s.growth_late))], "1", "1 while growth is late.")
        count(
            "aslab.growth.late_time",
            [self._of_caches(lambda s: s.growth_late_total)],
            "s",
            "The seconds in which growth was late.",
        )

    def _stats(self) -> Iterator[tuple[str, AllocatorStats]]:
        for name, reference in self._allocators.items():
            allocator = reference()
            if allocator is not None:
                yield name, allocator.stats()

    def _of_caches(
        self, value: Callable[[CacheStats], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for name, stats in self._stats():
                for cache in stats.caches:
                    yield Observation(value(cache), {ALLOCATOR: name, POOL: cache.name})

        return observe

    def _count(self, options: CallbackOptions) -> Iterable[Observation]:
        gone = set(self._recorded)
        for name, stats in self._stats():
            slabs, emergency = ({ALLOCATOR: name, KIND: kind} for kind in ("slabs", "emergency"))
            gone.discard(self._record(stats.grow_time, self._create_time.record, slabs))
            gone.discard(self._record(stats.emergency_time, self._create_time.record, emergency))
            for cache in stats.caches:
                pool = {ALLOCATOR: name, POOL: cache.name}
                gone.discard(self._record(cache.wait_time, self._wait_time.record, pool))
                gone.discard(self._record(cache.hold_time, self._use_time.record, pool))
                yield Observation(cache.obj_held, pool | {STATE: "used"})
                yield Observation(cache.obj_free, pool | {STATE: "idle"})
        for key in gone:  # of closed caches
            self._recorded.pop(key, None)

    def _usage(self, options: CallbackOptions) -> Iterable[Observation]:
        for name, stats in self._stats():
            yield Observation(stats.slab_bytes, {ALLOCATOR: name, KIND: "slabs"})
            yield Observation(stats.emergency_bytes, {ALLOCATOR: name, KIND: "emergency"})

    def _limit(self, options: CallbackOptions) -> Iterable[Observation]:
        for name, stats in self._stats():
            for kind, limit in (("slabs", stats.limit), ("emergency", stats.emergency_limit)):
                if limit is not None:
                    yield Observation(limit, {ALLOCATOR: name, KIND: kind})

    def _record(self, now: Histogram, record: _Record, attributes: Attributes) -> _Key:
        """Record what came since the last time. Returns the key of what is remembered for the next time."""
        key = record, frozenset(attributes.items())
        before, self._recorded[key] = self._recorded.get(key), now
        if before is None or before.count > now.count:  # a new cache by the name of a closed one
            before = Histogram(BOUNDS, (0,) * len(now.counts), (0.0,) * len(now.sums))
        for bucket, (count, seconds) in enumerate(zip(now.counts, now.sums, strict=True)):
            new = count - before.counts[bucket]
            if new > 0:
                mean = (seconds - before.sums[bucket]) / new
                for _ in range(new):
                    record(mean, attributes)
        return key
