"""The story of the staging buffers with many seeds: one row per machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from .._report._seeds import Seeds, run_all
from .._scenario._metrics import format_seconds
from ._machines import SERVER, Machine
from ._run import OPENS, Chapter, tell


@dataclass(frozen=True, slots=True)
class Row(Seeds[Machine, Chapter]):
    """One machine with all seeds."""

    MOSTLY: ClassVar[float] = 0.5

    def as_json(self) -> dict[str, Any]:
        """What ``aslab lab story --of staging --json`` prints for it. Times are over finished runs."""
        chapters, finished = self.chapters, self.finished
        return {
            "machine": self.machine.name,
            "seeds": len(chapters),
            "finished": len(finished),
            "stuck": self.stuck,
            "cycle": list(self.cycle),
            "served": statistics.median_low(chapter.served for chapter in chapters),
            "longest_wait": _median([chapter.longest_wait for chapter in finished]),
            "longest_wait_worst": max((chapter.longest_wait for chapter in finished), default=None),
            "longest_store_wait_worst": max((chapter.longest_store_wait for chapter in finished), default=None),
            "requests_per_second": _median([chapter.served / (chapter.time - OPENS) for chapter in finished]),
            "tries_per_second": statistics.median_low(chapter.tries for chapter in chapters),
            "pinned_max": max(chapter.pinned_max for chapter in chapters),
            "emergency_max": max(chapter.emergency_max for chapter in chapters),
            "deadlocks": sum(chapter.deadlocks for chapter in chapters),
        }

    def tables(self) -> tuple[dict[str, str], ...]:
        """For people, in one table."""
        return (self.in_words(),)

    def in_words(self) -> dict[str, str]:
        """The results, by column."""
        figures = self.as_json()
        rate = figures["requests_per_second"]
        return {
            "machine": self.machine.name,
            "finished": f"{figures['finished']} of {figures['seeds']}",
            "wait": _seconds(figures["longest_wait"]),
            "worst": _seconds(figures["longest_wait_worst"]),
            "stores": _seconds(figures["longest_store_wait_worst"]),
            "req/s": "-" if rate is None else f"{rate:.1f}",
            "tries/s": str(figures["tries_per_second"]),
            "pinned MiB": f"{figures['pinned_max'] / 2**20:.0f}",
            "paged MiB": f"{figures['emergency_max'] * SERVER.buffer / 2**20:.0f}",
        }

    def stuck_in_words(self) -> str:
        """Who waits on whom, and how far it got; empty if it never got stuck."""
        if not self.cycle:
            return ""
        served = statistics.median_low(chapter.served for chapter in self.chapters if not chapter.finished)
        return f"{Seeds.stuck_in_words(self)}, after {served} of {SERVER.requests} requests (the median)"


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else format_seconds(round(value, 2 if value >= 1 else 3))


def play_staging(
    machines: Iterable[Machine],
    seeds: range,
    *,
    loop: str = "asyncio",
    jobs: int = 1,
    progress: Callable[[str, int], object] | None = None,
) -> list[Row]:
    """Run every machine with every seed. Blocks, for a tenth of a second per run.

    :param jobs: how many processes at once
    """
    machines = tuple(machines)
    runs = [(machine, seed) for machine in machines for seed in seeds]
    chapters = run_all(partial(tell, loop=loop), runs, jobs=jobs, progress=progress)
    return [Row(machine, chapters[machine.name]) for machine in machines]
