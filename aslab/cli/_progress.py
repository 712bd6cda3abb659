"""Progress bars: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def bar(*columns: ProgressColumn | str) -> Progress:
    """A progress bar that disappears at the end of its block. Titles are shown without markup.

    :param columns: what to show; rich's default if empty
    """
    return Progress(
        *columns,
        console=Console(stderr=True, highlight=False, markup=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
