"""A collector for prometheus_client, and a server that answers scrapes. Needs the extra ``prometheus``.

    REGISTRY.register(AllocatorCollector(kmem))
    async with serve_metrics(REGISTRY, 9100):
        ...

Figures are read at each scrape and in its thread, so they cost nothing in between, and a scrape is answered even
while the event loop is blocked. docs/observe.md lists them; docs/grafana has a board and alert rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

from .._allocator import Allocator
from .._histogram import Histogram
from ._figures import HEALTH, HEALTH_DOC, OF_ALLOCATORS, OF_CACHES, Figure, by_name, health_values

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _missing:
    if (_missing.name or "").partition(".")[0] != "prometheus_client":
        raise
    raise ModuleNotFoundError(
        "aslab.observe.prometheus needs the extra 'prometheus': run pip install '.[prometheus]' in a clone of "
        "aslab",
        name="prometheus_client",
    ) from None

from ._serving import serve_metrics as serve_metrics

__all__ = ["AllocatorCollector", "serve_metrics"]

S = TypeVar("S")


class AllocatorCollector(Collector):
    """The figures of one allocator, or of several, for a Prometheus registry. Any thread.

    Samples have the label ``allocator``, and those of caches ``cache`` as well.

    :param allocators: an allocator, called ``main``; or several by name
    :raises ConfigError: if it is neither
    """

    def __init__(self, allocators: Allocator | Mapping[str, Allocator]) -> None:
        self._allocators = by_name(allocators)

    def describe(self) -> Iterator[Metric]:
        """Give the families without samples, so that a registry notices when two collectors have the same."""
        yield from (_family(figure, ("allocator", "cache")) for figure in OF_CACHES)
        yield from (_family(figure, ("allocator",)) for figure in OF_ALLOCATORS)
        yield GaugeMetricFamily(HEALTH, HEALTH_DOC, labels=("allocator", "state"))

    def collect(self) -> Iterator[Metric]:
        """Give all families with their samples."""
        stats = {name: allocator.stats() for name, allocator in self._allocators.items()}
        caches = [((name, cache.name), cache) for name, one in stats.items() for cache in one.caches]
        for figure in OF_CACHES:
            yield _filled(figure, ("allocator", "cache"), caches)
        for of_all in OF_ALLOCATORS:
            yield _filled(of_all, ("allocator",), [((name,), one) for name, one in stats.items()])
        health = GaugeMetricFamily(HEALTH, HEALTH_DOC, labels=("allocator", "state"))
        for name, one in stats.items():
            for state, value in health_values(one).items():
                health.add_metric((name, state), value)
        yield health


def _family(figure: Figure[S], labels: tuple[str, ...]) -> Metric:
    if figure.label:
        labels = (*labels, figure.label)
    if figure.kind == "histogram":
        return HistogramMetricFamily(figure.name, figure.doc, labels=labels)
    if figure.kind == "counter":
        return CounterMetricFamily(figure.name, figure.doc, labels=labels)
    return GaugeMetricFamily(figure.name, figure.doc, labels=labels)


def _filled(figure: Figure[S], labels: tuple[str, ...], stats: Iterable[tuple[tuple[str, ...], S]]) -> Metric:
    family = _family(figure, labels)
    for words, one in stats:
        for more, value in figure.values(one):
            if isinstance(value, Histogram):
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric((*words, *more), _buckets(value), value.seconds)
            else:
                assert isinstance(family, (GaugeMetricFamily, CounterMetricFamily))
                family.add_metric((*words, *more), value)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """The number of durations up to each bound, as Prometheus counts them."""
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
