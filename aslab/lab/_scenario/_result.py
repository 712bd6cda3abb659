"""The result of a run of a scenario."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation, and whether it was met."""

    expected: str
    """In words, such as ``longest_wait at most 150 ms``."""
    came: str
    """The actual figure, as text."""
    broken_by: str | None = None
    """The first event that broke it, with its time; None if it was met."""

    @property
    def passed(self) -> bool:
        """Whether it was met."""
        return self.broken_by is None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one run of a scenario, with one seed on one loop."""

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
    """The digest of the event log: the same for every run of the same file, seed and loop in simulated time."""
    events: int
    """Number of events in the log."""
    duration: float
    """Seconds that the run took on its own clock."""
    emergency_max: int
    """Most emergency objects outstanding at once, over all caches."""
    deadlocks: int
    """Times a cache was marked DEADLOCKED."""
    longest_wait: float
    """Seconds, over all callers; callers still waiting at the end count with their wait so far."""
    stuck: tuple[str, ...]
    """One line per task, if all of them were stuck; empty otherwise."""
    figures: dict[str, float]
    """More counts and times for the table, by name."""

    @property
    def passed(self) -> bool:
        """Whether every expectation was met."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def broken(self) -> list[str]:
        """The expectations that were not met: the actual figure of each, and the first event to break it."""
        return [
            f"expected {verdict.expected}; got {verdict.came}; broken {verdict.broken_by}"
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
