"""Faults in one word, as command lines have them."""

from __future__ import annotations

from typing import Any

import pytest

from aslab import GFP, ConfigError
from aslab.faults import Deadlock, Failslab, Latency, parse_fault

from .support import Instant


def wrapped(spec: str) -> Any:
    inner = Instant()
    backend: Any = parse_fault(spec)(inner)
    assert backend.backend is inner
    return backend


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("latency:250ms", 0.25, 0.25),
        ("latency:40us", 40e-6, 40e-6),
        ("latency:1.5s", 1.5, 1.5),
        ("latency:2", 2, 2),
        ("latency:1m", 60, 60),
        ("latency:0", 0, 0),
        ("latency:10ms-50ms", 0.01, 0.05),
        ("latency:10ms-50ms,seed=3", 0.01, 0.05),
    ],
)
def test_latency(spec: str, low: float, high: float) -> None:
    backend = wrapped(spec)
    assert isinstance(backend, Latency)
    drawn = [backend._acquire_delay() for _ in range(50)]
    assert low - 1e-12 <= min(drawn) <= max(drawn) <= high + 1e-12
    assert (min(drawn) < max(drawn)) == (low < high)


def test_latency_by_its_mean_and_seed() -> None:
    drawn = [[wrapped(f"latency:mean=20ms,seed={seed}")._acquire_delay() for _ in range(1)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("spec", "at", "duration"),
    [
        ("deadlock", 1, None),
        ("deadlock:3s", 1, 3),
        ("deadlock:3s,at=2", 2, 3),
        ("deadlock:at=5", 5, None),
        ("deadlock:duration=250ms", 1, 0.25),
    ],
)
def test_deadlock(spec: str, at: int, duration: float | None) -> None:
    backend = wrapped(spec)
    assert isinstance(backend, Deadlock)
    assert (backend._at, backend.duration) == (at, duration)
    assert (backend.probability, backend.window) == (None, None)


def test_deadlock_by_chance() -> None:
    backend = wrapped("deadlock:probability=20,duration=1s,seed=3")
    assert (backend.probability, backend.duration, backend.window) == (20, 1, None)
    drawn = [[wrapped(f"deadlock:probability=2.5,seed={seed}")._draw.random()] for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_deadlock_in_a_window() -> None:
    backend = wrapped("deadlock:window=250ms-5s")
    assert (backend.window, backend.probability, backend.duration) == ((0.25, 5), None, None)


@pytest.mark.parametrize(
    ("spec", "knobs"),
    [
        ("failslab:probability=20", {"probability": 20, "interval": 1, "times": -1, "space": 0, "fail_nth": 0}),
        ("failslab:interval=3,times=2,space=100", {"probability": 100, "interval": 3, "times": 2, "space": 100}),
        ("failslab:fail_nth=4,seed=9", {"fail_nth": 4}),
    ],
)
def test_failslab(spec: str, knobs: dict[str, int]) -> None:
    backend = wrapped(spec)
    assert isinstance(backend, Failslab)
    assert {knob: getattr(backend, knob) for knob in knobs} == knobs


def test_each_use_of_a_spec_makes_a_fault_of_its_own() -> None:
    wrap = parse_fault("failslab:times=1")
    one, two = wrap(Instant()), wrap(Instant())
    assert one is not two


BAD = [
    "",
    "nonsense",
    "nonsense:3s",
    ":",
    "latency",
    "latency:",
    "latency:abc",
    "latency:-1s",
    "latency:1h",
    "latency:nan",
    "latency:10ms-",
    "latency:-",
    "latency:50ms-10ms",
    "latency:10ms,20ms",
    "latency:10ms,foo=1",
    "latency:10ms,seed=x",
    "latency:mean=",
    "latency:" + "9" * 400,
    "latency:1\n",
    "deadlock:at=0",
    "deadlock:at=x",
    "deadlock:0s",
    "deadlock:3s,4s",
    "deadlock:3s,until=4s",
    "deadlock:3s,duration=4s",
    "deadlock:3s,seed=1",
    "deadlock:probability=101",
    "deadlock:probability=nan",
    "deadlock:probability=x",
    "deadlock:probability=",
    "deadlock:window=",
    "deadlock:window=3s",
    "deadlock:window=5s-3s",
    "deadlock:window=3s-5s-7s",
    "deadlock:window=3s-5s,at=2",
    "deadlock:3s,window=3s-5s",
    "deadlock:window=3s-5s,probability=20",
    "failslab",
    "failslab:",
    "failslab:probability",
    "failslab:probability=200",
    "failslab:probability=x",
    "failslab:probability=0.5",
    "failslab:interval=0",
    "failslab:verbose=1",
    "failslab:bogus=1",
    "failslab:20,times=1",
    "Failslab:probability=20",
]


@pytest.mark.parametrize("spec", BAD)
def test_a_bad_spec_is_one_line_that_says_what_is_allowed(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"is not allowed; it (must|needs|excludes) ") as caught:
        parse_fault(spec)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_fail_nth_fails_that_call_and_no_other() -> None:
    backend = wrapped("failslab:fail_nth=2")
    failed = []
    for _ in range(5):
        try:
            backend.acquire_nowait(64, 8, GFP.NOWAIT)
        except MemoryError:
            failed.append(True)
        else:
            failed.append(False)
    assert failed == [False, True, False, False, False]
