"""What came of a run of a scenario."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation, and what came."""

    expected: str
    """In words, such as ``longest_wait at most 150 ms``."""
    came: str
    """The figure that came, in words."""
    broken_by: str | None = None
    """The first event that broke it, with its time; None where it holds."""

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.broken_by is None


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one run of a scenario with one seed on one loop."""

    scenario: str
    """The name of the scenario."""
    about: str
    """What it shows, in a sentence or two."""
    seed: int
    loop: str
    """``asyncio`` or ``trio``."""
    real_time: bool
    verdicts: tuple[Verdict, ...]
    """In the order of the file."""
    log_sha256: str
    """Of the event log; the same for every run of the same file, seed and loop in simulated time. Empty where
    no log was kept."""
    events: int
    """Lines of the event log."""
    duration: float
    """Seconds that the run took on its own clock."""
    emergency_max: int
    """Most emergency objects outstanding at once, over all caches."""
    deadlocks: int
    """Times that a cache was marked DEADLOCKED."""
    longest_wait: float
    """Seconds, over all callers; those still waiting at the end count with what they had waited."""
    stuck: tuple[str, ...]
    """Where every task was stuck: a line for each of them. Empty otherwise."""
    figures: dict[str, float]
    """More counts and times for the table, by name."""

    @property
    def passed(self) -> bool:
        """Whether every expectation holds and nobody was stuck for good unexpectedly."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def broken(self) -> list[str]:
        """The expectations that do not hold: what was expected, what came, and the first event that broke it."""
        return [
            f"expected {verdict.expected}; came {verdict.came}; broken {verdict.broken_by}"
            for verdict in self.verdicts
            if verdict.broken_by is not None
        ]

    def as_json(self) -> dict[str, Any]:
        """What ``aslab lab run --json`` prints."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "loop": self.loop,
            "real_time": self.real_time,
            "passed": self.passed,
            "broken": self.broken,
            "log_sha256": self.log_sha256,
            "events": self.events,
            "emergency_max": self.emergency_max,
            "deadlocks": self.deadlocks,
            "longest_wait": self.longest_wait,
            "duration": self.duration,
            "stuck": list(self.stuck),
            "figures": self.figures,
        }
