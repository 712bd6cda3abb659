"""Every machine on every computer of a grid: the results, saved as they arrive, and one row per machine."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from pydantic import ValidationError

from ..._errors import ConfigError
from .._scenario._complaints import printable, short
from .._scenario._metrics import format_seconds
from .._scenario._schema import Section
from .._simulation._parallel import for_each
from ._computer import Computer, settings
from ._grid import Config, Grid
from ._machines import Machine
from ._run import tell

Result = dict[str, Any]
"""The result of one experiment, as JSON."""
RESULTS = ("machine", "config", "seed", "finished", "longest_wait", "time", "emergency_max")
"""Its keys in the output; a notebook has two more."""
BEGIN = b'{"machine": '
"""The start of every line in a notebook."""


class Line(Section):
    """A result in a notebook."""

    machine: str
    config: dict[str, Any]
    seed: int
    finished: bool
    longest_wait: float
    """Seconds."""
    time: float
    """Simulated seconds until everything was done, or stuck."""
    emergency_max: int
    loop: str
    set: dict[str, Any]
    """The fields of the computer that differ from the default."""


class Notebook:
    """Results in a file, one per line, which a second run can reuse.

    A line is about one machine, seed, loop and computer, whatever grid that computer came from. It does not
    record the version of the program: use a new file after changing that.

    A context manager: entering reads the existing results; an incomplete last line is dropped.

    :param path: None keeps the results in memory only
    :raises ConfigError: on entering, if any other line is not a result
    :raises OSError: on entering, if the file cannot be read and written
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.known: dict[str, Result] = {}

    def __enter__(self) -> Self:
        if self._path is not None:
            self._open(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, result: Result) -> None:
        """Add a result, and write it to the file at once."""
        self.known[key_of(result["machine"], result["set"], result["seed"], result["loop"])] = result
        if self._file is not None:
            self._file.write(json.dumps(result) + "\n")
            self._file.flush()

    def _open(self, path: Path) -> None:
        path.touch()
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
            result = self._parse(number, line)
            self.known[key_of(result["machine"], result["set"], result["seed"], result["loop"])] = result
        cut_off = data[end:]
        if cut_off[: len(BEGIN)] != BEGIN[: len(cut_off)]:  # not our file: leave it alone
            self._parse(data.count(b"\n") + 1, cut_off)
        os.truncate(path, end)
        self._file = path.open("a", encoding="utf-8")

    def _parse(self, number: int, line: bytes) -> Result:
        try:
            return Line.model_validate_json(line).model_dump()
        except ValidationError:
            where = f"{printable(str(self._path))}: line {number}"
            raise ConfigError(where, short(line), "it must be a result written by --resume") from None


def key_of(machine: str, changed: Mapping[str, Any], seed: int, loop: str) -> str:
    """The key of one result, as text."""
    return json.dumps([machine, changed, seed, loop], sort_keys=True)


def experiment(machine: Machine, computer: Computer, seed: int, config: Config, *, loop: str) -> Result:
    """Run one experiment. Blocks."""
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


def runs_of(
    grid: Grid, machines: Iterable[Machine], seeds: Sequence[int], loop: str
) -> dict[str, tuple[Machine, Computer, int, Config]]:
    """All experiments of a grid, in order, by their key in a notebook."""
    return {
        key_of(machine.name, settings(computer), seed, loop): (machine, computer, seed, config)
        for config, computer in grid.configs
        for machine in machines
        for seed in seeds
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
) -> list[Result]:
    """Run every machine on every computer with every seed, except what the notebook already has. Blocks.

    :param jobs: how many processes at once
    :param progress: called with the machine and seed of each result, including those from the notebook
    """
    runs = runs_of(grid, machines, seeds, loop)

    def note(result: Result) -> None:
        notebook.add(result)
        if progress is not None:
            progress(result["machine"], result["seed"])

    todo = [run for key, run in runs.items() if key not in notebook.known]
    for key in runs:
        if key in notebook.known and progress is not None:
            progress(notebook.known[key]["machine"], notebook.known[key]["seed"])
    for_each(partial(experiment, loop=loop), todo, jobs, note)
    return [
        {**{name: notebook.known[key][name] for name in RESULTS}, "config": config}
        for key, (_, _, _, config) in runs.items()
    ]


def rows_of(results: Iterable[Result]) -> list[dict[str, str]]:
    """One row per machine, for people."""
    by_machine: dict[str, list[Result]] = {}
    for result in results:
        by_machine.setdefault(result["machine"], []).append(result)
    return [_row(machine, found) for machine, found in by_machine.items()]


def _row(machine: str, found: list[Result]) -> dict[str, str]:
    waits = [result["longest_wait"] for result in found]
    times = [result["time"] for result in found if result["finished"]]
    return {
        "machine": machine,
        "finished": f"{len(times)} of {len(found)}",
        "median wait": format_seconds(round(statistics.median(waits), 4)),
        "worst wait": format_seconds(round(max(waits), 4)),
        "median time": f"{statistics.median(times):.2f} s" if times else "-",
    }
