"""The story with many seeds: the results of each machine, as one row."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from .._report._seeds import Seeds, run_all
from .._scenario._metrics import format_seconds
from ._computer import COMPUTER, Computer
from ._index import removal_cost
from ._machines import Machine
from ._run import Chapter, tell

OUTSTANDING = (10, 1_000, 10_000)
"""Numbers of outstanding emergency objects, for measuring the cost of freeing one. They come by the thousand."""


@dataclass(frozen=True, slots=True)
class Row(Seeds[Machine, Chapter]):
    """One machine with all seeds."""

    MOSTLY: ClassVar[float] = 0.9

    free_cost: dict[int, float] = field(default_factory=dict)
    """Real seconds to find and free one emergency object, by the number outstanding."""
    computer: Computer = COMPUTER

    @property
    def time_to_finish(self) -> float | None:
        """The median over finished runs, in seconds."""
        times = [chapter.time for chapter in self.finished]
        return statistics.median(times) if times else None

    @property
    def failed_by_order(self) -> dict[str, int]:
        """Failed page allocations by order, over all seeds."""
        total: Counter[int] = Counter()
        for chapter in self.chapters:
            total.update(dict(enumerate(chapter.failed_by_order)))
        return {str(order): count for order, count in sorted(total.items()) if count}

    def as_json(self) -> dict[str, Any]:
        """What ``aslab lab story --json`` prints for it."""
        chapters = self.chapters
        return {
            "machine": self.machine.name,
            "seeds": len(chapters),
            "finished": len(self.finished),
            "stuck": self.stuck,
            "cycle": list(self.cycle),
            "time_to_finish": self.time_to_finish,
            "longest_txg_sync": max(chapter.longest_txg_sync for chapter in chapters),
            "longest_wait": max(chapter.longest_wait for chapter in chapters),
            "emergency_left": max(chapter.emergency_left for chapter in chapters),
            "emergency_max": max(chapter.emergency_max for chapter in chapters),
            "rows_made": sum(chapter.rows_made for chapter in chapters),
            "file_blocks": sum(chapter.file_blocks for chapter in chapters),
            "deadlocks": sum(chapter.deadlocks for chapter in chapters),
            "failed_by_order": self.failed_by_order,
            "lowest_free_pages": min(chapter.lowest_free_pages for chapter in chapters),
            "reserve_used": max(0, self.computer.min - min(chapter.lowest_free_pages for chapter in chapters)),
            "va_lock_time": statistics.median(chapter.va_lock_time for chapter in chapters),
            "index": self.machine.index,
            "emergency_free_us": {str(size): cost * 1e6 for size, cost in self.free_cost.items()},
        }

    def tables(self) -> tuple[dict[str, str], ...]:
        """For people: how it ended, and what it needed."""
        return self.ended(), self.needed()

    def ended(self) -> dict[str, str]:
        """How it ended, by column."""
        figures = self.as_json()
        finish = self.time_to_finish
        return {
            "machine": self.machine.name,
            "finished": f"{figures['finished']} of {figures['seeds']}",
            "time": "-" if finish is None else f"{finish:.2f} s",
            "txg sync": format_seconds(round(figures["longest_txg_sync"], 4)),
            "wait": format_seconds(round(figures["longest_wait"], 4)),
            "emerg": str(figures["emergency_left"]),
            "max": str(figures["emergency_max"]),
            "dlock": str(figures["deadlocks"]),
        }

    def needed(self) -> dict[str, str]:
        """What it needed, by column."""
        figures = self.as_json()
        failed = ", ".join(f"{count} of order {order}" for order, count in self.failed_by_order.items())
        cost = self.free_cost.get(OUTSTANDING[-1])
        return {
            "machine": self.machine.name,
            "failed": failed or "-",
            "lowest free": str(figures["lowest_free_pages"]),
            "reserve used": f"{figures['reserve_used'] / self.computer.min:.0%}",
            "va lock": format_seconds(round(figures["va_lock_time"], 6)),
            f"free 1 of {OUTSTANDING[-1]:,}": format_seconds(round(cost, 8)) if cost else "-",
        }


def play_story(
    machines: Iterable[Machine],
    seeds: range,
    *,
    computer: Computer = COMPUTER,
    loop: str = "asyncio",
    jobs: int = 1,
    progress: Callable[[str, int], object] | None = None,
) -> list[Row]:
    """Run every machine with every seed. Blocks, for a second or two per run.

    :param jobs: how many processes at once
    """
    machines = tuple(machines)
    runs = [(machine, computer, seed) for machine in machines for seed in seeds]
    chapters = run_all(partial(tell, loop=loop), runs, jobs=jobs, progress=progress)
    costs = _free_costs({machine.index for machine in machines} - {""})
    return [Row(machine, chapters[machine.name], costs.get(machine.index, {}), computer) for machine in machines]


def _free_costs(kinds: set[str]) -> dict[str, dict[int, float]]:
    """The cost of each kind of index, measured now on this machine."""
    by_size = {size: removal_cost(kinds, size, rounds=20) for size in OUTSTANDING}
    return {kind: {size: costs[kind] for size, costs in by_size.items()} for kind in kinds}
