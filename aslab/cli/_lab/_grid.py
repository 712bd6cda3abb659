"""``aslab lab story --grid``: the machines on many computers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .._errors import BadInput, complain, printable, why
from .._loops import plain_interrupts
from .._prose import console, say, tabulate
from ._common import need, print_json
from ._progress import progress_bar

if TYPE_CHECKING:
    from ...lab._story._experiments import Notebook, Result
    from ...lab._story._grid import Grid
    from ...lab._story._machines import Machine


def run_grid(
    file: Path,
    machines: list[Machine],
    seeds: range,
    more: Mapping[str, object],
    *,
    loop: str,
    jobs: int,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Run what has not been run yet, and show all results.

    :raises BadInput: if a file cannot be read or written, or nothing can be run
    :raises ConfigError: if a file contains something wrong
    """
    need("_story._grid", "pydantic")
    from ...lab._story._experiments import play_grid

    grid = _load(file, more)
    if not grid.configs:
        raise BadInput(f"{printable(str(file))}: no configuration makes sense; the first: {grid.skipped[0]}")
    if grid.skipped:
        complain(
            f"{len(grid.skipped)} of {_total(grid)} configurations make no sense and are skipped; "
            f"the first: {grid.skipped[0]}"
        )
    total = len(grid.configs) * len(machines) * len(seeds)
    with _notebook(resume) as notebook, progress_bar(total) as advance, plain_interrupts():
        results = play_grid(grid, machines, seeds, notebook=notebook, loop=loop, jobs=jobs, progress=advance)
    if as_json:
        print_json(results)
    else:
        _show(results, grid, len(seeds))


def _load(file: Path, more: Mapping[str, object]) -> Grid:
    from ...lab._story._grid import load_grid

    try:
        return load_grid(file, more)
    except OSError as exc:
        raise BadInput(f"cannot read {printable(str(file))}: {why(exc)}") from None


@contextmanager
def _notebook(path: Path | None) -> Iterator[Notebook]:
    from ...lab._story._experiments import Notebook

    with ExitStack() as stack:
        try:
            notebook = stack.enter_context(Notebook(path))
        except OSError as exc:
            raise BadInput(f"cannot read and write {printable(str(path))}: {why(exc)}") from None
        yield notebook


def _show(results: list[Result], grid: Grid, seeds: int) -> None:
    from ...lab._story._experiments import rows_of

    out = console()
    tabulate(out, rows_of(results), left=("machine",))
    say(out)
    say(out, foot(grid, seeds))


def foot(grid: Grid, seeds: int) -> str:
    """How many configurations were run, and how many were skipped."""
    text = f"{len(grid.configs)} configurations, {seeds} seed{'s' * (seeds != 1)} each."
    if not grid.skipped:
        return text
    by_key = Counter(exc.field for exc in grid.skipped)
    keys = ", ".join(f"{key} {count}" for key, count in by_key.most_common())
    return f"{text} Skipped because they make no sense: {len(grid.skipped)} of {_total(grid)} ({keys})."


def _total(grid: Grid) -> int:
    return len(grid.configs) + len(grid.skipped)
