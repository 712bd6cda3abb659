"""The progress bar of one run: files and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..._checks import format_size
from ._service import Progress


@contextmanager
def progress_bar(title: str, files: int, *, shown: bool) -> Iterator[Progress]:
    """Show a bar. Call the result with the bytes and files just read.

    :param files: how many there are
    :param shown: False where stderr is no terminal
    """
    if not shown:
        yield lambda nbytes, files: None
        return
    from rich.progress import BarColumn, TextColumn

    from .._progress import bar

    done = read = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,} files, {task.fields[read]}"),
    )
    with bar(*columns) as display:
        task = display.add_task(title, total=files, read="")

        def advance(nbytes: int, files: int) -> None:
            nonlocal done, read
            done += files
            read += nbytes
            display.update(task, completed=done, read=format_size(read))

        yield advance
