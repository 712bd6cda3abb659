"""Exporters: what the official parsers make of it, and whether board and alerts ask for figures that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import promql_parser as promql
import pytest
import yaml  # type: ignore[import-untyped]
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aslab import Allocator, ConfigError
from aslab.observe._figures import HEALTH, OF_ALLOCATORS, OF_CACHES
from aslab.observe.otel import ALLOCATOR, POOL, _Instruments, instrument
from aslab.observe.prometheus import AllocatorCollector

from .helpers import Loop
from .support import SIZE, Gate, allocator, start
from .test_observed import use

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
ALERTS = ROOT / "docs" / "grafana" / "alerts.yml"
BOARD = ROOT / "docs" / "grafana" / "board.json"
FIGURES = [(one.name, one.kind) for one in OF_CACHES] + [(one.name, one.kind) for one in OF_ALLOCATORS]


@pytest.fixture
def anyio_backend(virtual: Loop) -> Loop:
    return virtual


@asynccontextmanager
async def busy() -> AsyncIterator[Allocator]:
    """An allocator in trouble: one cache with late growth, one whose caller has waited for 12 s at its limit."""
    gate = Gate()
    options = {"limit": 100 * SIZE, "kick_after": None}
    async with allocator(slabs=gate, **options) as kmem, anyio.create_task_group() as tasks:
        full = kmem.create_cache("full", SIZE, objects_per_slab=1, max_objects=1)
        gate.open()
        held = [await full.alloc()]
        gate.shut()
        await start(tasks, use, full)
        late = kmem.create_cache('la"te\n'.strip(), SIZE, objects_per_slab=2)
        held += [await late.alloc() for _ in range(2)]
        with pytest.raises(TimeoutError):
            await full.alloc(timeout=1)
        await anyio.sleep(11)
        yield kmem
        gate.open()
        for buf in held:
            buf.free()


def scrape(registry: CollectorRegistry) -> dict[str, Any]:
    """The families by name, as Prometheus' own parser reads them."""
    text = generate_latest(registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


async def test_prometheus_parses_every_figure_and_finds_the_values_of_stats() -> None:
    registry = CollectorRegistry()
    async with busy() as kmem:
        registry.register(AllocatorCollector({"uploads": kmem}))
        found = scrape(registry)
        kinds = dict([*FIGURES, (HEALTH, "gauge")])
        assert {name: family.type for name, family in found.items()} == kinds

        def value(name: str, **labels: str) -> float:
            family = found[name.removesuffix("_total").removesuffix("_count").removesuffix("_bucket")]
            given = {"allocator": "uploads"} | labels
            (value,) = [one.value for one in family.samples if one.name == name and one.labels == given]
            return float(value)

        full, late = kmem.stats().caches
        assert value("aslab_objects", cache='la"te', state="used") == late.obj_held == 2
        assert value("aslab_growth_late", cache='la"te') == 1
        assert value("aslab_growth_late_seconds_total", cache='la"te') == pytest.approx(late.growth_late_total)
        assert value("aslab_oldest_wait_seconds", cache="full") == pytest.approx(full.oldest_wait)
        assert value("aslab_gave_up_total", cache="full") == 1
        assert value("aslab_wait_seconds_count", cache="full") == full.wait_time.count > 0
        assert value("aslab_wait_seconds_bucket", cache="full", le="+Inf") == full.wait_time.count
        assert value("aslab_wait_seconds_bucket", cache="full", le="0.5") == full.wait_time.count - 1
        assert value("aslab_memory_limit_bytes", kind="slabs") == 100 * SIZE
        assert value("aslab_acquire_seconds_count", kind="emergency") == 2
        assert [value(HEALTH, state=state) for state in ("ok", "degraded", "stuck")] == [0, 0, 1]


async def test_two_collectors_of_the_same_figures_are_refused_and_several_allocators_share_one() -> None:
    registry = CollectorRegistry()
    async with allocator() as one, allocator(limit=SIZE) as two:
        registry.register(AllocatorCollector({"one": one, "two": two}))
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            registry.register(AllocatorCollector(one))
        limits = scrape(registry)["aslab_memory_limit_bytes"].samples
        assert {(each.labels["allocator"], each.labels["kind"]) for each in limits} == {
            ("two", "slabs"),
            ("two", "emergency"),
        }
        with pytest.raises(ConfigError, match="allocators: 7 is not allowed"):
            AllocatorCollector(7)  # type: ignore[arg-type]


async def test_a_scrape_in_another_thread_is_answered_while_the_loop_is_blocked() -> None:
    registry, answers = CollectorRegistry(), list[dict[str, Any]]()
    async with busy() as kmem:
        registry.register(AllocatorCollector(kmem))
        thread = threading.Thread(target=lambda: answers.append(scrape(registry)))
        thread.start()
        thread.join(10)  # blocks the loop
        assert answers
        assert len(answers[0]["aslab_waiters"].samples) == 2


async def test_opentelemetry_collects_every_instrument_with_exact_histograms() -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])

    def collect() -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
        data = reader.get_metrics_data()
        assert data is not None
        found = data.resource_metrics[0].scope_metrics[0].metrics
        return {
            one.name: {tuple(sorted((point.attributes or {}).items())): point for point in one.data.data_points}
            for one in found
        }

    async with busy() as kmem:
        instrument(kmem, meters.get_meter("aslab"))
        found = collect()
        assert set(found) == {
            "aslab.buffer.count", "aslab.buffer.create_time", "aslab.buffer.pending_requests",
            "aslab.buffer.timeouts", "aslab.buffer.turned_away", "aslab.buffer.wait_time", "aslab.growth.late",
            "aslab.growth.late_time", "aslab.memory.limit", "aslab.memory.usage",
        }  # fmt: skip
        main, full = ("aslab.allocator.name", "main"), ("aslab.pool.name", "full")
        assert found["aslab.buffer.count"][main, ("aslab.buffer.state", "used"), full].value == 1
        assert found["aslab.buffer.pending_requests"][main, full].value == 1
        assert found["aslab.buffer.timeouts"][main, full].value == 1
        for again in (False, True):  # what was recorded is not recorded again
            waited = (collect() if again else found)["aslab.buffer.wait_time"][main, full]
            histogram = kmem.stats().caches[0].wait_time
            assert tuple(waited.bucket_counts) == histogram.counts
            assert tuple(waited.explicit_bounds) == histogram.bounds
            assert waited.sum == pytest.approx(histogram.seconds)


async def test_opentelemetry_remembers_nothing_of_closed_caches() -> None:
    reader = InMemoryMetricReader()
    async with allocator() as kmem:
        instruments = _Instruments({"main": kmem}, MeterProvider([reader]).get_meter("aslab"))
        cache = kmem.create_cache("frames", SIZE)
        assert reader.get_metrics_data() is not None
        assert {ALLOCATOR: "main", POOL: "frames"} in [dict(pairs) for _, pairs in instruments._recorded]
        await cache.aclose()
        assert reader.get_metrics_data() is not None
        assert [POOL in dict(pairs) for _, pairs in instruments._recorded] == [False, False]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in json.loads(BOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "description"}
            yield rule["alert"], rule["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """Every selector of a parsed expression."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (inner := getattr(node, name, None)) is not None:
            yield from selectors(inner)
    for inner in getattr(node, "args", []):
        yield from selectors(inner)


async def test_board_and_alerts_are_promql_over_figures_and_labels_that_exist() -> None:
    registry = CollectorRegistry()
    async with busy() as kmem:
        registry.register(AllocatorCollector(kmem))
        samples = [sample for family in scrape(registry).values() for sample in family.samples]
    labels = {sample.name: set(sample.labels) for sample in samples}
    asked = set()
    for title, text in expressions():
        tree = promql.parse(text)
        assert str(tree)
        by = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", text))))
        for selector in selectors(tree):
            asked.add(selector.name)
            assert selector.name in labels, f"{title}: {selector.name}"
            matched = {matcher.name for matcher in selector.matchers.matchers}
            assert matched | by <= labels[selector.name], f"{title}: {selector.name}"
    for variable in json.loads(BOARD.read_text())["templating"]["list"]:
        if query := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]):
            assert query[2] in labels[query[1]]
    assert len(asked) > 15


def test_without_its_extra_a_module_says_in_one_line_which() -> None:
    script = """
import importlib, sys
sys.modules.update(dict.fromkeys(("prometheus_client", "opentelemetry")))
for name in ("prometheus", "otel"):
    try:
        importlib.import_module(f"aslab.observe.{name}")
    except ModuleNotFoundError as exc:
        print(exc)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"aslab.observe.{name} needs the extra {name!r}: run pip install '.[{name}]' in a clone of aslab"
        for name in ("prometheus", "otel")
    ]


def test_the_page_lists_every_figure() -> None:
    page = (ROOT / "docs" / "observe.md").read_text()
    for name, kind in FIGURES:
        shown = name + ("_total" if kind == "counter" else "")
        assert f"`{shown}`" in page, shown
