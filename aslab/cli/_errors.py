"""One plain line on stderr for everything that can go wrong, and no traceback."""

from __future__ import annotations

import sys

EXTRA = "needs the extra 'demo': pip install '.[demo]' where aslab is cloned"
INTERRUPTED = 130
"""The exit code after Ctrl-C, and of nothing else."""


class BadInput(Exception):
    """The user asked for what cannot be done. The message is one line."""


def complain(message: str) -> None:
    """Write one line to stderr."""
    sys.stdout.flush()  # or the lines come in the wrong order where both go to one file
    print(f"aslab: {message}", file=sys.stderr, flush=True)


def printable(path: str) -> str:
    """A path as one line of text: quoted, and escaped where it must be."""
    return f"'{path}'" if path.isprintable() else ascii(path)


def why(error: OSError) -> str:
    """The reason alone, without number and path."""
    return error.strerror or str(error)
