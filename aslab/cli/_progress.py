"""Progress bars: on stderr, and only where that is a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def bar(*columns: ProgressColumn | str) -> Progress:
    """A bar that is gone at the end of its block. Titles are shown as they are.

    :param columns: what to show; rich's own choice if there are none
    """
    return Progress(
        *columns,
        console=Console(stderr=True, highlight=False, markup=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
