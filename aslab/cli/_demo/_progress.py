"""A progress bar on stderr, where stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from ._files import Found
from ._service import OnProgress


@contextmanager
def progress_bar(title: str, found: Found) -> Iterator[OnProgress]:
    """Show bytes and files; gone at the end of the block. Files that grow meanwhile make it longer."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[files]:,}/{task.fields[of]:,} files"),
        console=Console(stderr=True, highlight=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    done = read = 0
    with bar:
        task = bar.add_task(title, total=found.nbytes, files=0, of=len(found.files))

        def advance(nbytes: int, files: int) -> None:
            nonlocal done, read
            done += files
            read += nbytes
            bar.update(task, completed=read, total=max(read, found.nbytes), files=done)

        yield advance
