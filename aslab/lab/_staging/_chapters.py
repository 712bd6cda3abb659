"""The story of the staging buffers told many times: one row a machine, and one page."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._scenario._metrics import format_seconds
from .._simulation._parallel import for_each
from ._machines import SERVER, Machine
from ._run import OPENS, Chapter, tell


@dataclass(frozen=True, slots=True)
class Row:
    """One machine over all seeds."""

    machine: Machine
    chapters: tuple[Chapter, ...]

    @property
    def finished(self) -> list[Chapter]:
        """The seeds with which every request was served."""
        return [chapter for chapter in self.chapters if chapter.finished]

    @property
    def stuck(self) -> int:
        """Seeds with which it did not finish."""
        return len(self.chapters) - len(self.finished)

    @property
    def cycle(self) -> tuple[str, ...]:
        """Who waits on whom where it is stuck, as most often."""
        found = Counter(chapter.cycle for chapter in self.chapters if chapter.cycle)
        return found.most_common(1)[0][0] if found else ()

    @property
    def as_told(self) -> bool:
        """Whether it ended as foretold: stuck with half of the seeds at least, or finished with all."""
        if self.machine.ends == "finished":
            return not self.stuck
        return 2 * self.stuck >= len(self.chapters)

    def as_json(self) -> dict[str, Any]:
        """What ``aslab lab story --of staging --json`` prints of it. Times are of the seeds that finished."""
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

    def in_words(self) -> dict[str, str]:
        """For people, a column each."""
        told = self.as_json()
        rate = told["requests_per_second"]
        return {
            "machine": self.machine.name,
            "finished": f"{told['finished']} of {told['seeds']}",
            "wait": _seconds(told["longest_wait"]),
            "worst": _seconds(told["longest_wait_worst"]),
            "stores": _seconds(told["longest_store_wait_worst"]),
            "req/s": "-" if rate is None else f"{rate:.1f}",
            "tries/s": str(told["tries_per_second"]),
            "pinned MiB": f"{told['pinned_max'] / 2**20:.0f}",
            "paged MiB": f"{told['emergency_max'] * SERVER.buffer / 2**20:.0f}",
        }

    def stuck_in_words(self) -> str:
        """Who waits on whom, and how far it came; nothing where it was never stuck."""
        if not self.cycle:
            return ""
        served = statistics.median_low(chapter.served for chapter in self.chapters if not chapter.finished)
        return f"{round_trip(self.cycle)}, after {served} of {SERVER.requests} requests (the median)"


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
    """Tell it with every machine and every seed. Blocks; a tenth of a second for each.

    :param jobs: so many processes at once
    """
    machines = tuple(machines)
    chapters: dict[tuple[str, int], Chapter] = {}

    def note(chapter: Chapter) -> None:
        chapters[chapter.machine, chapter.seed] = chapter
        if progress is not None:
            progress(chapter.machine, chapter.seed)

    runs = [(machine, seed) for machine in machines for seed in seeds]
    for_each(partial(tell, loop=loop), runs, jobs, note)
    return [Row(machine, tuple(chapters[machine.name, seed] for seed in seeds)) for machine in machines]


def round_trip(cycle: Sequence[str]) -> str:
    """A cycle as text, back to where it began."""
    return " → ".join((*cycle, *cycle[:1]))
