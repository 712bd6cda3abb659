"""The progress bar of the demo: bytes and files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, TextColumn

from .._progress import bar
from ._files import Found
from ._service import Progress


@contextmanager
def progress_bar(title: str, found: Found) -> Iterator[Progress]:
    """Show a bar. Call the result with the bytes and files just read. Growing files extend the bar."""
    done = read = 0
    expected = found.nbytes  # once: it visits every file
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[files]:,}/{task.fields[of]:,} files"),
    )
    with bar(*columns) as shown:
        task = shown.add_task(title, total=expected, files=0, of=len(found.files))

        def advance(nbytes: int, files: int) -> None:
            nonlocal done, read
            done += files
            read += nbytes
            shown.update(task, completed=read, total=max(read, expected), files=done)

        yield advance
