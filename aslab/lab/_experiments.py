"""Every machine on every computer of a grid: one experiment each, kept as they come, and one row a machine."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from .._errors import ConfigError
from ._complaints import printable, short
from ._computer import Computer, settings
from ._grid import Config, Grid
from ._machines import Machine
from ._metrics import format_seconds
from ._parallel import for_each
from ._story import tell

Told = dict[str, Any]
"""What came of one experiment, as JSON has it."""
RESULTS = ("machine", "config", "seed", "finished", "longest_wait", "time", "emergency_max")
"""Its keys."""


class Notebook:
    """Results in a file, a line each, which a second run need not find again.

    A line is about one machine, seed, loop and computer, whatever grid that computer was part of. It knows
    nothing of the program that found it: who changes that takes a new file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.known: dict[str, Told] = {}

    def open(self) -> None:
        """Read what is there. A last line that was cut off is forgotten.

        :raises ConfigError: for another line that is no result
        :raises OSError: if it cannot be read and written
        """
        if self._path is None:
            return
        self._path.touch()
        data = self._path.read_bytes()
        whole = data.rpartition(b"\n")[0].count(b"\n") + 1 if b"\n" in data else 0
        end = 0
        for number, line in enumerate(data.splitlines(keepends=True)[:whole], 1):
            told = self._parse(number, line)
            self.known[key_of(told["machine"], told["set"], told["seed"], told["loop"])] = told
            end += len(line)
        os.truncate(self._path, end)
        self._file = self._path.open("a", encoding="utf-8")

    def add(self, told: Told) -> None:
        """One more result, in the file at once."""
        self.known[key_of(told["machine"], told["set"], told["seed"], told["loop"])] = told
        if self._file is not None:
            self._file.write(json.dumps(told) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Add nothing after this."""
        if self._file is not None:
            self._file.close()

    def _parse(self, number: int, line: bytes) -> Told:
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or not {*RESULTS, "set", "loop"} <= told.keys():
            where = f"{printable(str(self._path))}: line {number}"
            raise ConfigError(where, short(line), "allowed are results that --resume has written")
        return told


def key_of(machine: str, changed: Mapping[str, Any], seed: int, loop: str) -> str:
    """What one result is about, as text."""
    return json.dumps([machine, changed, seed, loop], sort_keys=True)


def experiment(machine: Machine, computer: Computer, seed: int, config: Config, *, loop: str) -> Told:
    """Run one. Blocks."""
    chapter = tell(machine, computer, seed, loop=loop)
    return {
        "machine": machine.name,
        "config": config,
        "seed": seed,
        "finished": chapter.finished,
        "longest_wait": chapter.longest_wait,
        "time": chapter.time,
        "emergency_max": chapter.emergency_max,
        "loop": loop,
        "set": settings(computer),
    }


def play_grid(
    grid: Grid,
    machines: Iterable[Machine],
    seeds: Sequence[int],
    *,
    notebook: Notebook,
    loop: str = "asyncio",
    jobs: int = 1,
    progress: Callable[[str, int], object] | None = None,
) -> list[Told]:
    """Every machine on every computer with every seed, without those that the notebook has. Blocks.

    :param jobs: so many processes at once
    :param progress: called with machine and seed of each that is done, also of those that were
    """
    runs = {
        key_of(machine.name, settings(computer), seed, loop): (machine, computer, seed, config)
        for config, computer in grid.configs
        for machine in machines
        for seed in seeds
    }

    def note(told: Told) -> None:
        notebook.add(told)
        if progress is not None:
            progress(told["machine"], told["seed"])

    todo = [run for key, run in runs.items() if key not in notebook.known]
    for key in runs:
        if key in notebook.known and progress is not None:
            progress(notebook.known[key]["machine"], notebook.known[key]["seed"])
    for_each(partial(experiment, loop=loop), todo, jobs, note)
    return [
        {**{name: notebook.known[key][name] for name in RESULTS}, "config": config}
        for key, (_, _, _, config) in runs.items()
    ]


def rows_of(results: Iterable[Told]) -> list[dict[str, str]]:
    """One row for each machine, for people."""
    by_machine: dict[str, list[Told]] = {}
    for told in results:
        by_machine.setdefault(told["machine"], []).append(told)
    return [_row(machine, found) for machine, found in by_machine.items()]


def _row(machine: str, found: list[Told]) -> dict[str, str]:
    waits = [told["longest_wait"] for told in found]
    times = [told["time"] for told in found if told["finished"]]
    return {
        "machine": machine,
        "finished": f"{len(times)} of {len(found)}",
        "median wait": format_seconds(round(statistics.median(waits), 4)),
        "worst wait": format_seconds(round(max(waits), 4)),
        "median time": f"{statistics.median(times):.2f} s" if times else "-",
    }
