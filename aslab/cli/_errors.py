"""Errors as one plain line on stderr, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVarTuple

from .. import ConfigError

Args = TypeVarTuple("Args")

EXTRA = "needs the extra 'demo': run pip install '.[demo]' in a clone of aslab"
INTERRUPTED = 130
"""The exit code after Ctrl-C only: 128 and the number of the signal, as after SIGTERM and SIGHUP."""


class BadInput(Exception):
    """The user asked for something impossible. The message is one line."""


def complain(message: str) -> None:
    """Write one line to stderr."""
    sys.stdout.flush()  # or the lines are out of order if both go to one file
    print(f"aslab: {message}", file=sys.stderr, flush=True)


def refusals_told(command: Callable[[*Args], int], *args: *Args) -> int:
    """Run a command and return its exit code: 2 if it raises `BadInput` or `ConfigError`, which is told."""
    try:
        return command(*args)
    except (BadInput, ConfigError) as exc:
        complain(str(exc))
        return 2


def printable(path: str) -> str:
    """A path as one line of text: quoted, and escaped if necessary."""
    return f"'{path}'" if path.isprintable() else ascii(path)


def escaped(text: str) -> str:
    """A text that others chose, as one line that does nothing to a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def why(error: OSError) -> str:
    """The reason alone, without error number and path."""
    return error.strerror or str(error)
