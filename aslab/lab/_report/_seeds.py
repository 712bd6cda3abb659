"""A story run with many seeds: the summary of each machine, and what its page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from .._scenario._recording import Span
from .._simulation._parallel import for_each
from ._tale import Entry, Outcome


class Machine(Protocol):
    """What every machine of a story has."""

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def ends(self) -> Literal["stuck", "finished"]:
        """How it is expected to end."""
        ...


class Chapter(Protocol):
    """One run of a machine."""

    machine: str
    seed: int
    finished: bool
    time: float
    cycle: tuple[str, ...]
    spans: list[Span]
    counters: dict[str, list[tuple[float, float]]]


M = TypeVar("M", bound=Machine)
C = TypeVar("C", bound=Chapter)


@dataclass(frozen=True, slots=True)
class Seeds(Generic[M, C]):
    """One machine with all seeds."""

    MOSTLY: ClassVar[float]
    """The share of runs that must get stuck for a machine that is expected to get stuck."""

    machine: M
    chapters: tuple[C, ...]

    @property
    def finished(self) -> list[C]:
        """The runs that finished."""
        return [chapter for chapter in self.chapters if chapter.finished]

    @property
    def stuck(self) -> int:
        """The number of runs that did not finish."""
        return len(self.chapters) - len(self.finished)

    @property
    def cycle(self) -> tuple[str, ...]:
        """Who waits on whom when it is stuck: the most common cycle."""
        found = Counter(chapter.cycle for chapter in self.chapters if chapter.cycle)
        return found.most_common(1)[0][0] if found else ()

    @property
    def as_expected(self) -> bool:
        """Whether it ended as expected: finished with every seed, or got stuck with most."""
        if self.machine.ends == "finished":
            return not self.stuck
        return self.stuck >= self.MOSTLY * len(self.chapters)

    def stuck_in_words(self) -> str:
        """Who waits on whom, as text; empty if it never got stuck."""
        return " → ".join((*self.cycle, *self.cycle[:1]))

    def with_seed(self, seed: int) -> C:
        """The run with that seed."""
        return next(chapter for chapter in self.chapters if chapter.seed == seed)

    def entry(
        self, seed: int, verdict: tuple[Outcome, str], cells: dict[str, str], more: dict[str, str], expected: str
    ) -> Entry:
        """What a page shows: the run with that seed in the charts, all runs in the tables.

        :param verdict: used if the machine finished with every seed
        :param expected: what was expected, shown if it ended differently
        """
        chapter = self.with_seed(seed)
        if self.stuck:
            verdict = "bad", f"gets stuck in {self.stuck} runs" if self.finished else "gets stuck"
        return Entry(
            name=self.machine.name,
            about=self.machine.about,
            outcome=verdict[0],
            verdict=verdict[1],
            cells=cells,
            more=more,
            time=chapter.time,
            finished=chapter.finished,
            spans=chapter.spans,
            counters=chapter.counters,
            cycle=self.cycle,
            surprise="" if self.as_expected else expected,
        )


def facts(rows: Sequence[Seeds[Any, Any]], expected: str, loop: str) -> dict[str, str]:
    """The facts at the top of a page.

    :param expected: the label of the share that ended as expected
    """
    count = len(rows[0].chapters)
    return {
        expected: f"{sum(row.as_expected for row in rows)} of {len(rows)}",
        "runs": f"{count} per machine" if count > 1 else "one per machine",
        "loop": loop,
        "time": "simulated",
    }


def run_all(
    once: Callable[..., C],
    runs: Collection[tuple[Any, ...]],
    *,
    jobs: int,
    progress: Callable[[str, int], object] | None,
) -> dict[str, tuple[C, ...]]:
    """Call ``once`` for each run, and group the results by machine, in order. Blocks.

    :param runs: the arguments of each call; the first is the machine, the last the seed
    :param jobs: how many processes at once
    :param progress: called with the machine and the seed of each finished run
    """
    chapters: dict[tuple[str, int], C] = {}

    def note(chapter: C) -> None:
        chapters[chapter.machine, chapter.seed] = chapter
        if progress is not None:
            progress(chapter.machine, chapter.seed)

    for_each(once, runs, jobs, note)
    found: dict[str, tuple[C, ...]] = {}
    for machine, *_, seed in runs:
        found[machine.name] = (*found.get(machine.name, ()), chapters[machine.name, seed])
    return found
