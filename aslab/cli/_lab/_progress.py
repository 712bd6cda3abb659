"""The progress bar of a story: which machine, which seed, how many runs of how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from .._progress import bar


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int], object]]:
    """Show a bar; call what comes out of it with the machine and seed of each run that ends."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with bar(*columns) as shown:
        task = shown.add_task("the story", total=total)
        yield lambda name, seed: shown.update(task, advance=1, description=f"{name}, seed {seed}")
