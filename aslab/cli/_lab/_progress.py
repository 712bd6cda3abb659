"""The progress bar of a story: the machine, the seed, and how many runs are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from .._progress import bar


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int], object]]:
    """Show a bar. Call the result with the machine and seed of each finished run."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with bar(*columns) as shown:
        task = shown.add_task("the story", total=total)
        yield lambda name, seed: shown.update(task, advance=1, description=f"{name}, seed {seed}")
